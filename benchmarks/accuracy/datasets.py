"""Labelled images in three parts: to train on, held out of the training images for choices, and to test on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from niwaki.train.data import load_images

Part = tuple[Tensor, Tensor]  # images uint8 [N, C, H, W] and labels int64 [N]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """``mean`` and ``std`` [C] normalise images of 0 to 255."""

    train: Part
    held_out: Part
    test: Part
    mean: Tensor
    std: Tensor

    def first(self, train: int, other: int) -> Dataset:
        """So many images of each part at most."""
        parts = [(x[:size], y[:size]) for (x, y), size in zip(self._parts, (train, other, other), strict=True)]
        return Dataset(*parts, self.mean, self.std)

    def with_held_out(self) -> Dataset:
        """The images that are held out are trained on as well, at the end."""
        x, y = (torch.cat(both) for both in zip(self.train, self.held_out, strict=True))
        return Dataset((x, y), self.held_out, self.test, self.mean, self.std)

    def __str__(self) -> str:
        return " + ".join(f"{len(y)}" for _, y in self._parts) + " images"

    @property
    def _parts(self) -> tuple[Part, Part, Part]:
        return self.train, self.held_out, self.test


def _split(train: Part, held_out: int, test: Part, mean: Tensor, std: Tensor) -> Dataset:
    """The last ``held_out`` training images are held out."""
    x, y = train
    border = len(y) - held_out
    return Dataset((x[:border], y[:border]), (x[border:], y[border:]), test, mean, std)


def digits(seed: int) -> Dataset:
    """Scikit-learn's 1,797 digits, split by ``seed``; a tenth of the training images is held out."""
    images = load_images("digits", seed)
    train = images.train_x, images.train_y
    return _split(train, len(images.train_y) // 10, (images.test_x, images.test_y), *images.statistics())


@lru_cache(maxsize=1)
def fashion(path: Path) -> Dataset:
    """Fashion-MNIST: 55,000 images to train on, the last 5,000 of the training set held out, the official 10,000."""
    images = load_images(str(path), 0)
    mean, std = torch.tensor([0.286]), torch.tensor([0.353])
    return _split((images.train_x, images.train_y), 5000, (images.test_x, images.test_y), 255 * mean, 255 * std)


@lru_cache(maxsize=1)
def cifar10(folder: Path) -> Dataset:
    """CIFAR-10 from ``cifar10_train_1.npz`` to ``5``: batches 1 to 4 to train on, the last 4,000 of batch 4 held out,
    batch 5 for tests. The official test images are not among them, so results compare with one another and not with
    published ones."""
    parts = [_batch(folder / f"cifar10_train_{number}.npz") for number in range(1, 6)]
    train = torch.cat([x for x, _ in parts[:4]]), torch.cat([y for _, y in parts[:4]])
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    return _split(train, 4000, parts[4], 255 * mean, 255 * std)


def _batch(path: Path) -> Part:
    """An official batch in its order, from compressible differences ``d`` [3, N, H, W] (green, red less green, blue
    less green) and labels ``y``."""
    with np.load(path) as archive:
        planes = np.cumsum(np.cumsum(archive["d"], 2, dtype=np.uint8), 3, dtype=np.uint8)
        labels = archive["y"].astype(np.int64)
    colours = np.stack([planes[1] + planes[0], planes[0], planes[2] + planes[0]], 1)
    return torch.from_numpy(colours), torch.from_numpy(labels)
