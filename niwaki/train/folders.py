"""Folders of image files: one sub-folder for each class, in one tree or in one for training and one for testing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from niwaki.core.describe import counted
from niwaki.errors import DataError
from niwaki.networks.scaling import scaled

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
_GREY = ("1", "L")
_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")  # the first that is there

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Images ``pixels`` [N, H, W] or [N, H, W, 3], and the numbers of their classes ``labels`` [N]."""

    pixels: Pixels
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class FoundImages:
    """The images of a folder; ``test`` where it has a part of its own for testing. ``names``: of the classes."""

    train: Labelled
    test: Labelled | None
    names: tuple[str, ...]


def read_folder(path: Path, size: tuple[int, int] | None = None) -> FoundImages:
    """The images below ``path``: ``path/CLASS/FILE``, or ``path/train/CLASS/FILE`` beside one of ``test`` and ``val``.

    Colour images make all images colour images. ``size``: height and width that all are scaled to cover, and cropped
    to in the middle; without it they must have one size.

    Raises:
        DataError: there are no two classes of images, a file cannot be read, or the sizes differ.
    """
    train, test = _parts(path)
    names = _folders(train)
    files = [_files(train, names)] + ([] if test is None else [_files(test, _known(test, train, names))])
    if len(names) < 2 or not files[0]:
        raise DataError(
            f"{str(train)!r} has {counted(len(names), 'sub-folder')} with {counted(len(files[0]), 'image')}. It must "
            "hold one sub-folder of images for each of at least two classes; train/ and val/ (or test/) may hold them "
            "instead."
        )
    if test is not None and not files[1]:
        raise DataError(
            f"{str(test)!r} has no images in sub-folders of classes, and it is where the images for testing are looked "
            "for. Put some there, or remove it and train/ around the classes, so that a part is held back for testing."
        )
    numbers = {name: number for number, name in enumerate(names)}
    parts = [[(file, numbers[name]) for file, name in found] for found in files]
    pictures = [[_read(file, size) for file, _ in part] for part in parts]
    made = [
        Labelled(pixels, np.array([label for _, label in part], dtype=np.int64))
        for pixels, part in zip(_stacked(parts, pictures), parts, strict=True)
    ]
    return FoundImages(made[0], made[1] if test is not None else None, tuple(names))


def _parts(path: Path) -> tuple[Path, Path | None]:
    """Where the training images are, and where those for testing, if they are apart."""
    there = {name.lower(): name for name in _folders(path)}
    train = next((there[name] for name in _TRAIN if name in there), None)
    test = next((there[name] for name in _TEST if name in there), None)
    return (path, None) if train is None or test is None else (path / train, path / test)


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _known(test: Path, train: Path, names: Sequence[str]) -> list[str]:
    """The classes of the images for testing, which must be those of the training."""
    found = _folders(test)
    odd = sorted(set(found) - set(names))
    if odd:
        raise DataError(
            f"{str(test)!r} has a class {odd[0]!r}, which {str(train)!r} does not have. Both must have the "
            "same classes."
        )
    return found


def _files(path: Path, names: Sequence[str]) -> list[tuple[Path, str]]:
    return [
        (file, name) for name in names for file in sorted((path / name).iterdir()) if file.suffix.lower() in _PICTURES
    ]


def _read(file: Path, size: tuple[int, int] | None) -> Pixels:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as cause:
        raise DataError("Reading image files needs pillow: pip install pillow.") from cause
    try:
        with Image.open(file) as picture:
            upright: Any = ImageOps.exif_transpose(picture)
            upright = upright.convert("L" if upright.mode in _GREY else "RGB")
            pixels = np.array(upright, dtype=np.uint8)
    except (UnidentifiedImageError, OSError, ValueError) as cause:
        raise DataError(f"{str(file)!r} cannot be read as an image: {cause}.") from cause
    return pixels if size is None else _scaled(pixels, size)


def _scaled(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    image = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)
    made: Pixels = scaled(image[None], size)[0].permute(1, 2, 0).numpy()
    return made if pixels.ndim == 3 else made[..., 0]


def _stacked(parts: list[list[tuple[Path, int]]], pictures: list[list[Pixels]]) -> list[Pixels]:
    """The pictures of each part as one array, with as many channels in all of them."""
    files = [file for part in parts for file, _ in part]
    every = list(zip(files, [one for ones in pictures for one in ones], strict=True))
    first = every[0][1].shape[:2]
    other = next(((file, one) for file, one in every if one.shape[:2] != first), None)
    if other is not None:
        smallest = min(min(one.shape[:2]) for _, one in every)
        raise DataError(
            f"The images have several sizes: {str(every[0][0])!r} is {first[0]}x{first[1]} and {str(other[0])!r} is "
            f"{other[1].shape[0]}x{other[1].shape[1]}. Scale and crop them all, for example with "
            f"--image-size {smallest}."
        )
    coloured = any(one.ndim == 3 for _, one in every)
    return [
        np.stack([np.repeat(one[..., None], 3, -1) if coloured and one.ndim == 2 else one for one in ones])
        for ones in pictures
    ]
