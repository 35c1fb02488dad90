"""The main job: data, models, loop, checkpoints, and killing it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import niwaki
from niwaki.errors import DataError, FileFormatError, Interrupted, RunError
from niwaki.networks import ImageTask, build_model
from niwaki.report import read_report
from niwaki.train import job
from niwaki.train.baseline import add_baseline, baseline_waits
from niwaki.train.batches import Batches, InOrder, shifted
from niwaki.train.checkpoint import (
    FOLDER,
    Checkpoint,
    random_state,
    read_checkpoint,
    set_random_state,
    write_checkpoint,
)
from niwaki.train.data import load_images
from niwaki.train.loop import EpochResult, Silent, TrainingProgress, TrainingRun
from niwaki.train.recipe import Recipe

CPU = torch.device("cpu")
train = functools.partial(job.train, measure_seconds=0.05)
SHORT = Recipe(epochs=2, batch_size=128, periods=3, width=0.5, prune_until=0.5)


class Recorder(Silent):
    """Remembers what it is told, and stops the run when asked to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[TrainingProgress] = []
        self.epochs: list[EpochResult] = []
        self.stop_at = stop_at

    def on_step(self, progress: TrainingProgress) -> None:
        self.steps.append(progress)

    def on_epoch(self, result: EpochResult) -> None:
        self.epochs.append(result)

    def should_stop(self) -> bool:
        return self.stop_at is not None and len(self.steps) >= self.stop_at


# ---------------------------------------------------------------- data


def test_digits_are_split_by_seed_and_stratified() -> None:
    one, again, other = load_images("digits", 0), load_images("digits", 0), load_images("digits", 1)
    assert len(one.train_y) + len(one.test_y) == 1797
    assert (one.channels, one.size, one.classes) == (1, (8, 8), 10)
    assert one.fingerprint == again.fingerprint != other.fingerprint
    shares = torch.bincount(one.test_y) / torch.bincount(torch.cat([one.train_y, one.test_y]))
    assert (shares - 0.25).abs().max() < 0.01


def archive(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def some(count: int = 12, shape: tuple[int, ...] = (6, 6), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % 3


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


# ---------------------------------------------------------------- models


def test_built_in_and_file_models(tmp_path: Path) -> None:
    task = ImageTask(5, 3, (12, 10))
    for name in ("resnet", "mlp"):
        assert build_model(name, task)(torch.zeros(2, 3, 12, 10)).shape == (2, 5)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def factory(num_classes, image_size=(1, 1)):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size[0] * image_size[1], num_classes))\n"
        "def nothing():\n    return 3\n"
        "def fails():\n    raise ValueError('no weights')\n"
    )
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    mine = tmp_path / "mine.py"
    assert build_model(f"{mine}:factory", task)(torch.zeros(2, 3, 12, 10)).shape == (2, 5)
    for name, message in {
        "resnot": "There is no model 'resnot'. Give resnet, mlp, superresnet, unets, cells, supernet, timm:NAME",
        f"{mine}:absent": "has no function 'absent'",
        f"{mine}:nothing": "returned a int, not a torch.nn.Module",
        f"{mine}:fails": "failed: ValueError: no weights",
        f"{tmp_path}/no.py:factory": "There is no file",
        f"{tmp_path}/broken.py:factory": "Importing .* failed: ModuleNotFoundError",
    }.items():
        with pytest.raises(RunError, match=message):
            build_model(name, task)


def test_zoo_models() -> None:
    task = ImageTask(5, 1, (32, 32))
    assert build_model("timm:resnet10t", task)(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    assert build_model("torchvision:resnet18", task)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(RunError, match="timm has no model 'resnet18x'. Did you mean resnet18"):
        build_model("timm:resnet18x", task)
    with pytest.raises(RunError, match="torchvision has no model 'resnet19'. Did you mean resnet1"):
        build_model("torchvision:resnet19", task)


def picture(path: Path, size: tuple[int, int], colour: Any) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)


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


def test_a_run_starts_from_weights_with_another_optimizer(tmp_path: Path) -> None:
    short = Recipe(model="mlp", epochs=1, batch_size=256, periods=2, width=0.1, optimizer="adamw", lr=1e-9)
    torch.manual_seed(5)
    model = build_model("mlp", ImageTask(10, 1, (8, 8)), 0.1)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    run = TrainingRun(dataclasses.replace(short, weights=str(tmp_path / "w.pt")), load_images("digits", 0), CPU)
    assert isinstance(run.optimizer, torch.optim.AdamW)
    assert all(torch.equal(*pair) for pair in zip(run.model.parameters(), model.parameters(), strict=True))
    with pytest.raises(RunError, match="There are no weights at 'nowhere.pt'"):
        TrainingRun(dataclasses.replace(short, weights="nowhere.pt"), load_images("digits", 0), CPU)


