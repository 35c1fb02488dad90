"""A residual super-network: every convolution is several of different kernel sizes, side by side and added up."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ParallelConvolutions(nn.Module):
    """Convolutions of one input with kernels of different sizes, each with its BatchNorm, added up."""

    def __init__(self, channels_in: int, channels: int, stride: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(channels),
            )
            for kernel in kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, channels, H / stride, W / stride]."""
        first, *others = self.branches
        total: Tensor = first(x)
        for branch in others:
            total = total + branch(x)
        return total


class SuperBlock(nn.Module):
    """Two layers of parallel convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        self.first = ParallelConvolutions(channels_in, channels, stride, kernels)
        self.second = ParallelConvolutions(channels, channels, 1, kernels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, channels, H / stride, W / stride]."""
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(y + self.shortcut(x))


class SuperResNet(nn.Module):
    """Which kernels, and how many blocks? A residual network that has all of them, to erase from.

    The super-network of the OTOv3 paper (arXiv 2312.09411) in plain form: wherever a residual network has a
    convolution, this one has one of each kernel size.

    Args:
        classes: of the images.
        channels: of the images.
        widths: channels of each stage; each stage after the first halves the resolution.
        depths: blocks of each stage.
        kernels: sizes of the parallel convolutions, odd.
        stride: of the stem.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        kernels: tuple[int, ...] = (3, 5, 7),
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, stride, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        before = (widths[0], *widths[:-1])
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    SuperBlock(before[stage], width, 2 if stage else 1, kernels),
                    *(SuperBlock(width, width, 1, kernels) for _ in range(depth - 1)),
                )
                for stage, (width, depth) in enumerate(zip(widths, depths, strict=True))
            )
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, channels, H, W]."""
        y = self.stages(self.stem(x))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]
