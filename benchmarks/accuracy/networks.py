"""The networks of the tasks, beside those that niwaki has built in. ``width`` multiplies every width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.train.networks import Block


class CifarResNet(nn.Module):
    """He et al.'s ResNet for images of 32x32: 6 * ``blocks`` + 2 layers; shortcuts that change the width project."""

    def __init__(self, classes: int, channels: int, width: float, blocks: int) -> None:
        super().__init__()
        widths = [max(1, round(base * width)) for base in (16, 32, 64)]
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        stages: list[nn.Module] = []
        before = widths[0]
        for stage, wide in enumerate(widths):
            for block in range(blocks):
                stages.append(Block(before, wide, 2 if stage and block == 0 else 1))
                before = wide
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stages(torch.relu(self.norm(self.stem(x))))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention of ``heads`` heads, each ``size`` wide."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.query = nn.Linear(width, heads * size)
        self.key = nn.Linear(width, heads * size)
        self.value = nn.Linear(width, heads * size)
        self.out = nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        split = [
            layer(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        y = nn.functional.scaled_dot_product_attention(*split)
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """A transformer layer with the norms before its two branches."""

    def __init__(self, width: int, heads: int, size: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, size)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Patches of 2x2 pixels, ``depth`` layers, the mean over all patches."""

    def __init__(self, classes: int, channels: int, size: tuple[int, int], width: float, depth: int = 3) -> None:
        super().__init__()
        wide, heads, hidden = (max(1, round(base * width)) for base in (48, 6, 192))
        self.patches = nn.Conv2d(channels, wide, 2, 2)
        self.places = nn.Parameter(0.02 * torch.randn(1, (size[0] // 2) * (size[1] // 2), wide))
        self.layers = nn.Sequential(*(Layer(wide, heads, 8, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(wide)
        self.head = nn.Linear(wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.layers(y)).mean(1))  # type: ignore[no-any-return]


class RowReader(nn.Module):
    """A GRU of two layers that reads images row by row."""

    def __init__(self, classes: int, channels: int, size: tuple[int, int], width: float) -> None:
        super().__init__()
        hidden = max(1, round(64 * width))
        self.rnn = nn.GRU(channels * size[1], hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x.transpose(1, 2).flatten(2))
        return self.head(y[:, -1])  # type: ignore[no-any-return]


def llama(width: float, **settings: Any) -> nn.Module:
    """A Llama of transformers with fresh weights: hidden and intermediate size and heads times ``width``; the hidden
    size is a multiple of the heads, as transformers asks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    groups = settings["num_attention_heads"] // settings["num_key_value_heads"]
    kv = max(1, round(settings["num_key_value_heads"] * width))
    heads = kv * groups
    sizes = {
        "hidden_size": heads * max(1, int(settings["hidden_size"] * width) // heads),
        "intermediate_size": max(2, round(settings["intermediate_size"] * width)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | sizes), use_cache=False))


def pretrained(folder: Path) -> nn.Module:
    """A Llama with its weights."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, use_cache=False)  # type: ignore[no-any-return]
