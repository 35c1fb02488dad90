"""Where images come from: digits, archives, folders; and the batches they are trained in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from short_runs import CPU, archive, picture, some

from niwaki.errors import DataError
from niwaki.train.batches import Batches, InOrder, shifted
from niwaki.train.data import load_images


def test_digits_are_split_by_seed_and_stratified() -> None:
    one, again, other = load_images("digits", 0), load_images("digits", 0), load_images("digits", 1)
    assert len(one.train_y) + len(one.test_y) == 1797
    assert (one.channels, one.size, one.classes) == (1, (8, 8), 10)
    assert one.fingerprint == again.fingerprint != other.fingerprint
    shares = torch.bincount(one.test_y) / torch.bincount(torch.cat([one.train_y, one.test_y]))
    assert (shares - 0.25).abs().max() < 0.01


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("data", "labels")])
def test_npz_without_test_images_is_split(names: tuple[str, str], tmp_path: Path) -> None:
    x, y = some()
    images = load_images(archive(tmp_path / "a.npz", **{names[0]: x, names[1]: y}), 0)
    assert (len(images.train_y), len(images.test_y), images.classes) == (9, 3, 3)
    assert images.train_x.shape == (9, 1, 6, 6)


def test_npz_with_test_images_keeps_them(tmp_path: Path) -> None:
    (x, y), (u, v) = some(shape=(6, 5, 3)), some(4, shape=(6, 5, 3), seed=1)
    images = load_images(archive(tmp_path / "a.npz", x_train=x, y_train=y[:, None], x_test=u, y_test=v), 0)
    assert torch.equal(images.test_x, torch.from_numpy(u).permute(0, 3, 1, 2))
    assert torch.equal(images.train_y, torch.from_numpy(y))


def test_npz_of_differences_is_decoded(tmp_path: Path) -> None:
    x, y = some(shape=(6, 5, 3))
    planes = np.stack([x[..., 1], x[..., 0] - x[..., 1], x[..., 2] - x[..., 1]])
    rows = np.diff(planes, axis=3, prepend=np.uint8(0))
    differences = np.diff(rows, axis=2, prepend=np.uint8(0))
    images = load_images(archive(tmp_path / "a.npz", d=differences, y=y), 0)
    everything = {image.numpy().tobytes() for image in torch.cat([images.train_x, images.test_x])}
    assert everything == {image.tobytes() for image in np.ascontiguousarray(x.transpose(0, 3, 1, 2))}


def test_folder_of_classes(tmp_path: Path) -> None:
    from PIL import Image

    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (7, 5), (label * 200, number, 0)).save(tmp_path / name / f"{number}.png")
    images = load_images(str(tmp_path), 0)
    assert (images.classes, images.channels, images.size) == (2, 3, (5, 7))
    assert torch.equal(images.test_x[:, 0, 0, 0] > 100, images.test_y == 1)
    Image.new("RGB", (8, 5)).save(tmp_path / "dog" / "odd.png")
    with pytest.raises(DataError, match=r"several sizes: .*odd\.png.* with --image-size"):
        load_images(str(tmp_path), 0)
    (tmp_path / "dog" / "odd.png").write_text("no image")
    with pytest.raises(DataError, match=r"odd\.png' cannot be read as an image"):
        load_images(str(tmp_path), 0)


def test_folders_of_mixed_sizes_and_of_two_parts(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "train" / "cat" / f"{number}.png", (10 + number, 8), 40 * number)
        picture(tmp_path / "train" / "dog" / f"{number}.jpg", (6, 12), (200, 0, 0))
        picture(tmp_path / "val" / "dog" / f"{number}.png", (9, 9), (200, 0, 0))
    with pytest.raises(DataError, match=r"0.png' is 8x10 and .*1.png' is 8x11. Scale .* with --image-size 6"):
        load_images(str(tmp_path), 0)
    images = load_images(str(tmp_path), 0, (8, 6))
    assert images.train_x.shape == (8, 3, 8, 6) and images.test_x.shape == (4, 3, 8, 6)  # grey ones have three channels
    assert images.labels == ("cat", "dog") and images.classes == 2 and images.test_y.tolist() == [1] * 4
    assert images.train_x[1].unique().tolist() == [40] and images.train_x[0, 0].shape == (8, 6)
    for number in range(4):
        (tmp_path / "val" / "dog" / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"val' has no images in sub-folders of classes, and it is where the images"):
        load_images(str(tmp_path), 0, (8, 6))
    picture(tmp_path / "val" / "bird" / "1.png", (9, 9), 0)
    with pytest.raises(DataError, match=r"val' has a class 'bird', which .*train' does not have"):
        load_images(str(tmp_path), 0, (8, 6))


def test_images_are_scaled_to_cover_and_cropped_in_the_middle(tmp_path: Path) -> None:
    x = np.zeros((8, 4, 8), dtype=np.uint8)
    x[:, :, 2:6] = 200
    source = archive(tmp_path / "a.npz", images=x, labels=np.arange(8) // 4)
    small = load_images(source, 0, (4, 4))
    assert small.train_x.shape[1:] == (1, 4, 4) and (small.train_x == 200).all()
    large = load_images(source, 0, (8, 8))
    assert large.train_x.shape[1:] == (1, 8, 8) and int(large.train_x[0, 0, 4, 4]) == 200
    assert load_images("digits", 0, (8, 8)).fingerprint == load_images("digits", 0).fingerprint


def test_bad_data_is_named(tmp_path: Path) -> None:
    x, y = some()
    cases: dict[str, str] = {
        str(tmp_path / "nothing.npz"): "There is no data at",
        str(tmp_path): "sub-folder of images for each of at least two classes",
        archive(tmp_path / "names.npz", first=x, second=y): "holds the arrays first, second, but images and labels",
        archive(tmp_path / "floats.npz", x=x.astype(np.float32), y=y): "have the type float32; they must be uint8",
        archive(tmp_path / "flat.npz", x=x.reshape(12, 36), y=y): r"have the shape \[12, 36\]",
        archive(tmp_path / "short.npz", x=x, y=y[:5]): "one for each of the 12 images",
        archive(tmp_path / "minus.npz", x=x, y=y - 1): "has the label -1",
        archive(tmp_path / "pickled.npz", x=x, y=np.array([{}] * 12, dtype=object)): "cannot be read as an .npz",
        archive(
            tmp_path / "sizes.npz", x_train=x, y_train=y, x_test=x[:, 1:], y_test=y
        ): "training images are 1x6x6, but",
    }
    (tmp_path / "text.npz").write_text("no archive")
    cases[str(tmp_path / "text.npz")] = "cannot be read as an .npz archive"
    for source, message in cases.items():
        with pytest.raises(DataError, match=message):
            load_images(source, 0)


def test_batches_depend_on_the_position_alone() -> None:
    batches = Batches(load_images("digits", 0), 50, 7, 1, CPU)
    whole = list(batches.epoch(3))
    rest = list(batches.epoch(3, skip=20))
    assert len(whole) == batches.per_epoch == 27
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[20:], rest, strict=True))
    assert not torch.equal(whole[0][0], next(iter(batches.epoch(4)))[0])


def test_held_out_images_are_not_trained_on() -> None:
    """One of twenty, of every class, in batches that are the same on every pass."""
    images = load_images("digits", 0)
    rest, apart = images.held_out(20)
    assert len(apart.train_y) == len(images.train_y) // 20
    assert len(rest.train_y) + len(apart.train_y) == len(images.train_y)
    assert len(apart.train_y.unique()) == 10 and torch.equal(rest.test_x, images.test_x)
    whole = {image.numpy().tobytes() for image in rest.train_x}
    assert sum(image.numpy().tobytes() in whole for image in apart.train_x) <= 1  # two of the digits may be equal
    batches = InOrder(apart, Batches(rest, 16, 0, 2, torch.device("cpu")))
    passes = [list(batches), list(batches)]
    assert [len(y) for _, y in passes[0]] == [16, 16, 16, 16, len(apart.train_y) - 64]
    for (x, y), (again, labels) in zip(*passes, strict=True):
        assert torch.equal(x, again) and torch.equal(y, labels)
    assert torch.equal(torch.cat([y for _, y in passes[0]]), apart.train_y)


def test_a_batch_of_one_image_is_left_out() -> None:
    images = load_images("digits", 0).first(101)
    assert [len(y) for _, y in Batches(images, 50, 0, 0, CPU).epoch(0)] == [50, 50]


def test_shifts_move_images() -> None:
    x = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3).repeat(2, 1, 1, 1)
    moved = shifted(x, torch.tensor([[1, 1], [2, 0]]), 1)
    assert moved.stride() == (9, 9, 3, 1), "not the strides of channels-last images"
    assert torch.equal(moved[0], x[0])
    assert moved[1, 0].tolist() == [[0, 4, 5], [0, 7, 8], [0, 0, 0]]
