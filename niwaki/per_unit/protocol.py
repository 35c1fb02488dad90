"""What is computed for every unit during training, as protocols: the plain loop and the fast path both implement them.

Notation (per unit g, all of its driven entries together): x the iterate before the optimizer's step, y the one after
it, lr the learning rate of each entry, d the direction of the step without decoupled weight decay: y = x - lr d for an
optimizer that has none. The learning rate differs within a unit where param groups differ.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from niwaki.core.space import BoolArray
from niwaki.per_unit.sums import UnitSums


class Measure(Protocol):
    """A value of each unit, made of sums over it. Every registered criterion is one."""

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """The fields of `UnitSums` that ``saliency`` looks at."""

    @property
    @abstractmethod
    def saliency(self) -> Callable[[UnitSums], Tensor]:
        """From the sums to [num_units]."""


class Units(Protocol):
    """The units of a search space around the optimizer's steps, all without gradients."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where `values` are."""

    @property
    @abstractmethod
    def uses(self) -> Tensor:
        """How often the weights of each structure are used, and 1 for other units, [num_units]; see `WholeUnits`."""

    @abstractmethod
    def remember(self) -> None:
        """Before an optimizer step: keep what its direction cannot be known without afterwards; see `Directions`."""

    @abstractmethod
    def forget(self) -> None:
        """Give the memory of what `remember` keeps back."""

    @abstractmethod
    def values(
        self, measures: Sequence[Measure], seed: int, size: Tensor | None = None, by_layer: Tensor | None = None
    ) -> Tensor:
        """After an optimizer step: each measure of each unit, [measures, num_units]. Does not wait for the device.

        All at the new parameters, with the gradient that the step consumed and the direction that it took. A structure
        is measured by all weights that die with it, see `niwaki.per_unit.whole`. With ``size`` [num_units] the sums
        over each unit are taken as if its weights were multiplied by it, where gradient and direction are what they
        are.

        With ``by_layer`` every layer (module) measures its part of a unit by itself: the unit has the mean, over its
        layers, of that value over the layer's mean. ``by_layer`` [num_units] are the units that the means of layers
        are taken over. No measure may then look at units as a whole (their distance, their scales).
        """

    @abstractmethod
    def subset(self, units: BoolArray) -> UnitSubset:
        """Those of ``units`` [num_units], to be changed by updates."""


@dataclass(frozen=True, slots=True, eq=False)
class UnitIterates:
    """One unit, all of its entries as vectors; see above. Where nothing kept x it is y, and d is zero."""

    x: Tensor
    y: Tensor
    d: Tensor
    lr: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class IterateSums:
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
class UnitUpdate:
    """What becomes of each unit, [num_units] each (or one unit's numbers):

        y <- keep * (y + damping (x - y) - lr penalty_step x) / (1 + lr prox)

    ``penalty_step`` = penalty / ||x|| is the explicit step on penalty * ||x||, ``prox`` = penalty / ||z|| the implicit
    one, which is its prox (z the result), ``damping`` the share of the way that the optimizer's step is shortened by.
    Entries of several units take the sum of their penalty steps and the product of the factors keep / (1 + lr prox).
    ``norm``: what units of a group are compared by where one of them has to stay. A ``keep`` that is a number holds
    for all units; nothing else may be given beside it.
    """

    keep: Tensor | float
    norm: Tensor | None = None
    penalty_step: Tensor | None = None
    prox: Tensor | None = None
    damping: float = 0.0


TO_ZERO = UnitUpdate(keep=0.0)


class UpdateRule(Protocol):
    """What a method does to units: one at a time as in the paper, and all at once from sums; both must agree."""

    @property
    @abstractmethod
    def reads(self) -> frozenset[str]:
        """The sums that the step at hand needs: names of fields of `IterateSums`."""

    @abstractmethod
    def of_unit(self, unit: UnitIterates) -> UnitUpdate:
        """The algorithm box."""

    @abstractmethod
    def of_sums(self, sums: IterateSums) -> UnitUpdate:
        """The same for all units."""


class UnitSubset(Protocol):
    """Some units of a search space, which updates change. Nothing here waits for the device."""

    @abstractmethod
    def remember(self) -> None:
        """Before an optimizer step: keep x."""

    @abstractmethod
    def change(self, rule: UpdateRule) -> UnitUpdate:
        """After it: what ``rule`` makes of each unit, [num_units]. Units outside the subset are kept as they are."""

    @abstractmethod
    def apply(self, update: UnitUpdate) -> None:
        """Do it, to the units of the subset."""
