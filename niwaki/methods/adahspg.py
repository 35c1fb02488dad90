"""AdaHSPG+: an adaptive half-space method that need not start near the solution (TMLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.space import SearchSpace
from niwaki.methods.checks import check_mask, check_number
from niwaki.methods.method import Method
from niwaki.methods.parts import Target, Update
from niwaki.methods.proximal import left_half_space, soft_length
from niwaki.methods.registry import register
from niwaki.methods.rule_update import RuleSteps
from niwaki.methods.schedule import Schedule
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.vanishing import Everything, Vanishing
from niwaki.per_unit.protocol import IterateSums, UnitIterates, UnitUpdate, UpdateRule
from niwaki.selection.budget import Budget

GROWTH, MOST, LEAST = 0.1, 0.95, 1e-3  # of epsilon: by how much it grows, to what, and below what it is 0


@dataclass(frozen=True, slots=True)
class Proximal(UpdateRule):
    """The prox of lr * penalty * ||.|| at y, in the metric of the learning rates of a unit."""

    penalty: float

    @property
    def reads(self) -> frozenset[str]:
        """The norms after the step."""
        return frozenset({"after"})

    def of_unit(self, unit: UnitIterates) -> UnitUpdate:
        """The algorithm box, for one unit."""
        y, lr = unit.y, unit.lr
        rates = y.new_tensor(sorted(set(lr.tolist())))
        parts = torch.stack([y[lr == rate].square().sum() for rate in rates])
        return _soft(soft_length(parts.unsqueeze(1), rates * self.penalty).squeeze(), self.penalty, y.norm())

    def of_sums(self, sums: IterateSums) -> UnitUpdate:
        """The same for all units."""
        norm = sums.after.sum(0).sqrt()
        rates = (sums.rates * self.penalty).to(norm)
        return _soft(soft_length(sums.after, rates), self.penalty, norm)


@dataclass(frozen=True, slots=True)
class ShortenedHalfSpace(UpdateRule):
    """The half-space step, with both the optimizer's step and that on the penalty shortened by s = ``shortened``."""

    penalty: float
    epsilon: float
    shortened: float

    @property
    def reads(self) -> frozenset[str]:
        """The norms before and after the step, and what it left of each unit."""
        return frozenset({"after", "square", "inner", "weighted"})

    def of_unit(self, unit: UnitIterates) -> UnitUpdate:
        """The algorithm box, for one unit."""
        x, y, lr, penalty, s = unit.x, unit.y, unit.lr, self.penalty, self.shortened
        norm, zero = x.norm(), y.new_zeros(())
        if norm == 0:
            return UnitUpdate(zero, zero, penalty_step=zero, prox=zero, damping=1 - s)
        y = x + s * (y - x)
        reach = s * penalty * (lr @ x.square()) / (x @ x)
        if norm > reach:
            trial = y - s * lr * penalty * x / norm
            keep = trial @ x >= self.epsilon * (x @ x)
            return UnitUpdate(keep.to(norm), norm, penalty_step=s * penalty / norm, prox=zero, damping=1 - s)
        prox = _soft((y.norm() - reach).clamp(min=0), s * penalty, norm)
        return UnitUpdate(prox.keep, norm, penalty_step=zero, prox=prox.prox, damping=1 - s)

    def of_sums(self, sums: IterateSums) -> UnitUpdate:
        """The same for all units."""
        s, norm, square = self.shortened, sums.square.sqrt(), sums.square
        alive = norm > 0
        inner = s * sums.inner + (1 - s) * square
        reach = torch.where(alive, s * self.penalty * sums.weighted / square, 0)
        far = alive & (norm > reach)
        pull = torch.where(far, s * self.penalty / norm, 0)
        ends = left_half_space(inner - pull * sums.weighted, square, self.epsilon)
        after = s * s * sums.after.sum(0) + 2 * s * (1 - s) * sums.inner + (1 - s) ** 2 * square
        length = torch.where(far, 1, (after.clamp(min=0).sqrt() - reach).clamp(min=0))
        keep = alive & torch.where(far, ~ends, length > 0)
        soft = torch.where(far | ~keep, 0, s * self.penalty / length)
        return UnitUpdate(keep.to(norm), norm, penalty_step=pull, prox=soft, damping=1 - s)


def _soft(length: Tensor, penalty: float, norm: Tensor) -> UnitUpdate:
    """The prox, given the norm of its result."""
    soft = torch.where(length > 0, penalty / length, 0)
    return UnitUpdate((length > 0).to(norm), norm, prox=soft)


