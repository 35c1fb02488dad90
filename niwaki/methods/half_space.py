"""What the half-space methods share: the step around `Rule`, when it ends, and the budget at the end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch.optim import SGD, Optimizer

from niwaki.core.counts import FloatArray
from niwaki.core.isomorphic import group_of
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria import normalise
from niwaki.criteria.registry import named
from niwaki.errors import MethodError
from niwaki.methods.checks import diverged
from niwaki.methods.schedule import Schedule
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.status import Phase
from niwaki.methods.zeros import SparsityMethod
from niwaki.per_unit.fast import FastPerUnit
from niwaki.per_unit.plain import PlainPerUnit
from niwaki.per_unit.protocol import IterateSums, PerUnit, UnitIterates, UnitUpdate
from niwaki.selection import select
from niwaki.selection.budget import Budget


class HalfSpace(SparsityMethod):
    """A method that changes units after each optimizer step by a `Rule`, until ``schedule.until``.

    Units that the rule brings to zero are the result. At ``until`` a budget that they do not meet yet is met by a hard
    threshold: the smallest of the others, by their norm over the mean of their group, are set to zero as well. From
    then on zeros are kept and everything else takes the bare optimizer's step.

    The largest unit of each group is never set to zero, since a network that has lost a whole layer is dead.

    Subclasses are the rule (see `Rule`), say what `phase` it is, and may add to what happens around it.
    """

    now: Phase  # of the step at hand

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget | None,
        schedule: Schedule,
        vectorised: bool,
        shrink: bool | ShrinkPolicy = False,
    ) -> None:
        super().__init__(space, optimizer, budget, schedule, vectorised, shrink)
        if any(group.get("lr") is None for group in optimizer.param_groups):
            raise MethodError(
                f"{self.label} takes its steps with the optimizer's learning rate, but {type(optimizer).__qualname__} "
                "has none in its param groups. Add 'lr' to each of them."
            )
        self._group = torch.from_numpy(group_of(space)).to(self._device)
        self._iterates: PerUnit | None = None

    @property
    @abstractmethod
    def reads(self) -> frozenset[str]:
        """See `Rule`; for the phase ``now``."""

    @abstractmethod
    def of_unit(self, unit: UnitIterates) -> UnitUpdate:
        """See `Rule`."""

    @abstractmethod
    def of_sums(self, sums: IterateSums) -> UnitUpdate:
        """See `Rule`."""

    def concerned(self) -> BoolArray:
        """The units that the rule changes, [num_units]; asked once, on its first step and after a resume."""
        return np.ones(self.space.num_units, dtype=bool)

    def observe(self, step: int) -> None:
        """After a scoring step."""

    def conclude(self, step: int) -> None:
        """After the rule has acted on ``step``."""

    def preference(self) -> FloatArray | float:
        """What the sizes of units are multiplied by before the smallest are taken to meet the budget."""
        return 1.0

    @final
    def before_step(self, step: int) -> None:
        """Keep x of the units concerned, where the rule needs it."""
        if self._ended is not None:
            return
        self.now = self.phase(step)
        if self.now == "scoring":
            self._units.remember()
        elif self.now != "waiting" and self.reads != {"after"}:
            self._open().remember()

    @final
    def after_step(self, step: int) -> None:
        """Let the rule act, or keep the zeros."""
        if self._ended is not None:
            self._units.clear()
            return
        if self.now == "scoring":
            self.observe(step)
        elif self.now != "waiting":
            iterates = self._open()
            change = self._spared(iterates.change(self))
            iterates.apply(change)
            self._zero = change.keep == 0
            self.conclude(step)
        if self._ended is None and step >= self.schedule.until:
            self.end(step)

    @final
    def end(self, step: int) -> None:
        """The last act: units leave for good, as many as are zero, and as many more as the budget asks for."""
        zero = self._zeros()
        keep = self._kept(zero)
        if self._limits:
            keep = select(self.space, self._sizes(keep), self._limits, ~keep, steps=self._steps)
        self._zero = torch.from_numpy(zero | ~keep).to(self._device)
        self._ended, self._iterates = step, None
        self._keep_zeros()
        self._units.clear()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; x is kept anew."""
        super().restore(state)
        self._iterates = None

    def _open(self) -> PerUnit:
        if self._iterates is None:
            kind = FastPerUnit if self._vectorised else PlainPerUnit
            self._iterates = kind(self.space, self.optimizer, self.concerned())
        return self._iterates

    def _sizes(self, keep: BoolArray) -> FloatArray:
        """The norm of each unit over the mean norm of its group."""
        norms = self._units.values([named("magnitude")], 0)[0].double().cpu().numpy()
        if not np.isfinite(norms[keep]).all():
            raise diverged("weights", self.step)
        return normalise(self.space, np.where(keep, norms, 0.0), keep) * self.preference()

    def _spared(self, change: UnitUpdate) -> UnitUpdate:
        """``change`` without the end of the unit of each group that is the largest, if that would end."""
        if change.norm is None:
            return change
        largest = change.norm.new_zeros(len(self.space.groups)).scatter_reduce_(0, self._group, change.norm, "amax")
        spare = (change.norm > 0) & (change.norm == largest[self._group])
        return UnitUpdate(
            torch.where(spare, 1, change.keep), change.norm, change.penalty_step, change.prox, change.damping
        )


def follows_gradient(optimizer: Optimizer) -> bool:
    """Whether the steps of ``optimizer`` are as long as the gradient is: SGD's, not those that normalise it."""
    return isinstance(optimizer, SGD)
