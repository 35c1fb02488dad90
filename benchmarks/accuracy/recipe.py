"""How a network is trained: optimizer, learning rate, batches and steps, the same for all arms of a task."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

Curve = Callable[[float], float]  # the share of the run that is over, in [0, 1] -> the share of the peak rate


@dataclass(frozen=True, slots=True)
class OneCycle:
    """Linear from ``low`` to the peak over the first ``warm`` of the run, then linear to zero."""

    warm: float = 0.2
    low: float = 0.0

    def __call__(self, over: float) -> float:
        if over < self.warm:
            return self.low + (1 - self.low) * over / self.warm
        return (1 - over) / (1 - self.warm)


@dataclass(frozen=True, slots=True)
class Cosine:
    """Linear from zero over the first ``warm`` of the run, then along a cosine to zero."""

    warm: float = 0.05

    def __call__(self, over: float) -> float:
        if over < self.warm:
            return over / self.warm
        return 0.5 * (1 + math.cos(math.pi * (over - self.warm) / (1 - self.warm)))


@dataclass(frozen=True, slots=True)
class Drops:
    """The peak, times ``by`` at each of the shares ``at`` of the run."""

    at: tuple[float, ...]
    by: float

    def __call__(self, over: float) -> float:
        return self.by ** sum(over >= share for share in self.at)


@dataclass(frozen=True, slots=True)
class Sgd:
    """Stochastic gradient descent with momentum on all parameters alike."""

    momentum: float = 0.9
    nesterov: bool = False

    def __call__(self, model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
        return SGD(model.parameters(), lr, self.momentum, weight_decay=weight_decay, nesterov=self.nesterov)


@dataclass(frozen=True, slots=True)
class Adam:
    """AdamW on all parameters alike."""

    def __call__(self, model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
        return AdamW(model.parameters(), lr, weight_decay=weight_decay)


@dataclass(frozen=True, slots=True)
class Recipe:
    """``steps`` optimizer steps of ``batch`` examples at the peak rate ``lr`` times `factor`."""

    steps: int
    batch: int = 64
    lr: float = 0.02
    weight_decay: float = 5e-4
    optimizer: Callable[[nn.Module, float, float], Optimizer] = Sgd()  # of the model, ``lr`` and ``weight_decay``
    curve: Curve = Cosine()

    def factor(self, step: int) -> float:
        """The learning rate of step ``step`` (from 0) as a share of the peak.

        >>> [round(Recipe(10, curve=OneCycle()).factor(step), 4) for step in (0, 1, 5, 9)]
        [0.25, 0.75, 0.5625, 0.0625]
        """
        return self.curve((step + 0.5) / self.steps)  # the middle of the step: no step has a rate of zero

    def attach(self, model: nn.Module) -> Optimizer:
        """The optimizer of ``model``, at its peak rate."""
        return self.optimizer(model, self.lr, self.weight_decay)
