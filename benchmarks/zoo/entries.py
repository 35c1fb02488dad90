"""A model of a zoo: how it is built and called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Entry:
    """``build`` returns the model with random weights and its example inputs. ``large``: with caps of its own, one plan
    only, and compared with the model itself for the zeroed network, since two of it in float64 are too much."""

    zoo: str
    name: str
    kind: str
    build: Callable[[], tuple[torch.nn.Module, Any]]
    large: bool = False


def generator(seed: int = 1) -> torch.Generator:
    """For inputs that are the same in every run."""
    return torch.Generator().manual_seed(seed)


def image(*shape: int) -> torch.Tensor:
    """Random pixels."""
    return torch.randn(shape, generator=generator())
