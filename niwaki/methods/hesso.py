"""HESSO: fade the least salient units to zero while all others train as they would have (arXiv 2409.09085)."""

from __future__ import annotations

from typing import Literal

from torch.optim import Optimizer

from niwaki.core.space import SearchSpace
from niwaki.criteria.normalise import Compare
from niwaki.methods.fades import fade_named
from niwaki.methods.method import Method
from niwaki.methods.parts import Target
from niwaki.methods.portions import Portions, PortionScores
from niwaki.methods.registry import register
from niwaki.methods.schedule import Schedule
from niwaki.methods.scoring import WEIGHTS, Criteria
from niwaki.methods.separation import Separation
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.stable_scores import StableScores
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.window_scores import WindowScores
from niwaki.selection import removal_named
from niwaki.selection.budget import Budget, check_budget


class HESSO(Method):
    """HESSO on any optimizer.

    In each period: the units that matter least by a weighted sum of criteria are marked, as many as bring the cost an
    equal share nearer to the budget. Then every unit takes the optimizer's own step, and the marked ones are multiplied
    by (T - t - 1) / (T - t) on step t = 0 ... T - 1 of the period, which fades what they hold linearly to exact zero.
    Zeros stay zero. Unmarked units take the bare optimizer's step, to the bit.

    What differs from the released code: each criterion is averaged over ``window`` steps before a selection and divided
    by its mean in the group, or whatever ``compare`` says; Taylor terms use the gradient; the cosine has the sign of
    DHSPG; selections respect costs, divisibility and the least size of every group.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any ``torch.optim`` optimizer that holds all parameters of the space. None of them may be frozen
            (``requires_grad=False``), since units fade in all of their parameters: pin frozen ones with ``ignored``.
        budget: what must hold after ``schedule.until`` steps.
        schedule: when; see `Schedule`.
        criteria: criteria and their weights, by default ``HESSO.CRITERIA``; or one function of the space, which returns
            [num_units] values, the larger the more the network needs the unit. Such functions may stand in the mix as
            well. They are called, without gradients, after each step of a window, when weights are new and ``.grad`` is
            what the step consumed.
        window: over how many steps criteria are averaged before each selection.
        readmit: choose once more in the middle of each period of four steps or more, among all units that are not yet
            zero: one that has begun to fade returns if it would be kept now, by its scores as if it had not faded.
            Off, as in the paper, selections are final.
        compare: with which others each unit is compared, as for `niwaki.score` and `niwaki.choose`: those of its
            ``"group"`` (the default), all ``"isomorphic"`` ones, or the whole ``"space"``; ``"layer"`` compares in the
            group what every layer has scored by itself.
        remove: ``"structures"`` fades whole structures, of a space made with ``erase=True``, instead of units: those of
            the least score per cost, as long as outputs follow from inputs. They are compared in the whole ``"space"``.
            ``"both"``: units and structures, whichever is worth less for what it costs; see `niwaki.choose`.
            Terms without parameters fade by their gates.
        seed: for criteria that draw.
        separate: let a penalty grow on all units before the first is chosen, as GReg-2 does, which by itself would
            leave this share of each (such as 0.65): those that the loss holds in place stay large; see `Separation`.
            None, as in the paper, leaves them to the optimizer.
        shrink: True lets units that have reached zero leave the model in place as soon as that pays, so that the rest
            of the training is cheaper; see `ShrinkPolicy`.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met.
        MethodError: the optimizer does not fit the space, the window or a weight is not a number that makes sense, or
            later: the training diverged before a selection.
        UnknownName: there is no criterion of that name, or nothing that ``remove`` could mean.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.5), niwaki.Schedule(start=2, until=12, periods=2))
    >>> for _ in range(12):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> method.progress.phase, method.progress.macs
    ('done', 0.5)
    >>> small = niwaki.cut(model, method.plan())
    """

    name, label = "hesso", "HESSO"
    CRITERIA = WEIGHTS

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        criteria: Criteria = WEIGHTS,
        window: int = 10,
        readmit: bool = False,
        compare: Compare | None = None,
        remove: Literal["units", "structures", "both"] = "units",
        seed: int = 0,
        separate: float | None = None,
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        check_budget(budget, space=space)
        Schedule.check(schedule)
        removal = removal_named(remove)
        units = TrainedUnits(self.label, space, optimizer, vectorised, removal=removal)
        compare = removal.compared(compare)
        target = Target.of(space, budget, removal)
        scores: PortionScores
        first: int | None = None
        if schedule.stable:
            scores = StableScores(units, target, schedule, criteria, window, readmit, seed, compare)
        else:
            acts_from = None if separate is None else 1
            scores = WindowScores(units, schedule, criteria, window, readmit, seed, compare, acts_from)
            first = scores.timeline.borders[0]
        update = Separation.before_first(units, separate, first, fade_named(schedule.fade)(units))
        portions = Portions(units, target, schedule, scores)
        super().__init__(units, portions, update, shrink)


register(
    HESSO.name,
    lambda t: HESSO(t.space, t.optimizer, t.budget, t.schedule, remove=t.remove, shrink=t.shrink),
    erases=True,
)
