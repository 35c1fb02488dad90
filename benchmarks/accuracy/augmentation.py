"""Augmentations of a whole epoch of images at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """Epoch ``number`` (from 0) of a run with ``seed``: ``rows`` [N] are the training images in their order, ``batch``
    images to a batch, ``generator`` (of the CPU) what this epoch draws from."""

    seed: int
    number: int
    rows: Tensor
    batch: int
    generator: torch.Generator


class Augmentation(Protocol):
    """Images ``x`` [N, C, H, W], any type, in the order of the epoch -> the same number of images of the same size."""

    def __call__(self, x: Tensor, epoch: Epoch) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Flip:
    """Half of the images are mirrored, drawn anew in every epoch."""

    def __call__(self, x: Tensor, epoch: Epoch) -> Tensor:
        return _mirrored(x, torch.rand(len(x), generator=epoch.generator) < 0.5)


@dataclass(frozen=True, slots=True)
class AlternatingFlip:
    """Half of the images are mirrored in the first epoch, the others in the second, and so on."""

    def __call__(self, x: Tensor, epoch: Epoch) -> Tensor:
        first = torch.rand(len(x), generator=torch.Generator().manual_seed(epoch.seed)) < 0.5
        return _mirrored(x, first[epoch.rows.cpu()] ^ (epoch.number % 2 == 1))


@dataclass(frozen=True, slots=True)
class Shift:
    """Each image is moved by up to ``pixels`` in each direction, filled with black."""

    pixels: int

    def __call__(self, x: Tensor, epoch: Epoch) -> Tensor:
        height, width = x.shape[2:]
        padded = pad(x, (self.pixels,) * 4)
        side = 2 * self.pixels + 1
        places = torch.randint(side * side, (len(x),), generator=epoch.generator).to(x.device)
        out = torch.empty_like(x)
        for place in range(side * side):
            top, left = divmod(place, side)
            rows = (places == place).nonzero()[:, 0]
            out[rows] = padded[:, :, top : top + height, left : left + width][rows]
        return out


@dataclass(frozen=True, slots=True)
class BatchShift:
    """All images of a batch are moved alike, by up to ``pixels`` in each direction, filled with their reflection."""

    pixels: int

    def __call__(self, x: Tensor, epoch: Epoch) -> Tensor:
        height, width = x.shape[2:]
        out = torch.empty_like(x)
        for start in range(0, len(x), epoch.batch):
            part = slice(start, start + epoch.batch)
            top, left = torch.randint(2 * self.pixels + 1, (2,), generator=epoch.generator).tolist()
            # Reflection is defined for floats only, and whole numbers up to 255 are exact in them.
            padded = pad(x[part].float(), (self.pixels,) * 4, mode="reflect")
            out[part] = padded[:, :, top : top + height, left : left + width].to(x.dtype)
        return out


def _mirrored(x: Tensor, which: Tensor) -> Tensor:
    return torch.where(which.to(x.device)[:, None, None, None], x.flip(3), x)
