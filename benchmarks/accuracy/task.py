"""What all tasks have: a network, data, a loss, a recipe, and a number that says how well it went."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.accuracy.recipe import Recipe


class Task(ABC):
    """One task.

    ``measure`` is what `evaluate` returns: ``accuracy`` as a share, or ``loss`` in nats per token. ``about``: the data,
    the network and whatever else the result depends on beside the recipe, in words. ``ignored``: the modules that stay
    as they are. ``fast``: training in bfloat16 where torch's autocast thinks it safe, which a GPU does several times as
    fast, and so does a CPU with tiles for it (AMX); numbers are measured in float32.
    """

    measure: ClassVar[str]

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        device: torch.device,
        about: str = "",
        ignored: Sequence[str] = (),
        fast: bool = False,
    ) -> None:
        self.name, self.recipe, self.device, self.about, self.ignored = name, recipe, device, about, tuple(ignored)
        self.fast = fast

    @abstractmethod
    def network(self) -> nn.Module:
        """The dense network with fresh (or pretrained) weights, drawn from torch's global generator."""

    @abstractmethod
    def renew(self, model: nn.Module) -> None:
        """Draw the weights of a ``model`` that has been cut afresh, as those of a network of its size are drawn."""

    @abstractmethod
    def example(self) -> Any:
        """Example inputs for `niwaki.search_space`."""

    @abstractmethod
    def batches(self, seed: int) -> Iterator[Any]:
        """Batches for training, without end, in an order that follows from ``seed``."""

    @abstractmethod
    def held_out_batches(self) -> list[Any]:
        """Batches of the training data that are held out for choices: some methods learn from them what to remove."""

    @abstractmethod
    def batch_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, a scalar."""

    @abstractmethod
    def evaluate(self, model: nn.Module, held_out: bool = False) -> float:
        """The measure of a trained network on the test data, or on the training data that are held out for choices."""

    def prepared(self, model: nn.Module) -> nn.Module:
        """``model`` on the device, in the memory layout that is used there."""
        return model.to(self.device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """`batch_loss` in the precision of the task."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
            return self.batch_loss(model, batch)

    @property
    def described(self) -> str:
        """Everything that a result depends on beside arm, budget, moment and seed."""
        return f"{self.name}: {self.about}; {self.recipe}"

    @property
    def fingerprint(self) -> str:
        """Ten hexadecimal digits that change when `described` does."""
        return hashlib.sha256(self.described.encode()).hexdigest()[:10]


def reset(model: nn.Module) -> None:
    """Let every layer draw its parameters as it does when it is made."""
    for module in model.modules():
        again = getattr(module, "reset_parameters", None)
        if callable(again):
            again()