# ---------------------------------------------------------------- recipe


def test_bad_recipes_are_sentences() -> None:
    for options, message in (
        (
            {"method": "magic"},
            "There is no method 'magic'. Choose adahspg, ato, dhspg, .* or none.",
        ),
        ({"epochs": 0}, "epochs is 0, but must be at least 1."),
        ({"lr": float("nan")}, "lr is nan, but must be a finite number above 0."),
        ({"prune_start": 0.6}, "from the fraction 0.6 of all steps until"),
        ({"keep_macs": None}, "needs to know what to keep"),
        ({"batch_size": 1}, "BatchNorm cannot train on single images"),
    ):
        with pytest.raises(RunError, match=message):
            Recipe(**options)  # type: ignore[arg-type]
    assert [Recipe().schedule(steps).periods for steps in (2, 20, 400)] == [1, 5, 10]
    with pytest.raises(RunError, match="1 optimizer step cannot prune a network: units leave after the first"):
        Recipe().schedule(1)
    with pytest.raises(RunError, match="There is no optimizer 'lion'. Choose sgd or adam or adamw."):
        Recipe(optimizer="lion")
    with pytest.raises(RunError, match="image_size is '64x'; write 64, or 64x96 for height and width"):
        Recipe(image_size="64x")
    assert (Recipe().peak_rate, Recipe(optimizer="adamw").peak_rate, Recipe(lr=0.1).peak_rate) == (0.02, 0.001, 0.1)


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    rates = [Recipe(lr=0.1).learning_rate(step, 200) for step in range(200)]
    assert max(rates) == rates[9] == 0.1
    assert rates[0] < rates[4] < rates[9] > rates[100] > rates[199] > 0
    assert rates[199] < 1e-4


# ---------------------------------------------------------------- checkpoints


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    state = {
        "a": torch.arange(3),
        "nested": [1, 2.5, None, True, "text", (torch.zeros(0), float("inf"))],
        "numbers": {0: {"step": torch.tensor(2.0)}, 1: {}},
    }
    write_checkpoint(tmp_path, Checkpoint(3, {"k": 1}, {}))
    write_checkpoint(tmp_path, Checkpoint(12, {"k": 2}, state))
    assert [entry.name for entry in (tmp_path / FOLDER).iterdir()] == ["step-00000012"]
    found = read_checkpoint(tmp_path)
    assert (found.step, found.facts) == (12, {"k": 2})
    assert torch.equal(found.state["a"], state["a"])
    assert found.state["nested"][:5] == state["nested"][:5]
    assert found.state["nested"][5][1] == float("inf")
    assert set(found.state["numbers"]) == {0, 1}
    assert torch.equal(found.state["numbers"][0]["step"], torch.tensor(2.0))


def test_checkpoint_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="'state.optimizer.hook': it is a object"):
        write_checkpoint(tmp_path, Checkpoint(1, {}, {"optimizer": {"hook": object()}}))
    assert not list((tmp_path / FOLDER).iterdir())


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no checkpoint in"):
        read_checkpoint(tmp_path)
    write_checkpoint(tmp_path, Checkpoint(1, {}, {"a": torch.zeros(8)}))
    tensors = tmp_path / FOLDER / "step-00000001" / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(RunError, match="is damaged: it contradicts its checksum"):
        read_checkpoint(tmp_path)
    tensors.unlink()
    with pytest.raises(RunError, match="cannot be read: FileNotFoundError"):
        read_checkpoint(tmp_path)
    (tmp_path / FOLDER / "step-00000001" / "state.json").write_text('{"format": 7}')
    with pytest.raises(RunError, match="has format 7, and this niwaki reads formats up to 2"):
        read_checkpoint(tmp_path)


def test_random_generators_are_restored() -> None:
    def draw() -> tuple[float, float, float, float]:
        return float(torch.rand(())), random.random(), float(np.random.rand()), float(np.random.randn())

    state = random_state(CPU)
    first = draw()
    set_random_state(state, CPU)
    assert draw() == first


# ---------------------------------------------------------------- runs


