"""The networks of the tasks, beside those that niwaki has built in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.networks.small import ResidualBlock


class CifarResNet(nn.Module):
    """He et al.'s ResNet for small images: 6 * ``blocks`` + 2 layers; shortcuts that change the width project."""

    def __init__(self, classes: int, channels: int, blocks: int, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        stages: list[nn.Module] = []
        before = widths[0]
        for stage, wide in enumerate(widths):
            for block in range(blocks):
                stages.append(ResidualBlock(before, wide, 2 if stage and block == 0 else 1))
                before = wide
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, channels, H, W]."""
        y = self.stages(torch.relu(self.norm(self.stem(x))))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """A small pre-norm ViT with a mean over its tokens: patches of 2 x 2, ``heads`` of the size width / heads."""

    def __init__(
        self, classes: int, channels: int, side: int, width: int = 48, layers: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 2, stride=2)
        self.places = nn.Parameter(torch.randn(1, (side // 2) ** 2, width) * 0.02)
        self.layers = nn.Sequential(*(TransformerBlock(width, heads, 4 * width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, channels, side, side]."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.layers(tokens)).mean(1))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Self-attention and a hidden layer, each behind a LayerNorm and beside a residual."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.hidden, self.back = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (one(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for one in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.back(nn.functional.gelu(self.hidden(self.norm2(x))))  # type: ignore[no-any-return]


def llama(**settings: Any) -> nn.Module:
    """A Llama of transformers with fresh weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**settings, use_cache=False))


def pretrained(folder: Path) -> nn.Module:
    """A Llama with its weights."""
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, use_cache=False)  # type: ignore[no-any-return]
