"""A model of a zoo: how it is built and called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Entry:
    """``build`` returns the model with random weights and its example inputs. ``gigabytes``: a memory cap of its own,
    for models that do not fit under the general one twice in float64."""

    zoo: str
    name: str
    kind: str
    build: Callable[[], tuple[torch.nn.Module, Any]]
    gigabytes: float | None = None


def generator(seed: int = 1) -> torch.Generator:
    """For inputs that are the same in every run."""
    return torch.Generator().manual_seed(seed)


def image(*shape: int) -> torch.Tensor:
    """Random pixels."""
    return torch.randn(shape, generator=generator())