def test_a_run_trains_cuts_and_saves(tmp_path: Path) -> None:
    recorder = Recorder()
    report = train(SHORT, tmp_path / "out", recorder)
    files = ["model.safetensors", "plan.json", "report.html", "report.json"]
    assert sorted(e.name for e in (tmp_path / "out").iterdir()) == files
    assert report.dense.accuracy == report.small.accuracy
    assert report.small.macs <= 0.4 * report.dense.macs
    assert report.small.params < report.dense.params
    assert report.check["deviation"] < 1e-5
    assert [step.step for step in recorder.steps] == list(range(1, 23))
    assert [result.macs_left for result in recorder.epochs][-1] <= 0.4
    assert json.loads((tmp_path / "out" / "report.json").read_text())["small"]["macs"] == report.small.macs
    images = load_images("digits", SHORT.seed)
    fresh = build_model("resnet", ImageTask(10, 1, (8, 8)), SHORT.width).eval()
    small = niwaki.load(fresh, tmp_path / "out")
    batches = Batches(images, 128, 0, 0, CPU)
    from niwaki.train.scores import accuracy

    assert accuracy(small, batches) == report.small.accuracy
    loaded = niwaki.load_run(tmp_path / "out")  # the same, but it normalises by itself
    right = loaded(images.test_x).argmax(1) == images.test_y
    assert not loaded.training and float(right.double().mean()) == pytest.approx(report.small.accuracy)
    assert loaded.report.to_json() == report.to_json()


def test_reports_of_before_are_read_and_others_are_refused(tmp_path: Path) -> None:
    report = train(Recipe(model="mlp", epochs=1, method="none", width=0.1), tmp_path / "out", Silent())
    path = tmp_path / "out" / "report.json"
    data = json.loads(path.read_text())
    before = {key: value for key, value in data.items() if key not in ("map", "ratios", "baseline")} | {"format": 2}
    path.write_text(json.dumps(before))
    assert (
        niwaki.load_run(tmp_path / "out").report.to_json() == dataclasses.replace(report, map=None, ratios=()).to_json()
    )
    for text, message in (
        (json.dumps(data | {"format": 9}), "has format 9, and this niwaki reads the formats 2 to 3"),
        ("{}", "is not the report of a niwaki run: KeyError: 'format'"),
        ("[", "is not the report of a niwaki run: JSONDecodeError"),
        (
            json.dumps(data | {"recipe": data["recipe"] | {"model": "gone.py:net"}}),
            "of the network 'gone.py:net', which",
        ),
    ):
        path.write_text(text)
        with pytest.raises(FileFormatError, match=message):
            niwaki.load_run(tmp_path / "out")
    with pytest.raises(FileFormatError, match="it has no report.json. Name the directory that `niwaki train --out`"):
        niwaki.load_run(tmp_path / "nowhere")


def test_a_run_takes_images_as_its_training_did(tmp_path: Path) -> None:
    recipe = Recipe(model="mlp", epochs=2, batch_size=256, method="none", width=0.1, image_size="12x10")
    report = train(recipe, tmp_path, Silent())
    network, images = niwaki.load_run(tmp_path), load_images("digits", 0)
    right = (network(images.test_x).argmax(1) == images.test_y).double().mean()
    assert float(right) == pytest.approx(report.small.accuracy) and report.data["shape"] == [1, 12, 10]
    assert torch.equal(network(images.test_x.float()), network(images.test_x))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        near = network.to(dtype)(images.test_x[:8])
        assert near.dtype == dtype and torch.isfinite(near).all()
    zeros = torch.zeros(1, 1, 12, 10, dtype=torch.float64)
    assert niwaki.search_space(network, zeros).num_units
    assert network.to("meta")(zeros.to("meta")).shape == (1, 10)


def test_a_training_that_goes_on_keeps_its_test_images(tmp_path: Path) -> None:
    recipe = Recipe(model="mlp", epochs=1, batch_size=256, method="none", seed=3)
    first = train(recipe, tmp_path / "first", Silent())
    next_one = dataclasses.replace(recipe, seed=4, weights=str(tmp_path / "first"))
    report = train(next_one, tmp_path / "next", Silent())
    assert report.data["test_checksum"] == first.data["test_checksum"] and report.data["split"] == 3
    again = train(dataclasses.replace(recipe, seed=4), tmp_path / "again", Silent())
    assert again.data["test_checksum"] != first.data["test_checksum"] and again.data["split"] == 4


