"""How the units that a period has marked come to zero in its steps; the table of all ways, by name.

A fade decides on step t = 0 ... T - 1 of a period what is left of each unit. The linear one leaves
(T - t - 1) / (T - t) of what there is. On the last step whatever is still there is set to zero, by any fade.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch.optim import Optimizer

from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import MethodError, UnknownName
from niwaki.per_unit.protocol import Units

LINEAR = "linear"


@dataclass(frozen=True, slots=True, eq=False)
class Faded:
    """What a fade works on. ``units``: those of ``space``, which know which of them are marked."""

    space: SearchSpace
    optimizer: Optimizer
    units: Units
    vectorised: bool


class Fade(ABC):
    """One way. It keeps nothing from one step to the next: what units are left with is in the parameters."""

    def __init__(self, faded: Faded) -> None:
        self.faded = faded

    @abstractmethod
    def mark(self, fading: BoolArray) -> None:
        """From now on these units fade, [num_units]; ``faded.units`` have been told."""

    @abstractmethod
    def remember(self) -> None:
        """Before a step of the optimizer on which `shrink` will be called."""

    @abstractmethod
    def shrink(self, factor: float) -> None:
        """After it; the linear fade would leave ``factor``."""


_REGISTRY: dict[str, Callable[[Faded], Fade]] = {}


def fade(name: str) -> Callable[[type[Fade]], type[Fade]]:
    """Register the decorated class under ``name``."""

    def register(made: type[Fade]) -> type[Fade]:
        if name in _REGISTRY:
            raise MethodError(f"There is already a fade {name!r}. Give the new one another name.")
        _REGISTRY[name] = made
        return made

    return register


def fades() -> dict[str, Callable[[Faded], Fade]]:
    """All registered fades by name."""
    return dict(_REGISTRY)


def fade_named(name: str) -> Callable[[Faded], Fade]:
    """The fade called ``name``.

    Raises:
        UnknownName: there is none; the message lists those there are.
    """
    if not isinstance(name, str) or name not in _REGISTRY:
        raise UnknownName(f"There is no fade {name!r}. Registered are: {', '.join(sorted(_REGISTRY))}.")
    return _REGISTRY[name]


@fade(LINEAR)
@final
class Linear(Fade):
    """Every unit is multiplied by (T - t - 1) / (T - t), as published for HESSO."""

    def mark(self, fading: BoolArray) -> None:
        """Nothing to do: the units have been told."""

    def remember(self) -> None:
        """Nothing to keep."""

    def shrink(self, factor: float) -> None:
        """All units alike."""
        self.faded.units.fade(factor)
