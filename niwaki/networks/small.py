"""A residual network and a perceptron for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, channels, H / stride, W / stride]."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A small residual CNN: a stem, then one stage per width, each after the first at half the resolution.

    Images larger than 16 pixels are halved by the stem.
    """

    def __init__(
        self, classes: int, channels: int, size: tuple[int, int], widths: tuple[int, ...], blocks: int = 2
    ) -> None:
        super().__init__()
        stride = 2 if min(size) > 16 else 1
        self.stem = nn.Conv2d(channels, widths[0], 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        before = (widths[0], *widths[:-1])
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    ResidualBlock(before[stage], width, 2 if stage else 1),
                    *(ResidualBlock(width, width, 1) for _ in range(blocks - 1)),
                )
                for stage, width in enumerate(widths)
            )
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, channels, H, W]."""
        y = self.stages(torch.relu(self.norm(self.stem(x))))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


class Perceptron(nn.Module):
    """Two hidden layers on the pixels."""

    def __init__(self, classes: int, channels: int, size: tuple[int, int], widths: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (channels * size[0] * size[1], *widths)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip(sizes, widths, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, channels, H, W]."""
        return self.layers(x)  # type: ignore[no-any-return]
