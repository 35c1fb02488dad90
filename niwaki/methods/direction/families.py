"""The table of optimizers whose direction is known from their state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from niwaki.errors import MethodError
from niwaki.methods.direction.ways import Direction


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A parameter after a step of the optimizer: its param group, its state, and the gradient that was consumed."""

    group: Mapping[str, Any]
    state: Mapping[str, Any]
    weight: Tensor
    gradient: Tensor


class Family(Protocol):
    """Optimizers that leave the direction of a step in their state and in the gradient."""

    @abstractmethod
    def knows(self, group: Mapping[str, Any]) -> bool:
        """Whether that is so with the settings of this param group. Asked before the first step: no state is there."""

    @abstractmethod
    def directions(self, held: Sequence[Held]) -> list[Direction]:
        """Of parameters that the step has just moved."""


_REGISTRY: dict[type[Optimizer], Family] = {}


def family(*kinds: type[Optimizer]) -> Callable[[type[Family]], type[Family]]:
    """Register the decorated family for optimizers of exactly these classes: a subclass may step in its own way."""

    def register(made: type[Family]) -> type[Family]:
        for kind in kinds:
            if kind in _REGISTRY:
                raise MethodError(f"The direction of {kind.__qualname__} is known already. Register another class.")
            _REGISTRY[kind] = made()
        return made

    return register


def families() -> dict[type[Optimizer], Family]:
    """All that are registered, by the class of the optimizer."""
    return dict(_REGISTRY)


def family_of(optimizer: Optimizer) -> Family | None:
    """What is known of ``optimizer``; None for classes that are not registered."""
    return _REGISTRY.get(type(optimizer))
