"""HSPG: half-space stochastic projected gradient (OTO, arXiv 2107.07467, Algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from niwaki.core.space import SearchSpace
from niwaki.methods.checks import check_number
from niwaki.methods.method import Method
from niwaki.methods.parts import Target
from niwaki.methods.proximal import left_half_space
from niwaki.methods.registry import register
from niwaki.methods.rule_update import RuleUpdate
from niwaki.methods.schedule import Schedule
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.vanishing import Everything, Vanishing
from niwaki.per_unit.protocol import IterateSums, UnitIterates, UnitUpdate, UpdateRule
from niwaki.selection.budget import Budget


@dataclass(frozen=True, slots=True)
class Penalised(UpdateRule):
    """Stage 1: x <- y - lr * penalty * x / ||x||."""

    penalty: float

    @property
    def reads(self) -> frozenset[str]:
        """The norms."""
        return frozenset({"square"})

    def of_unit(self, unit: UnitIterates) -> UnitUpdate:
        """The algorithm box, for one unit."""
        norm = unit.x.norm()
        pull = self.penalty / norm if norm > 0 else norm.new_zeros(())
        return UnitUpdate(keep=norm.new_ones(()), norm=norm, penalty_step=pull)

    def of_sums(self, sums: IterateSums) -> UnitUpdate:
        """The same for all units."""
        norm = sums.square.sqrt()
        pull = torch.where(norm > 0, self.penalty / norm, 0)
        return UnitUpdate(keep=torch.ones_like(norm), norm=norm, penalty_step=pull)


@dataclass(frozen=True, slots=True)
class HalfSpace(UpdateRule):
    """Stage 2: the same trial step, and x <- 0 if <trial, x> < epsilon * ||x||^2."""

    penalty: float
    epsilon: float

    @property
    def reads(self) -> frozenset[str]:
        """The norms, and what the step left of each unit."""
        return frozenset({"square", "inner", "weighted"})

    def of_unit(self, unit: UnitIterates) -> UnitUpdate:
        """The algorithm box, for one unit."""
        x, y, lr, norm = unit.x, unit.y, unit.lr, unit.x.norm()
        if norm == 0:
            return UnitUpdate(keep=norm.new_zeros(()), norm=norm, penalty_step=norm.new_zeros(()))
        trial = y - lr * self.penalty * x / norm
        keep = trial @ x >= self.epsilon * (x @ x)
        return UnitUpdate(keep=keep.to(norm), norm=norm, penalty_step=self.penalty / norm)

    def of_sums(self, sums: IterateSums) -> UnitUpdate:
        """The same, with <trial, x> = <y, x> - penalty / ||x|| <lr x, x>."""
        norm = sums.square.sqrt()
        alive = norm > 0
        pull = torch.where(alive, self.penalty / norm, 0)
        ends = ~alive | left_half_space(sums.inner - pull * sums.weighted, sums.square, self.epsilon)
        return UnitUpdate(keep=(~ends).to(norm), norm=norm, penalty_step=pull)


class HSPG(Method):
    """HSPG on any optimizer: the training minimises loss + penalty * sum over units of ||x_g||, and ends sparse.

    With x the weights of a unit before the optimizer's step and y those after it:

    * before step ``schedule.start`` (stage 1): x <- y - lr * penalty * x / ||x||, the subgradient step (eq. 4);
    * from then on (stage 2), for units that are not zero: the same trial step, but x <- 0 if
      <trial, x> < epsilon * ||x||^2 (eqs. 7 to 9, the half-space projection). Zeros stay zero;
    * after ``schedule.until``: zeros stay zero, the rest takes the bare optimizer's step, without penalty.

    How many units vanish follows from ``penalty`` and ``epsilon``. A ``budget`` is met at ``until`` by setting the
    smallest of the other units to zero, if those that vanished do not meet it.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any optimizer that holds all parameters of the space. The step on the penalty has its learning rate.
        budget: what must hold at the end, or None: what vanishes by itself.
        schedule: ``start`` is the first step of stage 2, ``until`` the last. Its periods mean nothing here.
        penalty: the weight of the norms, the papers' lambda. By itself it takes lr * penalty off the norm of a unit in
            every step: where that adds up to little by ``until``, few units vanish, and the budget's threshold decides.
        epsilon: how readily units are set to zero, from 0 (only where the step turns them by more than a right angle)
            to below 1.
        shrink: True lets units that have reached zero leave the model in place as soon as that pays, so that the rest
            of the training is cheaper; see `ShrinkPolicy`.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met.
        MethodError: the optimizer does not fit the space, or a number makes no sense.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> schedule = niwaki.Schedule(start=5, until=30)
    >>> method = niwaki.HSPG(space, optimizer, niwaki.Budget(macs=0.5), schedule, penalty=0.1)
    >>> for _ in range(30):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> method.progress.phase, method.progress.macs <= 0.5
    ('done', True)
    >>> small = niwaki.cut(model, method.plan())
    """

    name, label = "hspg", "HSPG"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget | None,
        schedule: Schedule,
        *,
        penalty: float = 1e-3,
        epsilon: float = 0.0,
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        check_number("penalty", penalty, 0, float("inf"), "it weighs the norms of the units against the loss")
        check_number("epsilon", epsilon, 0, 1, "it is the share of a unit that must be left after a step")
        units = TrainedUnits(self.label, space, optimizer, vectorised)
        Schedule.check(schedule, self.label)
        penalised = Penalised(float(penalty))
        projected = HalfSpace(float(penalty), float(epsilon))
        update = RuleUpdate(
            units,
            at=lambda step, left: penalised if step < schedule.start else projected,
            phase=lambda step: "penalised" if step < schedule.start else "half-space",
            settings={"penalty": float(penalty), "epsilon": float(epsilon)},
        )
        target = Target.of(space, budget)
        selector = Vanishing(units, target, schedule, Everything(units, target, first=1))
        super().__init__(units, selector, update, shrink)


register(HSPG.name, lambda t: HSPG(t.space, t.optimizer, t.budget, t.schedule, shrink=t.shrink))
