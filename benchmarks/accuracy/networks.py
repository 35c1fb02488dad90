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
