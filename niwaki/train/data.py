"""Labelled images: the embedded digits, ``.npz`` archives, and folders with one sub-folder per class."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from niwaki.errors import DataError
from niwaki.networks.scaling import scaled
from niwaki.train.folders import read_folder

_PAIRS = (
    ("x_train", "y_train"),
    ("train_images", "train_labels"),
    ("images", "labels"),
    ("x", "y"),
    ("data", "labels"),
)
_TEST_PAIRS = (("x_test", "y_test"), ("test_images", "test_labels"))
_TEST_SHARE = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Labelled images, split for training and testing.

    ``train_x`` and ``test_x`` are uint8 [N, C, H, W], ``train_y`` and ``test_y`` int64 [N] in ``range(classes)``.
    ``labels``: the names of the classes, where they are known.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    labels: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Colour channels C of every image."""
        return self.train_x.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image in pixels."""
        return self.train_x.shape[2], self.train_x.shape[3]

    @property
    def fingerprint(self) -> str:
        """A short checksum of all images and labels, by which a resumed run checks that its data are the same."""
        check = 0
        for tensor in (self.train_x, self.train_y, self.test_x, self.test_y):
            check = zlib.crc32(tensor.contiguous().numpy().tobytes(), check)
        return f"{check:08x}"

    @property
    def test_checksum(self) -> str:
        """A short checksum of the test images and labels; that of grey ones is the same in three channels."""
        check = zlib.crc32(self.test_x[:, 0].contiguous().numpy().tobytes())
        return f"{zlib.crc32(self.test_y.contiguous().numpy().tobytes(), check):08x}"

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C] of the training pixels, in 0 to 255."""
        pixels = self.train_x[:10_000].to(torch.float64)
        return pixels.mean((0, 2, 3)).float(), pixels.std((0, 2, 3)).clamp_min(1).float()

    def with_channels(self, channels: int) -> Images:
        """Grey images repeated to ``channels`` channels; others as they are."""
        if self.channels == channels or self.channels != 1:
            return self
        return replace(
            self,
            train_x=self.train_x.expand(-1, channels, -1, -1).contiguous(),
            test_x=self.test_x.expand(-1, channels, -1, -1).contiguous(),
        )

    def held_out(self, every: int) -> tuple[Images, Images]:
        """The same without every such training image, and with these alone. Sorted classes lose equally many."""
        apart = torch.arange(len(self.train_y)) % every == every - 1
        parts = (replace(self, train_x=self.train_x[which], train_y=self.train_y[which]) for which in (~apart, apart))
        return next(parts), next(parts)

    def resized(self, size: tuple[int, int]) -> Images:
        """The same scaled to cover ``size``, and cropped to it in the middle."""
        return replace(self, train_x=scaled(self.train_x, size), test_x=scaled(self.test_x, size))

    def first(self, train_limit: int) -> Images:
        """The same test images with only the first ``train_limit`` training images."""
        return replace(self, train_x=self.train_x[:train_limit], train_y=self.train_y[:train_limit])


def load_images(source: str, seed: int, size: tuple[int, int] | None = None) -> Images:
    """Read labelled images.

    Args:
        source: ``digits``, a path of an ``.npz`` archive, or a folder with one sub-folder of images per class.
        seed: seed of the stratified test split, if the source has no split.
        size: height and width that all images are scaled and cropped to; None leaves them as they are.

    Raises:
        DataError: the source does not exist, cannot be read, or does not hold labelled images of one size.
    """
    path = Path(source)
    if source == "digits":
        return _digits(seed) if size is None else _digits(seed).resized(size)
    if path.is_dir():
        return _folder(path, seed, size)
    if not path.is_file():
        raise DataError(
            f"There is no data at {source!r}. Give 'digits', an .npz file, or a folder with one sub-folder per class."
        )
    return _npz(path, seed) if size is None else _npz(path, seed).resized(size)


def _digits(seed: int) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as cause:
        raise DataError("The embedded digits come with scikit-learn: pip install scikit-learn.") from cause
    images, labels = load_digits(return_X_y=True)
    # 1,797 real hand-written digits of 8x8 pixels with 17 shades.
    return _split("digits", (images.reshape(-1, 1, 8, 8) * 15).astype(np.uint8), labels, seed)


