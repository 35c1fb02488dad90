"""Patterns of networks: how they are built, and the check that they are exact or refused with a reason."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from exactness import deviations
from torch import Tensor, nn

import niwaki
from niwaki.testing.models import random_plan, randomised

WIDTH = 8


class Between(nn.Module):
    """conv -> norm -> relu -> something -> conv -> pooled classes."""

    def __init__(self, between: nn.Module, out: int = WIDTH, width: int = WIDTH, side: int = 6) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.between, self.last, self.head = between, nn.Conv2d(out, 5, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(self.last(self.between(x)).mean((2, 3)))


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@dataclass(frozen=True)
class Pattern:
    """``build`` gives a model and its inputs. Exact with ``least`` units or more; where some is refused, ``reason``
    (a regular expression) says why."""

    build: Callable[[], tuple[nn.Module, Any]]
    reason: str | None = None
    least: int = 1
    train: bool = True


def images(between: Callable[[], nn.Module], **options: Any) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (Between(between(), **options), torch.randn(2, 3, 6, 6))


def do(function: Callable[[Tensor], Tensor], **options: Any) -> Callable[[], tuple[nn.Module, Any]]:
    return images(lambda: Do(function), **options)


def sequence() -> Tensor:
    return torch.randn(2, 5, 3)


def of(build: Callable[[], nn.Module], inputs: Callable[[], Any] = sequence) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (build(), inputs())


def exact_or_refused(name: str, pattern: Pattern) -> None:
    """Try a pattern by random plans, and ask for its reason."""
    torch.manual_seed(0)
    model, inputs = pattern.build()
    randomised(model)
    space = niwaki.search_space(model, inputs)
    print(f"{name}: {space.num_units} units, coverage {space.coverage:.2f}")
    if pattern.reason is not None:
        assert any(re.search(pattern.reason, pin.reason) for pin in space.pins), [pin.reason for pin in space.pins]
    assert space.num_units >= pattern.least, [str(pin) for pin in space.pins]
    rng = np.random.default_rng(0)
    for number in range(4):
        plan = random_plan(space, rng)
        for call in inputs if isinstance(inputs, list) else [inputs]:
            found = deviations(model, plan, call, train=number == 0)
            assert found["eval"] <= 1e-10, found
            assert found.get("train", 0.0) <= 1e-8, found
    assert math.isfinite(space.coverage)
