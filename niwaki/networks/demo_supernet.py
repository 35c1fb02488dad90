"""A small super-network in which everything that can be erased occurs once."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DemoSupNet(nn.Module):
    """Branches of different lengths, an optional residual block, and two paths that are concatenated.

    The kind of small network by which the OTOv3 paper (arXiv 2312.09411) explains erasing: a stem; two parallel
    convolutions and a chain of two, added; a residual block; two concatenated paths; a classifier.

    Args:
        classes: of the images.
        channels: of the images.
        width: channels of all feature maps.
        stride: of the stem.
    """

    def __init__(self, classes: int, channels: int, width: int = 16, stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.narrow = nn.Conv2d(width, width, 1)
        self.wide = nn.Conv2d(width, width, 3, padding=1)
        self.chain = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1)
        )
        self.norm = nn.BatchNorm2d(width)
        self.residual = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.left = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.right = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(width, width, 1), nn.ReLU())
        self.last = nn.Conv2d(2 * width, width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, channels, H, W]."""
        x = self.stem(x)
        y = self.narrow(x) + self.wide(x)
        y = torch.relu(self.norm(y + self.chain(x)))
        z = self.residual(y)
        z += y
        y = torch.relu(self.last(torch.cat([self.left(z), self.right(z)], 1)))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]
