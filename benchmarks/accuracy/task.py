"""What all tasks have: a network, data, a loss, an optimizer, and a number that says how well it went."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a task is trained: the same for all arms. ``steps`` optimizer steps of ``batch`` examples; ``lr`` rises over
    the first twentieth and then falls along a cosine to zero. SGD with momentum 0.9, or AdamW where ``adam``."""

    steps: int
    batch: int = 64
    lr: float = 0.02
    weight_decay: float = 5e-4
    adam: bool = False

    def rate(self, step: int) -> float:
        """The learning rate of step ``step`` (from 0)."""
        warm = max(1, self.steps // 20)
        if step < warm:
            return self.lr * (step + 1) / warm
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


class Task(ABC):
    """One task. ``measure`` is what `evaluate` returns: ``accuracy`` as a share, or ``loss`` in nats per token."""

    measure: ClassVar[str]

    def __init__(self, name: str, recipe: Recipe, device: torch.device, fast: bool = False) -> None:
        self.name, self.recipe, self.device = name, recipe, device
        self.fast = fast and device.type == "cuda"  # bfloat16 where torch's autocast thinks it safe

    @abstractmethod
    def network(self, width: float) -> nn.Module:
        """A fresh network whose widths are multiplied by ``width``; weights from torch's global generator."""

    @abstractmethod
    def example(self) -> Any:
        """Example inputs for `niwaki.search_space`."""

    @abstractmethod
    def batches(self, seed: int) -> Iterator[Any]:
        """Batches for training, without end, in an order that follows from ``seed``."""

    @abstractmethod
    def batch_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch, a scalar."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> float:
        """The measure of a trained network on data that no training has seen."""

    def prepared(self, model: nn.Module) -> nn.Module:
        """``model`` on the device, in the memory layout that is fastest there."""
        return model.to(self.device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """`batch_loss` in the precision of the task."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
            return self.batch_loss(model, batch)

    def optimizer(self, model: nn.Module) -> Optimizer:
        """The recipe's optimizer."""
        r = self.recipe
        if r.adam:
            return AdamW(model.parameters(), lr=r.lr, weight_decay=r.weight_decay)
        return SGD(model.parameters(), lr=r.lr, momentum=0.9, weight_decay=r.weight_decay)