def test_images_that_a_run_was_not_trained_on_are_refused(tmp_path: Path) -> None:
    train(Recipe(model="mlp", epochs=1, batch_size=256, method="none", width=0.1), tmp_path, Silent())
    network = niwaki.load_run(tmp_path)
    for images, message in (
        (torch.rand(2, 1, 8, 8), "The largest pixel is .*, and pixels from 0 to 255 are expected. Multiply"),
        (torch.zeros(2, 1, 16, 16), "The images are 16x16 pixels, and the network was trained on 8x8. Scale them"),
        (torch.zeros(2, 3, 8, 8), "The images have 3 channels, and the network takes 1"),
        (torch.zeros(1, 8, 8), r"The images are of shape \[1, 8, 8\], but must be a tensor \[batch, 1, 8, 8\]"),
        (np.zeros((2, 1, 8, 8)), "The images are a ndarray, but must be a tensor"),
    ):
        with pytest.raises(DataError, match=message):
            network(images)
    with pytest.raises(RunError, match="The device 'warp' cannot be used here"):
        niwaki.load_run(tmp_path, device="warp")
    path = tmp_path / "report.json"
    good = json.loads(path.read_text())
    for part, change in (
        ("data", {"mean": [1.0, 2.0, 3.0]}),
        ("data", {"std": ["a"]}),
        ("data", {"shape": [1, 8]}),
        ("data", {"classes": None}),
        ("recipe", {"width": None}),
        ("recipe", {"model": 3}),
        ("recipe", {"seed": "a"}),
    ):
        path.write_text(json.dumps(good | {part: good[part] | change}))
        with pytest.raises(FileFormatError, match="is not the report of a niwaki run: ValueError: "):
            niwaki.load_run(tmp_path)
    for whole in (good | {"recipe": []}, good | {"data": None}, [], good | {"data": {"mean": [1.0]}}):
        path.write_text(json.dumps(whole))
        with pytest.raises(FileFormatError, match="is not the report of a niwaki run: "):
            niwaki.load_run(tmp_path)


def test_a_baseline_that_is_interrupted_continues(tmp_path: Path) -> None:
    class Stops(Silent):
        def should_stop(self) -> bool:
            return True

    out = tmp_path / "out"
    report = train(Recipe(model="mlp", epochs=2, batch_size=256, periods=2, width=0.1), out, Silent())
    assert report.baseline is None and not baseline_waits(out)
    with pytest.raises(Interrupted):
        add_baseline(report, out, Stops())
    assert baseline_waits(out) and read_report(out).baseline is None
    found = add_baseline(report, out, Silent())
    assert found.baseline is not None and len(found.baseline.history) == 2 and not baseline_waits(out)
    assert read_report(out).to_json() == found.to_json()


def test_without_a_method_nothing_leaves(tmp_path: Path) -> None:
    report = train(Recipe(method="none", keep_macs=None, epochs=1, width=0.5), tmp_path / "out", Silent())
    assert report.small.macs == report.dense.macs
    assert report.small.params == report.dense.params