def _npz(path: Path, seed: int) -> Images:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays: dict[str, NDArray[np.generic]] = dict(archive)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as cause:
        raise DataError(f"{str(path)!r} cannot be read as an .npz archive: {cause}.") from cause
    if {"d", "y"} <= set(arrays):
        images = _channels_first(_from_differences(arrays["d"], path), path)
        labels = _labels(arrays["y"], len(images), path)
    else:
        pixels, numbers = _pair(arrays, _PAIRS, path)
        images = _channels_first(pixels, path)
        labels = _labels(numbers, len(images), path)
    if not any(image in arrays for image, _ in _TEST_PAIRS):
        return _split(path.stem, images, labels, seed)
    test_pixels, test_labels = _pair(arrays, _TEST_PAIRS, path)
    test_images = _channels_first(test_pixels, path)
    if test_images.shape[1:] != images.shape[1:]:
        raise DataError(
            f"In {str(path)!r} the training images are {_shape(images)}, but the test images {_shape(test_images)}."
        )
    return _images(path.stem, images, labels, test_images, _labels(test_labels, len(test_images), path))


def _pair(
    arrays: Mapping[str, NDArray[np.generic]], names: tuple[tuple[str, str], ...], path: Path
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """The first pair of arrays (images, labels) that the archive has."""
    for image, label in names:
        if image in arrays and label in arrays:
            return arrays[image], arrays[label]
    raise DataError(
        f"{str(path)!r} holds the arrays {', '.join(sorted(arrays)) or '(none)'}, but images and labels are expected "
        f"as {' or '.join(f'{image} and {label}' for image, label in names)}."
    )


def _from_differences(differences: NDArray[np.generic], path: Path) -> NDArray[np.uint8]:
    """Images [N, H, W, 3] from compressible differences [3, N, H, W]: green, red less green, blue less green."""
    if differences.dtype != np.uint8 or differences.ndim != 4 or len(differences) != 3:
        raise DataError(f"In {str(path)!r} the array d must be uint8 of shape [3, N, H, W].")
    planes = np.cumsum(np.cumsum(differences, 2, dtype=np.uint8), 3, dtype=np.uint8)
    return np.stack([planes[1] + planes[0], planes[0], planes[2] + planes[0]], -1)


def _channels_first(pixels: NDArray[np.generic], path: Path) -> NDArray[np.uint8]:
    """Images [N, C, H, W] from uint8 [N, H, W] or [N, H, W, C]."""
    if pixels.dtype != np.uint8:
        raise DataError(f"The images in {str(path)!r} have the type {pixels.dtype}; they must be uint8, 0 to 255.")
    images = pixels.astype(np.uint8, copy=False)
    if images.ndim == 3 and images.size:
        return images[:, None]
    if images.ndim == 4 and images.size and images.shape[3] in (1, 3, 4):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise DataError(
        f"The images in {str(path)!r} have the shape {list(images.shape)}; it must be [N, H, W] or [N, H, W, C] with "
        "1, 3 or 4 channels, and not be empty."
    )


def _labels(labels: NDArray[np.generic], images: int, path: Path) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2) or labels.size != images:
        raise DataError(
            f"The labels in {str(path)!r} are {labels.dtype} of shape {list(labels.shape)}; they must be whole "
            f"numbers, one for each of the {images} images."
        )
    return labels.reshape(-1).astype(np.int64)


def _folder(path: Path, seed: int, size: tuple[int, int] | None) -> Images:
    found = read_folder(path, size)
    train, test = found.train, found.test
    pixels = _channels_first(train.pixels, path)
    if test is None:
        return replace(_split(path.name, pixels, train.labels, seed), labels=found.names)
    images = _images(path.name, pixels, train.labels, _channels_first(test.pixels, path), test.labels)
    return replace(images, labels=found.names, classes=len(found.names))


def _split(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int) -> Images:
    """A stratified split: the same fraction of every class is used for testing."""
    generator = np.random.default_rng(seed)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        test[members[: round(_TEST_SHARE * len(members))]] = True
    return _images(name, images[~test], labels[~test], images[test], labels[test])


def _images(
    name: str,
    train_x: NDArray[np.uint8],
    train_y: NDArray[np.int64],
    test_x: NDArray[np.uint8],
    test_y: NDArray[np.int64],
) -> Images:
    labels = np.concatenate([train_y, test_y])
    if len(train_y) < 2 or len(test_y) < 1:
        raise DataError(f"{name!r} has {len(train_y)} training and {len(test_y)} test images: too few to train on.")
    if labels.min() < 0:
        raise DataError(f"{name!r} has the label {labels.min()}; labels must count from 0.")
    return Images(
        name,
        torch.from_numpy(np.ascontiguousarray(train_x)),
        torch.from_numpy(train_y.astype(np.int64)),
        torch.from_numpy(np.ascontiguousarray(test_x)),
        torch.from_numpy(test_y.astype(np.int64)),
        int(labels.max()) + 1,
    )


def _shape(images: NDArray[np.uint8]) -> str:
    return "x".join(map(str, images.shape[1:]))
