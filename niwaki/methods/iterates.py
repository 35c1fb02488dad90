"""Two iterates of each unit, before and after the optimizer's step, and what a method makes of the second.

Notation (per unit g, all of its driven entries together): x the iterate before the optimizer's step, y the one after
it, lr the learning rate of each entry, d the direction of the step without decoupled weight decay: y = x - lr d for an
optimizer that has none. The learning rate differs within a unit where param groups differ.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One unit, all of its entries as vectors; see above. Where nothing kept x it is y, and d is zero."""

    x: Tensor
    y: Tensor
    d: Tensor
    lr: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """The same of all units at once, as sums, each [num_units]; a rule sees only those it declares to read.

    ``after`` and ``rates`` list, for each learning rate (param group), the share of ||y||^2 that takes it, and it.
    """

    square: Tensor  # ||x||^2
    inner: Tensor  # <y, x>
    weighted: Tensor  # <lr x, x>
    aligned: Tensor  # <x, d>
    direction: Tensor  # ||d||^2
    moved: Tensor  # <lr d, d>
    ahead: Tensor  # <y, d>
    after: Tensor  # [param groups, num_units]
    rates: Tensor  # [param groups]


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What becomes of each unit, [num_units] each (or one unit's numbers):

        y <- keep * (y + back (x - y) - lr pull x) / (1 + lr soft)

    ``pull`` = penalty / ||x|| is the explicit step on penalty * ||x||, ``soft`` = penalty / ||z|| the implicit one,
    which is its prox (z the result), ``back`` the share of the way that the optimizer's step is shortened by. Entries
    of several units take the sum of their pulls and the product of the factors keep / (1 + lr soft). ``norm``: what
    units of a group are compared by where one of them has to stay.
    """

    keep: Tensor
    norm: Tensor | None = None
    pull: Tensor | None = None
    soft: Tensor | None = None
    back: float = 0.0


class Rule(Protocol):
    """What a method does to units: one at a time as in the paper, and all at once from sums; both must agree."""

    @property
    @abstractmethod
    def reads(self) -> frozenset[str]:
        """The sums that the step at hand needs: names of fields of `Sums`."""

    @abstractmethod
    def of_unit(self, unit: Unit) -> Change:
        """The algorithm box."""

    @abstractmethod
    def of_sums(self, sums: Sums) -> Change:
        """The same for all units."""


class Iterates(Protocol):
    """Iterates of some units of a search space, all without gradients. Nothing here waits for the device."""

    @abstractmethod
    def remember(self) -> None:
        """Before an optimizer step: keep x."""

    @abstractmethod
    def change(self, rule: Rule) -> Change:
        """After it: what ``rule`` makes of each unit. Units that are not concerned are kept as they are."""

    @abstractmethod
    def apply(self, change: Change) -> None:
        """Do it, to the units concerned."""