def test_a_run_repeats_to_the_bit(tmp_path: Path) -> None:
    for name in "ab":
        train(SHORT, tmp_path / name, Silent())
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_network_that_shrinks_on_the_way(tmp_path: Path) -> None:
    """It ends at the plan's costs; a run that is interrupted when it has shrunk goes on to the same bits."""
    shrinking = dataclasses.replace(SHORT, shrink=True)
    report = train(shrinking, tmp_path / "whole", Silent())
    with pytest.raises(Interrupted):
        train(shrinking, tmp_path / "parts", Recorder(stop_at=21))
    saved = read_checkpoint(tmp_path / "parts").state
    assert not saved["optimizer"]["niwaki"]["remains"]["here"].all(), "it has shrunk by then"
    train(shrinking, tmp_path / "parts", Silent(), resume=True)
    for name in ("model.safetensors", "plan.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert report.small.macs == train(SHORT, tmp_path / "dense", Silent()).small.macs


@pytest.mark.parametrize("stop", [1, 5, 11, 13, 21])
def test_an_interrupted_run_resumes_to_the_same_bits(stop: int, tmp_path: Path) -> None:
    train(SHORT, tmp_path / "whole", Silent())
    with pytest.raises(Interrupted, match=f"after step {stop} of 22.*--resume"):
        train(SHORT, tmp_path / "parts", Recorder(stop_at=stop))
    assert [entry.name for entry in (tmp_path / "parts").iterdir()] == [FOLDER]
    recorder = Recorder()
    train(SHORT, tmp_path / "parts", recorder, resume=True)
    assert recorder.steps[0].step == stop + 1
    for name in ("model.safetensors", "plan.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    histories = [json.loads((tmp_path / part / "report.json").read_text())["history"] for part in ("whole", "parts")]
    assert histories[0] == histories[1]


SCRIPT = """
import sys
from pathlib import Path
from niwaki.train.job import train
from niwaki.train.loop import Silent
from niwaki.train.recipe import Recipe
resume = sys.argv[2] == "resume"
train(Recipe(epochs=4, batch_size=128), Path(sys.argv[1]), Silent(), resume=resume, overwrite=not resume,
      checkpoint_every=3, measure_seconds=0.05)
"""


def command(out: Path, resume: bool) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(out), "resume" if resume else "fresh"]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def checkpoints_in(out: Path) -> set[Path]:
    return set((out / FOLDER).glob("step-*"))


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Signal 9 at random moments, again and again, until the run gets through."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, resume=False), env=ENVIRONMENT, check=True, capture_output=True)
    generator = random.Random(os.environ.get("NIWAKI_KILL_SEED", "1"))
    kills = 0
    while not kills or not (killed / "report.json").exists():
        if (killed / "report.json").exists():  # on a busy machine a run may end before it is killed: once more
            shutil.rmtree(killed)
        before = checkpoints_in(killed)
        process = subprocess.Popen(
            command(killed, resume=bool(before)), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while kills < 2 and process.poll() is None and checkpoints_in(killed) <= before:
            time.sleep(0.01)
        if kills < 2:
            time.sleep(generator.random() * 0.3)
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        kills += process.returncode != 0
    for name in ("model.safetensors", "plan.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


def test_resuming_needs_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        train(SHORT, tmp_path / "out", Recorder(stop_at=2))
    import dataclasses

    with pytest.raises(RunError, match="was started with the default lr, not 0.5"):
        train(dataclasses.replace(SHORT, lr=0.5), tmp_path / "out", Silent(), resume=True)
    checkpoint = read_checkpoint(tmp_path / "out")
    run = TrainingRun(SHORT, load_images("digits", 1), CPU)
    with pytest.raises(RunError, match="The data 'digits' have changed since"):
        run.restore(checkpoint)
    wide = TrainingRun(dataclasses.replace(SHORT, width=1.0), load_images("digits", 0), CPU)
    with pytest.raises(RunError, match="has changed since the checkpoint was written: 'stem.weight' was"):
        wide.restore(checkpoint)


def test_a_finished_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(RunError, match="already holds a run.*--overwrite"):
        train(SHORT, tmp_path, Silent())
    with pytest.raises(RunError, match="has finished: there is nothing to resume"):
        train(SHORT, tmp_path, Silent(), resume=True)


def test_a_page_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    out, recipe = tmp_path / "out", Recipe(model="mlp", epochs=1, batch_size=256, method="none", width=0.1)
    monkeypatch.setattr(job, "write_run_page", fail)
    with pytest.raises(OSError, match="No space left"):
        train(recipe, out, Silent())
    assert sorted(entry.name for entry in out.iterdir()) == ["model.safetensors", "plan.json", "report.json"]
    assert niwaki.report(out).name == "report.html"


def test_no_network_stands_under_the_report_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    out, recipe = tmp_path / "out", Recipe(model="mlp", epochs=1, batch_size=256, method="none", width=0.1)
    train(recipe, out, Silent())
    monkeypatch.setattr(job, "write_report", fail)
    with pytest.raises(OSError, match="No space left"):
        train(dataclasses.replace(recipe, seed=1), out, Silent(), overwrite=True)
    with pytest.raises(FileFormatError, match="Name the directory that"):
        niwaki.load_run(out)


def test_a_page_of_ones_own_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(RunError, match=r"already holds a run \(report.html\).*--overwrite"):
        train(SHORT, tmp_path, Silent())
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Bad(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(64, 8), nn.Linear(8, 10)\n"
        "    def forward(self, x):\n        return self.b(torch.relu(self.a(x.flatten(1)))) / 0.0\n"
    )
    with pytest.raises(RunError, match=r"The loss became nan at step 1 \(epoch 1\). Lower the learning rate"):
        train(Recipe(model=f"{tmp_path}/m.py:Bad", epochs=2), tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_fit_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "from torch import nn\n"
        "def wrong_size():\n    return nn.Sequential(nn.Flatten(), nn.Linear(100, 10))\n"
        "def wrong_classes():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
        "class Pair(nn.Module):\n    def forward(self, x):\n        return x, x\n"
    )
    for item, message in {
        "wrong_size": "cannot take images of 1x8x8: mat1 and mat2",
        "wrong_classes": r"scores of shape \[2, 7\] for 2 images of 1x8x8, but the data have 10 classes",
        "Pair": "returns a tuple; it must return scores",
    }.items():
        with pytest.raises(RunError, match=message):
            train(Recipe(model=f"{tmp_path}/m.py:{item}"), tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()


def test_an_unknown_device_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="The device 'warp' cannot be used here"):
        train(SHORT, tmp_path / "out", Silent(), device="warp")
