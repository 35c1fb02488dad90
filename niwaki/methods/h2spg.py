"""H2SPG: hierarchical half-space projected gradient, which erases whole structures (OTOv3, arXiv 2312.09411)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from torch.optim import Optimizer

from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError
from niwaki.methods.checks import check_number, check_steps
from niwaki.methods.chosen_once import ChosenOnce, OnceScores
from niwaki.methods.dhspg import DualHalfSpace, usual_penalty
from niwaki.methods.method import Method
from niwaki.methods.mixed_once import MixedOnce
from niwaki.methods.parts import Target
from niwaki.methods.redundancy import Redundancy
from niwaki.methods.registry import register
from niwaki.methods.rule_update import RuleUpdate
from niwaki.methods.schedule import Schedule
from niwaki.methods.scoring import Criteria
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.vanishing import Vanishing
from niwaki.methods.window_scores import Sampler
from niwaki.selection import UNITS, removal_named
from niwaki.selection.budget import Budget, check_budget


class H2SPG(Method):
    """H2SPG on any optimizer: redundant structures are chosen once, as a valid set, and driven to zero; the rest trains
    plainly.

    * With x all weights that die with a structure and d the direction in which the optimizer moves them, redundancy
      0.5 c + 0.5 a, from c = cos(x, d) and a = sqrt(|x|) / ||x||, each over its L2 norm, is averaged over the
      ``window`` steps from ``schedule.start``: s <- memory s + (1 - memory) s_t, from s = 0. (The paper's |x| / ||x||
      is larger for larger structures.) Norms and angles do not see what the loss depends on: with ``criteria``, HESSO's
      scores choose instead.
    * Then structures are erased in thought, by decreasing redundancy, each if every output still follows from an input
      without it and skipped otherwise, until the budget is met: G_p. (With ``criteria``: the valid structures of the
      least score in all, as `niwaki.choose` finds them.) All weights outside of it take the bare optimizer's step from
      beginning to end, to the bit.
    * The weights that make the results of G_p take DHSPG's half-space step, see `niwaki.DHSPG`, until the budget is
      met; at ``until`` what is left of them is set to zero. All else goes with the cut. A term without parameters has
      a gate, one weight of value 1, which takes this step with its own gradient; its redundancy follows from its effect
      on the loss (`niwaki.score` says how).

    Args:
        space: the search space of the model that ``optimizer`` trains, made with ``erase=True``.
        optimizer: any optimizer that holds all parameters of the space.
        budget: what must hold at the end.
        schedule: ``start`` is the first step of the window; the target must be reached at ``until``. Its periods mean
            nothing here.
        criteria: None for the paper's redundancy; or what chooses in its place, as for `niwaki.HESSO`: criteria and
            their weights, or a function of the space. ``niwaki.HESSO.CRITERIA`` is the mix of HESSO.
        penalty: as for `DHSPG`.
        amplify: as for `DHSPG`.
        most: as for `DHSPG`.
        epsilon: as for `DHSPG`.
        tolerance: how much more than the budget asks for G_p may be, as a share of the dense network.
        window: over how many steps the redundancy, or each criterion, is averaged.
        memory: how much of the average is left after one more step, from 0 (the mean over the window) to below 1.
        remove: ``"both"`` chooses units beside structures, by DHSPG's redundancy in their groups or by ``criteria``,
            whichever is worth less for what it costs; see `niwaki.choose`.
        seed: for criteria that draw.
        shrink: True lets what has reached zero for good leave the model in place as soon as that pays, so that the rest
            of the training is cheaper; see `ShrinkPolicy`.
        vectorised: False runs the plain loop over structures, which is the specification.

    Raises:
        BudgetError: no valid choice of structures meets the budget, or the space has no structure to erase.
        MethodError: the optimizer does not fit the space, a number makes no sense, or later: the training diverged.

    >>> import niwaki, torch
    >>> class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b, self.head = (torch.nn.Linear(4, n) for n in (4, 4, 2))
    ...     def forward(self, x):
    ...         x = x + self.a(x)
    ...         return self.head(x + self.b(x))
    >>> model = Net()
    >>> space = niwaki.search_space(model, torch.randn(2, 4), erase=True)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> method = niwaki.H2SPG(space, optimizer, niwaki.Budget(macs=0.7), niwaki.Schedule(start=5, until=40))
    >>> for _ in range(40):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> small = niwaki.cut(model, method.plan())
    >>> sum(p.numel() for p in small.parameters())
    30
    """

    name, label = "h2spg", "H2SPG"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        criteria: Criteria | None = None,
        penalty: float | None = None,
        amplify: float | None = None,
        most: float | None = None,
        epsilon: float = 0.9,
        tolerance: float = 0.0,
        window: int = 10,
        memory: float = 0.9,
        remove: Literal["structures", "both"] = "structures",
        seed: int = 0,
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        check_number("epsilon", epsilon, 0, 1, "it is the share of a unit that must be left after a step")
        check_number("tolerance", tolerance, 0, 1, "it is a share of the dense network")
        check_number("memory", memory, 0, 1, "it is the share of an average that is left after one more step")
        check_steps("window", window, "scores are averaged over it")
        removal = removal_named(remove)
        if removal is UNITS:
            raise MethodError("H2SPG erases structures, perhaps beside units. For units alone use niwaki.DHSPG.")
        rule = DualHalfSpace(*usual_penalty(optimizer, penalty, amplify, most), float(epsilon))
        check_budget(budget, space=space)
        units = TrainedUnits(self.label, space, optimizer, vectorised, removal=removal)
        Schedule.check(schedule, self.label)
        target = Target.of(space, budget, removal)
        compare = removal.compared(None)
        scores: OnceScores
        if criteria is None:
            scores = Redundancy(units, target, compare)
        else:
            scores = MixedOnce(units, target, Sampler(units, criteria, window, seed, compare))
        choice = ChosenOnce(units, target, schedule, scores, float(tolerance), int(window), float(memory))
        update = RuleUpdate(units, lambda step, left: rule, lambda step: "half-space", asdict(rule))
        super().__init__(units, Vanishing(units, target, schedule, choice), update, shrink)


register(
    H2SPG.name,
    lambda t: H2SPG(
        t.space, t.optimizer, t.budget, t.schedule, remove="both" if t.narrow else "structures", shrink=t.shrink
    ),
    erases=True,
    narrows=False,
)
