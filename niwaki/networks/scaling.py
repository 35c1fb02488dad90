"""Scale images to one size: in training, and wherever the trained network is used."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def scaled(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [N, C, H, W] of pixels in 0 to 255, scaled to cover ``size`` and cropped to it in the middle: uint8.
    Those of that size are returned as they are.

    >>> scaled(torch.full((1, 3, 4, 8), 7, dtype=torch.uint8), (2, 2)).tolist()[0][0]
    [[7, 7], [7, 7]]
    """
    if tuple(images.shape[2:]) == size:
        return images
    factor = max(wanted / here for wanted, here in zip(size, images.shape[2:], strict=True))
    whole = [max(wanted, round(factor * here)) for wanted, here in zip(size, images.shape[2:], strict=True)]
    made = F.interpolate(images.float(), size=whole, mode="bilinear", antialias=True)
    top, left = ((here - wanted) // 2 for wanted, here in zip(size, whole, strict=True))
    part = made[:, :, top : top + size[0], left : left + size[1]]
    return part.round().clamp(0, 255).to(torch.uint8).contiguous()
