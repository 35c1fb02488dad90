"""WeightMom: units leave in portions, by what their size has been over the training so far (arXiv 2208.05970)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import Compare, check_compare
from niwaki.criteria.registry import named
from niwaki.errors import MethodError
from niwaki.methods.checks import check_number, diverged
from niwaki.methods.fades import fade_named
from niwaki.methods.method import Method
from niwaki.methods.parts import Target
from niwaki.methods.portions import Portions, PortionScores
from niwaki.methods.registry import register
from niwaki.methods.schedule import Schedule, Timeline
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.trained_units import TrainedUnits
from niwaki.selection.budget import Budget, check_budget


@final
class MagnitudeMomentum(PortionScores):
    """m <- momentum * m + (1 - momentum) ||x|| on every step, from the first one on, over 1 - momentum^steps."""

    def __init__(self, units: TrainedUnits, schedule: Schedule, momentum: float, compare: Compare) -> None:
        self._units, self._momentum, self._compare = units, momentum, compare
        self._timeline = Timeline.of(schedule, 1)
        self._mean = torch.zeros(units.space.num_units, device=units.device)
        self._steps = 0
        self._here: BoolArray = np.ones(units.space.num_units, dtype=bool)

    @property
    def timeline(self) -> Timeline:
        """Known from the beginning."""
        return self._timeline

    @property
    def space(self) -> SearchSpace:
        """The whole space."""
        return self._units.space

    @property
    def compare(self) -> Compare:
        """As given."""
        return self._compare

    def before(self, step: int) -> None:
        """Nothing to keep."""

    def observe(self, step: int, leaving: BoolArray) -> None:
        """One more term, until the last portion is chosen."""
        if step <= self._timeline.borders[-2]:
            (norms,) = self._units.engine.values([named("magnitude")], 0)
            self._mean = self._mean.to(norms) * self._momentum + (1 - self._momentum) * norms
            self._steps += 1

    def ready(self, step: int) -> None:
        """The first portion is like all others."""

    def saliency(self, step: int, keep: BoolArray) -> FloatArray:
        """The momentum of each unit."""
        self._here = keep
        values = self._mean.double().cpu().numpy() / (1 - self._momentum**self._steps)
        if not np.isfinite(values[keep]).all():
            raise diverged("weights", step)
        return np.where(keep, values, 0.0)

    def saliency_again(self, step: int, here: BoolArray) -> None:
        """Choices are final."""

    def group_weight(self) -> FloatArray:
        """The share of its units that the network has left over that of the group: a group that is sparser matters
        more."""
        left = np.array([self._here[group.numbers].mean() for group in self.space.groups])
        return np.asarray(self._here.mean() / np.where(left > 0, left, 1.0), np.float64)

    def phase(self, step: int) -> str:
        """Before the first portion."""
        return "waiting"

    def describe(self) -> str:
        """Nothing beside the portions."""
        return ""

    def take_back(self) -> None:
        """Nothing is only tried."""

    def settings(self) -> dict[str, Any]:
        """How long sizes are remembered, and how units are compared."""
        return {"momentum": self._momentum} | ({} if self._compare == "group" else {"compare": self._compare})

    def state(self) -> dict[str, Any]:
        """The sizes so far."""
        return {"mean": self._mean.clone(), "samples": self._steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        mean: Tensor = state["mean"]
        self._mean, self._steps = mean.to(self._units.device).clone(), int(state["samples"])

    def check_state(self, state: Mapping[str, Any]) -> None:
        """One size per unit, of some steps."""
        if tuple(state["mean"].shape) != (self.space.num_units,) or int(state["samples"]) < 0:
            raise ValueError(f"its sizes are not {self.space.num_units} numbers, one per unit")


class WeightMom(Method):
    """WeightMom on any optimizer: gradual pruning by a moving average of the units' sizes.

    With x the weights of a unit after each step of the optimizer, from the first step on:

        m <- momentum * m + (1 - momentum) * ||x||

    In each period of the schedule the units of the least m are chosen, as many as bring the cost a share nearer to the
    budget, and fade to zero in its steps. A unit that is small for a moment stays, one that has been small for long
    goes. Groups that have kept a smaller share of their units than the network has are held to be more important, by
    the quotient of the two shares, so that no group is thinned out alone.

    What differs from the paper: units instead of single weights, which gives the layers' quotas by relative sparsity
    and not by their place in the network; and what is chosen fades within its period, not at once.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any optimizer that holds all parameters of the space.
        budget: what must hold after ``schedule.until`` steps.
        schedule: when; see `Schedule`.
        momentum: what is left of the average after each step, from 0 to below 1. The paper looks back 10 to 15 epochs;
            0.98 looks back 50 steps.
        compare: with which others each unit is compared: those of its ``"group"``, all ``"isomorphic"`` ones, or the
            whole ``"space"``.
        shrink: True lets units that have reached zero leave the model in place; see `ShrinkPolicy`.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met.
        MethodError: the optimizer does not fit the space, a number makes no sense, or later: the training diverged.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> schedule = niwaki.Schedule(start=2, until=12, periods=2)
    >>> method = niwaki.WeightMom(space, optimizer, niwaki.Budget(macs=0.5), schedule)
    >>> for _ in range(12):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> method.progress.phase, method.progress.macs
    ('done', 0.5)
    """

    name, label = "weightmom", "WeightMom"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        momentum: float = 0.98,
        compare: Compare = "group",
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        check_budget(budget, space=space)
        Schedule.check(schedule, self.label)
        check_number("momentum", momentum, 0, 1, "it is what is left of the average of sizes after a step")
        check_compare(compare)
        if compare == "layer":
            raise MethodError("WeightMom averages the sizes of whole units: compare='group', 'isomorphic' or 'space'.")
        units = TrainedUnits(self.label, space, optimizer, vectorised)
        scores = MagnitudeMomentum(units, schedule, float(momentum), compare)
        portions = Portions(units, Target.of(space, budget), schedule, scores)
        super().__init__(units, portions, fade_named(schedule.fade)(units), shrink)


register(WeightMom.name, lambda t: WeightMom(t.space, t.optimizer, t.budget, t.schedule, shrink=t.shrink))
