"""What a method is made of: a selector says which units leave and when, an update what happens to them on each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from niwaki.core.space import BoolArray, SearchSpace
from niwaki.methods.schedule import Schedule
from niwaki.methods.status import Progress
from niwaki.selection import UNITS, Removal, SelectionRequest, Widths, costs
from niwaki.selection.budget import Budget, check_budget, check_left, followed


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What must hold at the end. ``limits`` by measure, none without a budget; ``steps`` in which groups may shrink;
    ``dense``: the costs of the whole network; ``removal``: what leaves for it."""

    budget: Budget | None
    limits: Mapping[str, float]
    steps: Widths
    dense: Mapping[str, float]
    removal: Removal = UNITS

    @classmethod
    def of(cls, space: SearchSpace, budget: Budget | None, removal: Removal = UNITS) -> Target:
        """The target of a ``budget`` for ``space``.

        Raises:
            BudgetError: it is not a budget, or cannot be met.
        """
        everything = np.ones(space.num_units, dtype=bool)
        dense = costs(space.cost_model, everything, ("macs", "params"))
        if budget is None:
            return cls(None, {}, Widths(), dense, removal)
        check_budget(budget, space=space)
        target = cls(budget, budget.absolute(space, followed(space)), budget.steps, dense, removal)
        target.check_reachable(space)
        return target

    def check_reachable(self, space: SearchSpace) -> None:
        """Raise `BudgetError` if no choice of units of ``space`` is within the limits."""
        least = self.removal.select(space, np.ones(space.num_units), SelectionRequest(self.limits, steps=self.steps))
        check_left(space, self.removal, least, self.limits, self.steps)

    @property
    def data(self) -> dict[str, Any]:
        """As plain data, for a checkpoint."""
        return {
            "limits": dict(self.limits),
            "round_to": self.steps.round_to,
            "min_units": self.steps.min_units,
            **({} if self.removal is UNITS else {"remove": self.removal.name}),
        }


class Resumable(ABC):
    """A part of a method whose numbers and state a checkpoint holds, under names that no other part of it uses."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What must be the same when a run is resumed, as plain data; the target is saved beside it."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What changes from step to step, as tensors and plain numbers."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; zeros themselves are in the model's parameters."""

    @abstractmethod
    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `ValueError`, `KeyError` or `TypeError` if ``state`` is not what `state` gives; change nothing."""


class Stateless(Resumable):
    """For a part of a method that has no numbers of its own and keeps nothing from one step to the next."""

    @final
    def settings(self) -> dict[str, Any]:
        """No numbers."""
        return {}

    @final
    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    @final
    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to continue."""

    @final
    def check_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to check."""


class Selector(Resumable):
    """Which units leave, and when. Masks of units are [num_units], in the numbers of the dense space.

    Around every step of the optimizer, in this order: `before`; the optimizer's step; `observe`, at the weights that it
    has made; the `Update`; `choose`.
    """

    target: Target
    schedule: Schedule

    @abstractmethod
    def before(self, step: int) -> None:
        """Before the optimizer's step number ``step`` (the first is 1): keep what scores need."""

    @abstractmethod
    def observe(self, step: int) -> None:
        """After it, before any unit is changed: score."""

    @abstractmethod
    def left(self, step: int) -> float | None:
        """What share of a unit a linear fade leaves on ``step``, from almost 1 to 0; None where no time is set by which
        units must be zero."""

    @abstractmethod
    def choose(self, step: int) -> None:
        """After the update: keep zeros at zero, and decide who leaves from now on."""

    @abstractmethod
    def phase(self, step: int) -> str | None:
        """What happens on ``step``; None where that is for the update to say."""

    @abstractmethod
    def ended(self, step: int) -> bool:
        """Whether nothing will be removed after ``step``."""

    @abstractmethod
    def removed(self) -> BoolArray:
        """What a plan that is made now removes. May wait for the device, as the next two may."""

    @abstractmethod
    def zero(self) -> BoolArray:
        """Those of `removed` that are at zero."""

    @abstractmethod
    def removable(self) -> BoolArray:
        """The units that are zero and will stay so, as many as the sizes of the model's code allow."""

    @abstractmethod
    def shortfall(self, step: int) -> str | None:
        """What a plan that is made after ``step`` does not do yet ("this plan ..."); None if it does all."""

    @abstractmethod
    def progress(self, step: int, phase: str) -> Progress:
        """Where the selection stands."""

    @abstractmethod
    def describe(self, now: Progress) -> str:
        """The same in words."""

    @abstractmethod
    def take_back(self) -> None:
        """Before the method is detached: undo what was only tried."""


class Update(Resumable):
    """What happens to the units that leave, around each step of the optimizer. All others take its step, to the bit."""

    @abstractmethod
    def before(self, step: int, left: float | None) -> None:
        """Before the optimizer's step: keep the weights that `act` compares with. ``left``: see `Selector.left`."""

    @abstractmethod
    def act(self, step: int, left: float | None) -> None:
        """After it."""

    @abstractmethod
    def phase(self, step: int) -> str:
        """What happens on ``step``, in one word."""
