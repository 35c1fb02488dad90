"""DHSPG: dual half-space projected gradient (OTOv2, arXiv 2303.06862, Algorithms 2 and 3)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch.optim import Optimizer

from niwaki.core.space import SearchSpace
from niwaki.criteria.normalise import Compare, check_compare
from niwaki.methods.checks import check_number, check_steps
from niwaki.methods.chosen_once import ChosenOnce
from niwaki.methods.method import Method
from niwaki.methods.parts import Target
from niwaki.methods.proximal import dual_penalty, left_half_space
from niwaki.methods.redundancy import Redundancy
from niwaki.methods.registry import register
from niwaki.methods.rule_update import RuleUpdate, follows_gradient
from niwaki.methods.schedule import Schedule
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.vanishing import Vanishing
from niwaki.per_unit.protocol import IterateSums, UnitIterates, UnitUpdate, UpdateRule
from niwaki.selection.budget import Budget, check_budget


@dataclass(frozen=True, slots=True)
class DualHalfSpace(UpdateRule):
    """The half-space step with a penalty of each unit's own (eq. 8)."""

    penalty: float
    amplify: float
    most: float
    epsilon: float

    @property
    def reads(self) -> frozenset[str]:
        """Everything before the step, and the direction."""
        return frozenset({"square", "inner", "weighted", "aligned", "direction"})

    def of_unit(self, unit: UnitIterates) -> UnitUpdate:
        """The algorithm box, for one unit of G_p."""
        x, y, d, lr, norm = unit.x, unit.y, unit.d, unit.lr, unit.x.norm()
        if norm == 0:
            return UnitUpdate(keep=norm.new_zeros(()), penalty_step=norm.new_zeros(()))
        penalty = norm.new_tensor(self.penalty)
        if x @ d < 0:
            least, largest = -(x @ d) / norm, -(d @ d) * norm / (x @ d)
            penalty = (self.amplify * least).clamp(self.penalty, self.penalty * self.most)
            if penalty >= largest:
                penalty = (least + largest) / 2
        trial = y - lr * penalty * x / norm
        return UnitUpdate(keep=(trial @ x >= self.epsilon * (x @ x)).to(norm), penalty_step=penalty / norm)

    def of_sums(self, sums: IterateSums) -> UnitUpdate:
        """The same for all units of G_p."""
        norm = sums.square.sqrt()
        alive = norm > 0
        penalty = dual_penalty(sums.aligned, norm, sums.direction, self.penalty, self.amplify, self.most)
        pull = torch.where(alive, penalty / norm, 0)
        ends = ~alive | left_half_space(sums.inner - pull * sums.weighted, sums.square, self.epsilon)
        return UnitUpdate(keep=(~ends).to(norm), penalty_step=pull)


def usual_penalty(
    optimizer: Optimizer, penalty: float | None, amplify: float | None, most: float | None
) -> tuple[float, float, float]:
    """The numbers of the penalty, those that are None as published for this kind of optimizer.

    Raises:
        MethodError: one of them makes no sense.
    """
    usual = (1e-3, 2.0, 10.0) if follows_gradient(optimizer) else (1e-2, 20.0, 1e3)
    penalty = usual[0] if penalty is None else penalty
    amplify = usual[1] if amplify is None else amplify
    most = usual[2] if most is None else most
    check_number("penalty", penalty, 0, math.inf, "it weighs the norms of the chosen units against the loss")
    check_number("amplify", amplify, 1, math.inf, "it multiplies the least penalty that shrinks a unit")
    check_number("most", most, 1, math.inf, "it caps the penalty of a unit, in penalties")
    return float(penalty), float(amplify), float(most)


class DHSPG(Method):
    """DHSPG on any optimizer: the most redundant units are chosen once and driven to zero; the rest trains plainly.

    With x the weights of a unit, d the direction in which the optimizer moves it (without decoupled weight decay), and
    y = x - lr d the weights after its step:

    * redundancy 0.5 c + 0.5 a, from c = cos(x, d), which is large where training shrinks the unit, and a = |g| / ||x||,
      each over its L2 norm (eq. 5), averaged over the ``window`` steps from ``schedule.start``;
    * then the most redundant units form G_p, as many as bring the network ``tolerance`` below the budget. All others
      take the bare optimizer's step from beginning to end, to the bit;
    * on G_p, until the budget is met: trial = y - lr * penalty_g * x / ||x||, and x <- 0 if
      <trial, x> < epsilon * ||x||^2 (eqs. 6 and 7); penalty_g is large enough that ||x|| shrinks and small enough
      that the step still descends along d (eq. 8): penalty where <x, d> >= 0, else ``amplify`` times the least that
      shrinks, between ``penalty`` and ``most`` * penalty, or the middle of the interval if that is past its end;
    * at ``until`` what is left of G_p, smallest first, is set to zero as far as the budget asks for it.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any optimizer that holds all parameters of the space.
        budget: what must hold at the end. ``Budget(units=1 - K / N)`` with ``compare="space"`` is the paper's.
        schedule: ``start`` is the first step of the window; the target must be reached at ``until``. Its periods mean
            nothing here.
        penalty: lambda. By default 1e-3 for SGD and 1e-2 for optimizers that normalise the gradient, as published.
        amplify: its amplification, 2 and 20.
        most: its cap in lambdas, 10 and 1e3.
        epsilon: how readily units are set to zero, from 0 to below 1.
        tolerance: how much more than the budget asks for G_p may be, as a share of the dense network.
        window: over how many steps the redundancy is averaged (the paper looks at one mini-batch).
        compare: ``"space"`` ranks all units together, as published, and may all but empty a layer; ``"group"`` compares
            units within their groups, ``"isomorphic"`` within all groups of the same layers in the same arrangement. A
            cosine has no parts, so there is no ``"layer"``.
        shrink: True lets units that have reached zero leave the model in place as soon as that pays, so that the rest
            of the training is cheaper; see `ShrinkPolicy`.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met, or there is none.
        MethodError: the optimizer does not fit the space, a number makes no sense, or later: the training diverged.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    >>> method = niwaki.DHSPG(space, optimizer, niwaki.Budget(macs=0.5), niwaki.Schedule(start=5, until=40))
    >>> for _ in range(40):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> method.progress.phase, method.progress.macs <= 0.5
    ('done', True)
    """

    name, label = "dhspg", "DHSPG"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        penalty: float | None = None,
        amplify: float | None = None,
        most: float | None = None,
        epsilon: float = 0.9,
        tolerance: float = 0.05,
        window: int = 10,
        compare: Compare = "group",
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        penalty, amplify, most = usual_penalty(optimizer, penalty, amplify, most)
        check_number("epsilon", epsilon, 0, 1, "it is the share of a unit that must be left after a step")
        check_number("tolerance", tolerance, 0, 1, "it is a share of the dense network")
        check_steps("window", window, "redundancy is averaged over it")
        check_compare(compare, ("group", "isomorphic", "space"))
        units = TrainedUnits(self.label, space, optimizer, vectorised)
        check_budget(budget, space=space)
        Schedule.check(schedule, self.label)
        target = Target.of(space, budget)
        scores = Redundancy(units, target, compare)
        choice = ChosenOnce(units, target, schedule, scores, float(tolerance), int(window))
        rule = DualHalfSpace(penalty, amplify, most, float(epsilon))
        update = RuleUpdate(units, lambda step, left: rule, lambda step: "half-space", asdict(rule))
        super().__init__(units, Vanishing(units, target, schedule, choice), update, shrink)


register(DHSPG.name, lambda t: DHSPG(t.space, t.optimizer, t.budget, t.schedule, shrink=t.shrink))