@final
class Alternating(Update):
    """Proximal and half-space phases in turn, ``schedule.periods`` in all, with an epsilon that adapts."""

    def __init__(self, units: TrainedUnits, schedule: Schedule, penalty: float) -> None:
        self._steps, self._penalty = RuleSteps(units), penalty
        self._num_units, self._device = units.space.num_units, units.device
        self._periods = schedule.periods
        self._length = max(1, (schedule.until - schedule.start + 1) // schedule.periods)
        self._mode: Literal["proximal", "half-space"] = "proximal"
        self._place = 0  # steps done in this phase
        self._again = False  # the phase before was proximal too
        self.epsilon, self._ceiling = 0.0, MOST
        self._begin = torch.zeros_like(units.at_zero)  # the zeros when the phase began
        self._projected = torch.zeros_like(units.at_zero)  # what the last half-space phase set to zero

    def before(self, step: int, left: float | None) -> None:
        """Keep x in a half-space phase."""
        self._steps.before(self._rule())

    def act(self, step: int, left: float | None) -> None:
        """One step of the present phase."""
        zero = self._steps.act(self._rule())
        if zero is not None:
            self._count(zero)

    def _rule(self) -> UpdateRule:
        if self._mode == "proximal":
            return Proximal(self._penalty)
        return ShortenedHalfSpace(self._penalty, self.epsilon, 1 / (1 + self._place / self._length))

    def phase(self, step: int) -> str:
        """The kind of the present phase."""
        return self._mode

    def _count(self, zero: Tensor) -> None:
        """Count the step; at the end of a phase see what it did, and what comes next. Only then the device is asked."""
        self._place += 1
        if self._place < self._length:
            return
        self._place, growing = 0, False
        if self._mode == "half-space":
            self._projected = zero & ~self._begin
        else:
            mistakes, back, gone = (
                int(mask.sum()) for mask in (self._projected & ~zero, self._begin & ~zero, zero & ~self._begin)
            )
            growing = back > gone and not self._again
            if mistakes:
                self._ceiling = self.epsilon / 2 if self.epsilon / 2 >= LEAST else 0.0
                self.epsilon = self._ceiling
            elif not growing:
                self.epsilon = min(self._ceiling, self.epsilon + GROWTH)
            self._projected = self._projected & zero
        self._again = growing
        self._mode = "proximal" if growing or self._mode == "half-space" else "half-space"
        self._begin = zero.clone()

    def settings(self) -> dict[str, Any]:
        """The penalty and the number of phases."""
        return {"penalty": self._penalty, "periods": self._periods}

    def state(self) -> dict[str, Any]:
        """Where in which phase it is, and the zeros that it compares with."""
        return {
            "mode": self._mode,
            "place": self._place,
            "again": self._again,
            "epsilon": self.epsilon,
            "ceiling": self._ceiling,
            "begin": self._begin.clone(),
            "projected": self._projected.clone(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._mode, self._place, self._again = state["mode"], int(state["place"]), bool(state["again"])
        self.epsilon, self._ceiling = float(state["epsilon"]), float(state["ceiling"])
        self._begin = state["begin"].to(self._device).clone()
        self._projected = state["projected"].to(self._device).clone()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Two masks, a known phase and a step in it."""
        for name in ("begin", "projected"):
            check_mask(name, state[name], self._num_units)
        if state["mode"] not in ("proximal", "half-space") or not 0 <= int(state["place"]) < self._length:
            raise ValueError("its phase, or the step in it, is not one of this schedule's")
        if not 0 <= float(state["epsilon"]) <= float(state["ceiling"]) <= MOST or not isinstance(state["again"], bool):
            raise ValueError("its epsilon is out of bounds")


class AdaHSPG(Method):
    """AdaHSPG+ on any optimizer: minimises loss + penalty * sum over units of ||x_g||, and ends sparse.

    From step ``schedule.start`` to ``schedule.until`` two kinds of phases take turns, ``schedule.periods`` in all, with
    x the weights of a unit before the optimizer's step and y those after it:

    * *proximal*: x <- the prox of lr * penalty * ||.|| at y (group soft threshold). It may bring any unit to zero, and
      may bring zeros back. If it brought more back than it removed, the support is still being sought: one more
      proximal phase follows before the next half-space phase;
    * *half-space*, for units that are not zero: both the optimizer's step and that on the penalty are shortened by
      s = 1 / (1 + j / n) on step j of the phase's n. A unit further from zero than a step on the penalty reaches takes
      the trial step x + s (y - x - lr * penalty * x / ||x||), and is set to zero if <trial, x> < epsilon * ||x||^2;
      one that is nearer takes the proximal step. Zeros stay zero.

    ``epsilon`` starts at 0 and adapts: if the proximal phases bring back a unit that the half-space phase before them
    had set to zero, that was a mistake, and epsilon is halved and never exceeds that again; else it grows by 0.1, to at
    most 0.95. So mistakes end, and with them the projections leave the convergence of the proximal steps alone.

    The paper's proximal steps reduce their variance by full gradients at anchor points (Prox-SVRG), which a user's loop
    does not give: here the base optimizer's momentum has that part. After ``until`` everything that is not zero trains
    plainly.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any optimizer that holds all parameters of the space. The steps have its learning rates; where they
            differ within a unit, the prox is the exact one of that metric.
        budget: what must hold at the end, or None: what vanishes by itself. It is met as `HSPG` meets it.
        schedule: the first and last step, and the number of phases.
        penalty: the weight of the norms, the papers' lambda. By itself it takes lr * penalty off the norm of a unit in
            every step: where that adds up to little by ``until``, few units vanish, and the budget's threshold decides.
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
    >>> schedule = niwaki.Schedule(start=1, until=40, periods=4)
    >>> method = niwaki.AdaHSPG(space, optimizer, niwaki.Budget(macs=0.5), schedule, penalty=0.1)
    >>> for _ in range(40):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> method.progress.phase, method.progress.macs <= 0.5
    ('done', True)
    """

    name, label = "adahspg", "AdaHSPG+"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget | None,
        schedule: Schedule,
        *,
        penalty: float = 1e-3,
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        check_number("penalty", penalty, 0, float("inf"), "it weighs the norms of the units against the loss")
        units = TrainedUnits(self.label, space, optimizer, vectorised)
        Schedule.check(schedule, self.label)
        target = Target.of(space, budget)
        selector = Vanishing(units, target, schedule, Everything(units, target, first=schedule.start))
        super().__init__(units, selector, Alternating(units, schedule, float(penalty)), shrink)


register(AdaHSPG.name, lambda t: AdaHSPG(t.space, t.optimizer, t.budget, t.schedule, shrink=t.shrink))
