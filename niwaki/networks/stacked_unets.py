"""Stacked U-Nets: skips that are added in one and concatenated in the next, two ways down and two ways up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def convolution(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )


class Down(nn.Module):
    """Half the resolution, in two ways that are added up: a maximum and a 1x1 convolution; a convolution in steps."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.pooled = nn.Sequential(
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(channels_in, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.strided = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, 2, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H / 2, W / 2], rounded up."""
        return torch.relu(self.pooled(x) + self.strided(x))


class Up(nn.Module):
    """The resolution of ``beside``, in two ways that are added up: interpolation and a 1x1 convolution; a transposed
    convolution."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.interpolated = nn.Sequential(nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.transposed = nn.ConvTranspose2d(channels_in, channels, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        """[B, channels, H, W] of ``beside``."""
        height, width = beside.shape[2:]
        interpolated = F.interpolate(self.interpolated(x), size=(height, width), mode="bilinear")
        transposed = self.norm(self.transposed(x)[:, :, :height, :width])
        return torch.relu(interpolated + transposed)


class UNet(nn.Module):
    """Down through ``widths`` and up again, with a skip at every resolution, added or concatenated."""

    def __init__(self, widths: tuple[int, ...], concatenate: bool) -> None:
        super().__init__()
        pairs = list(zip(widths, widths[1:], strict=False))
        self.concatenate = concatenate
        self.downs = nn.ModuleList(Down(wide, narrow) for wide, narrow in pairs)
        self.middle = convolution(widths[-1], widths[-1])
        self.skips = nn.ModuleList(convolution(wide, wide) for wide, _ in pairs)
        self.ups = nn.ModuleList(Up(narrow, wide) for wide, narrow in pairs)
        self.merges = nn.ModuleList(convolution((1 + concatenate) * wide, wide) for wide, _ in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, widths[0], H, W], as the input."""
        levels = [x]
        for down in self.downs:
            levels.append(down(levels[-1]))
        y: Tensor = self.middle(levels.pop())
        for skip, up, merge in reversed(list(zip(self.skips, self.ups, self.merges, strict=True))):
            beside = levels.pop()
            y, beside = up(y, beside), skip(beside)
            y = merge(torch.cat([beside, y], 1) if self.concatenate else beside + y)
        return y


class StackedUnets(nn.Module):
    """U-Nets in a row, each added to its input, with a classifier at the end: paths of many lengths to erase from.

    After the super-network of that name in the OTOv3 paper (arXiv 2312.09411). Sides of any size that is at least
    2 ** (len(widths) - 1) pixels.

    Args:
        classes: of the images.
        channels: of the images.
        widths: channels at each resolution, each half of the one before.
        concatenate: for each U-Net, whether its skips are concatenated or added.
    """

    def __init__(
        self, classes: int, channels: int, widths: tuple[int, ...], concatenate: tuple[bool, ...] = (False, True)
    ) -> None:
        super().__init__()
        self.stem = convolution(channels, widths[0])
        self.unets = nn.ModuleList(UNet(widths, one) for one in concatenate)
        self.head = nn.Linear(widths[0], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, channels, H, W]."""
        x = self.stem(x)
        for unet in self.unets:
            x = x + unet(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]
