"""Batches of images as tensors on a device: shuffled, shifted and normalised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.train.data import Images


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """Training images. Their order and shifts depend on ``seed`` and the epoch alone, so that a resumed run sees the
    same batches as an uninterrupted one."""

    images: Images
    batch_size: int
    seed: int
    shift: int
    device: torch.device

    @property
    def per_epoch(self) -> int:
        """Steps per epoch. A last batch of a single image is dropped: BatchNorm cannot train on one image."""
        count = len(self.images.train_y)
        return count // self.batch_size + (count % self.batch_size > 1)

    def epoch(self, number: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images [B, C, H, W] and labels [B] of an epoch (from 0), without the first ``skip`` batches."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        count = len(self.images.train_y)
        order = torch.randperm(count, generator=generator)
        offsets = torch.randint(0, 2 * self.shift + 1, (count, 2), generator=generator)
        mean, std = self.images.statistics()
        for step in range(skip, self.per_epoch):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            x = shifted(self.images.train_x[rows], offsets[rows], self.shift)
            yield normalised(x, mean, std, self.device), self.images.train_y[rows].to(self.device)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised test images [B, C, H, W] and labels [B], in order."""
        mean, std = self.images.statistics()
        for start in range(0, len(self.images.test_y), 256):
            x = self.images.test_x[start : start + 256]
            y = self.images.test_y[start : start + 256]
            yield normalised(x, mean, std, self.device), y.to(self.device)

    def example(self, count: int = 1) -> Tensor:
        """The first ``count`` test images, normalised, [count, C, H, W]."""
        mean, std = self.images.statistics()
        return normalised(self.images.test_x[:count], mean, std, self.device)


@dataclass(frozen=True, slots=True, eq=False)
class InOrder:
    """The training images of ``images`` in their order, neither shuffled nor shifted, as often as they are iterated;
    normalised as those of ``training`` are."""

    images: Images
    training: Batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, C, H, W] and labels [B]."""
        mean, std = self.training.images.statistics()
        size, device = self.training.batch_size, self.training.device
        for start in range(0, len(self.images.train_y), size):
            x, y = (whole[start : start + size] for whole in (self.images.train_x, self.images.train_y))
            yield normalised(x, mean, std, device), y.to(device)


def normalised(x: Tensor, mean: Tensor, std: Tensor, device: torch.device) -> Tensor:
    """Float images from uint8 [B, C, H, W] with the channel statistics [C] of the training set."""
    x = x.to(device, torch.float32)
    return (x - mean.to(device)[:, None, None]) / std.to(device)[:, None, None]


def shifted(x: Tensor, offsets: Tensor, shift: int) -> Tensor:
    """Each image of ``x`` [B, C, H, W] moved by ``offsets`` [B, 2] - ``shift`` pixels, filled with black."""
    if shift == 0:
        return x
    height, width = x.shape[2:]
    padded = torch.nn.functional.pad(x, (shift,) * 4)
    rows = offsets[:, 0, None] + torch.arange(height, device=x.device)
    columns = offsets[:, 1, None] + torch.arange(width, device=x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    moved = padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    # Not `contiguous()`: it leaves images of one channel with the strides of channels-last ones, and with those the
    # backward pass of torch 2.13's convolutions on the CPU writes past its buffers for some numbers of channels.
    return moved.clone(memory_format=torch.contiguous_format)
