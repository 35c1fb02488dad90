"""GReg-1 and GReg-2: a penalty that grows until what it acts on is gone (arXiv 2012.09243)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch.optim import Optimizer

from niwaki.core.space import SearchSpace
from niwaki.criteria.normalise import Compare
from niwaki.methods.checks import check_number
from niwaki.methods.method import Method
from niwaki.methods.parts import Target, Update
from niwaki.methods.portions import Portions
from niwaki.methods.registry import register
from niwaki.methods.rule_update import check_rate
from niwaki.methods.schedule import Schedule
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.window_scores import WindowScores
from niwaki.per_unit.protocol import UnitSubset, UnitUpdate
from niwaki.selection.budget import Budget, check_budget

RATIO = 1e3  # of kept to pruned magnitudes, at which the paper removes weights


@dataclass(frozen=True, slots=True)
class Rise:
    """The penalty on the steps after ``start`` and before ``until``; it is zero on these two."""

    start: int
    until: int
    growth: float | None

    def acts(self, step: int) -> bool:
        """Whether there is a penalty."""
        return self.start < step < self.until

    def update(self, step: int, ones: torch.Tensor) -> UnitUpdate:
        """x <- y / (1 + lr * penalty), the implicit step on penalty / 2 ||x||^2. ``ones`` [num_units]."""
        steps = step - self.start
        if self.growth is not None:
            return UnitUpdate(keep=ones, prox=ones * (self.growth * steps))
        whole = self.until - self.start
        return UnitUpdate(keep=RATIO ** (-2 * steps / (whole * (whole - 1))))


@final
class GrowingPenalty(Update):
    """The units that leave are under a penalty that rises with every step; until the end of step ``pick`` all that can
    leave are, and are separated by how much the loss holds on to each."""

    def __init__(self, units: TrainedUnits, rise: Rise, pick: int) -> None:
        if rise.growth is not None:
            check_rate(units.label, units.holder)
        self._units, self._rise, self._pick = units, rise, pick
        self._everything: UnitSubset | None = None

    def before(self, step: int, left: float | None) -> None:
        """Nothing to keep."""

    def act(self, step: int, left: float | None) -> None:
        """One step of the penalty."""
        if not self._rise.acts(step):
            return
        subset = self._all() if step <= self._pick else self._units.subset
        if subset is not None:
            ones = torch.ones(self._units.live.space.num_units, device=self._units.device)
            subset.apply(self._rise.update(step, ones))

    def _all(self) -> UnitSubset:
        """Before the choice nothing has left, so that this is looked up once."""
        if self._everything is None:
            target = Target.of(self._units.space, None)
            self._everything = self._units.engine.subset(target.removal.candidates(self._units.space))
        return self._everything

    def phase(self, step: int) -> str:
        """On all units, or on those that leave."""
        return "separating" if step <= self._pick else "growing"

    def settings(self) -> dict[str, Any]:
        """What the penalty follows."""
        return {"growth": self._rise.growth, "pick": self._pick}

    def state(self) -> dict[str, Any]:
        """Nothing: the penalty follows from the step."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to continue."""

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to check."""


def _parts(
    label: str,
    space: SearchSpace,
    optimizer: Optimizer,
    budget: Budget,
    schedule: Schedule,
    pick: float,
    growth: float | None,
    compare: Compare,
    vectorised: bool,
) -> tuple[TrainedUnits, Portions, GrowingPenalty]:
    """Both methods: units are chosen by their L1 norms once, ``pick`` of the way from the start to the end."""
    check_budget(budget, space=space)
    Schedule.check(schedule, label)
    schedule.check_ramp(label)
    schedule.check_fade(label)
    if growth is not None:
        check_number("growth", growth, 0, np.inf, "the penalty on the weights of a unit rises by it on every step")
    units = TrainedUnits(label, space, optimizer, vectorised)
    one = replace(schedule, periods=1)
    picked = replace(one, start=min(one.start + round(pick * (one.until - one.start)), one.until - 1))
    acts_from = one.start + 1 if picked.start > one.start else None
    scores = WindowScores(units, picked, {"magnitude_l1": 1.0}, 1, False, 0, compare, acts_from)
    update = GrowingPenalty(units, Rise(one.start, one.until, growth), picked.start if acts_from else one.start)
    return units, Portions(units, Target.of(space, budget), one, scores), update


class GReg1(Method):
    """GReg-1 on any optimizer: the smallest units are chosen once, and a penalty that grows drives them to zero.

    With x the weights of a unit before the optimizer's step, y those after it, and s the steps since the choice:

    * at the end of step ``schedule.start`` the units of the least ||x||_1 are chosen, as many as the budget asks for;
    * until ``schedule.until`` they are under the penalty 1/2 lambda_s ||x||^2 with lambda_s = growth * s (eq. 4 of the
      paper): x <- y / (1 + lr lambda_s). All others take the bare optimizer's step, to the bit;
    * at ``schedule.until`` what is left of them is set to zero, and stays zero.

    What differs from the paper: a unit is all that computes it, with its norm and bias, and budgets say how many leave
    of each group; the penalty rises on every step, not on every fifth or tenth; its step is the implicit one, outside
    of momentum and adaptive scales; the end is that of the schedule, not the first moment at which kept weights are a
    thousand times as large as pruned ones.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any optimizer that holds all parameters of the space.
        budget: what must hold at the end.
        schedule: ``start`` is the step of the choice, ``until`` the last. Its periods mean nothing here.
        growth: by how much lambda rises on each step. By default, whatever the learning rates, so that the penalty by
            itself would leave a thousandth of a unit at the end. The paper's is 1e-4 on every 5th or 10th step, for
            trainings of 100,000 steps.
        compare: with which others each unit is compared, as for `niwaki.HESSO`.
        shrink: True lets the units leave the model in place at the end; see `ShrinkPolicy`.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met.
        MethodError: the optimizer does not fit the space, or a number makes no sense.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> method = niwaki.GReg1(space, optimizer, niwaki.Budget(macs=0.5), niwaki.Schedule(start=5, until=30))
    >>> for _ in range(30):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> method.progress.phase, method.progress.macs
    ('done', 0.5)
    """

    name, label = "greg1", "GReg-1"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        growth: float | None = None,
        compare: Compare = "group",
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        parts = _parts(self.label, space, optimizer, budget, schedule, 0.0, growth, compare, vectorised)
        super().__init__(*parts, shrink)


class GReg2(Method):
    """GReg-2 on any optimizer: a penalty that grows on all units tells them apart before the smallest are chosen.

    As `GReg1`, but from ``schedule.start`` on all units that can leave are under the growing penalty. A unit in a
    direction of large curvature is held by the loss and stays large, one that the loss hardly notices shrinks: after s
    steps of a penalty lambda the minimum along an eigenvector of curvature h is at h / (h + lambda) of where it was
    (eq. 6 of the paper). ``pick`` of the way to ``schedule.until`` the units of the least ||x||_1 are chosen; the
    penalty goes on growing for these, and ends for all others.

    Args:
        pick: the share of the way after which units are chosen, from 0 to below 1.

    For the other arguments, what is raised, and what differs from the paper see `GReg1`.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> method = niwaki.GReg2(space, optimizer, niwaki.Budget(macs=0.5), niwaki.Schedule(start=5, until=45))
    >>> for _ in range(10):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> method
    GReg-2: step 10, separating (period 0 of 1); 0 of 10 units marked, 0 zero; 100.0% of the MACs and 100.0% of the \
parameters left
    """

    name, label = "greg2", "GReg-2"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        pick: float = 0.25,
        growth: float | None = None,
        compare: Compare = "group",
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        check_number("pick", pick, 0, 1, "it is the share of the way after which units are chosen")
        parts = _parts(self.label, space, optimizer, budget, schedule, float(pick), growth, compare, vectorised)
        super().__init__(*parts, shrink)


register(GReg1.name, lambda t: GReg1(t.space, t.optimizer, t.budget, t.schedule, shrink=t.shrink))
register(GReg2.name, lambda t: GReg2(t.space, t.optimizer, t.budget, t.schedule, shrink=t.shrink))
