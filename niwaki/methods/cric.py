"""HESSO-CRIC: HESSO whose choice is tried, corrected and taken back before anything leaves (arXiv 2409.09085)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch.optim import Optimizer

from niwaki.core.space import SearchSpace
from niwaki.criteria.normalise import Compare
from niwaki.methods.fades import fade_named
from niwaki.methods.method import Method
from niwaki.methods.parts import Target
from niwaki.methods.portions import Portions
from niwaki.methods.registry import register
from niwaki.methods.schedule import Schedule
from niwaki.methods.scoring import WEIGHTS
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.tried_scores import TriedScores
from niwaki.selection import removal_named
from niwaki.selection.budget import Budget, check_budget


class CRIC(Method):
    """HESSO-CRIC on any optimizer: before anything leaves, what would leave is tried.

    A saliency that looks at the weights as they are can call a unit redundant that the network cannot do without, and
    no training repairs its loss. So, beginning with the window that ends at step ``schedule.start + window - 1``:

    * V = the units that the budget would remove by HESSO's scores; H = {}. The sensitivity of each layer (group): the
      loss with its lowest 25, 50 and 75 % at zero, without any step. All weights, buffers and the optimizer's state
      are remembered.
    * A cycle of S steps: the units of V fade to zero as in HESSO while all others train. Every step scores every unit;
      the weights of V count as if they had not faded, so that <x, gradient> is followed along the whole way to the
      origin, where its mean is what the unit contributes to the loss of the removal. Units that come to be among those
      that the budget would remove are noted. Then everything is as it was before the cycle, H <- H + V, and
      V <- the noted units that are not in H.
    * It ends when V is no more than ``tolerance``, or after ``cycles`` cycles; H only grows.
    * Then units leave as in HESSO. The score of a unit is the mean of all its samples along the way, and layers count
      by their sensitivity. As training goes on meanwhile, a window precedes each selection p = 1 ... P - 1 of
      P = ``schedule.periods`` and takes part with the share p / P (with one period, as published, there is none).

    The steps of the cycles are taken back, so this many steps of the training are spent on the choice. While a cycle
    runs the model is on trial: look at its accuracy before or after. `detach` takes an open cycle back.

    What differs from the released code, which cannot be reached from its API and zeroes V in one step: see HESSO.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any ``torch.optim`` optimizer that holds all parameters of the space.
        budget: what must hold after ``schedule.until`` steps.
        schedule: when; the cycles are among its steps.
        loss: the loss of some data as the model is now, such as ``lambda: loss_fn(model(x), y)`` with the x and y of
            the loop (or a batch held out). Called once at step ``start + window - 1`` and 3 times per layer, without
            gradients, in the mode that the model is in then. By default the closure that ``optimizer.step`` is given.
        cycle: S, steps per cycle. By default such that all cycles together take an eighth of the schedule, but four at
            least.
        cycles: the most cycles there may be; there are fewer where the schedule, or by default that eighth, has no room
            for them.
        tolerance: the share of all units below which V is not worth a cycle.
        layers: how much the sensitivity of layers counts, from 0 (not at all; no loss is needed) to below 1.
        criteria: registered criteria and their weights.
        window: over how many steps criteria are averaged before V is chosen, and for each look at who is among the
            lowest within a cycle.
        compare: with which others each unit is compared, as for `niwaki.score` and `niwaki.choose`: those of its
            ``"group"``, all ``"isomorphic"`` ones, or the whole ``"space"``; ``"layer"`` compares in the group what
            every layer has scored by itself. In the whole space a unit counts by its score times the sensitivity of its
            layer.
        remove: ``"structures"`` tries and fades whole structures, of a space made with ``erase=True``, instead of
            units, and layers do not count. ``"both"``: units and structures, whichever is worth less for what it costs;
            see `niwaki.choose`. Terms without parameters fade by their gates.
        seed: for criteria that draw.
        shrink: True lets units that have reached zero leave the model in place as soon as that pays, so that the rest
            of the training is cheaper; see `ShrinkPolicy`.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met.
        MethodError: the optimizer does not fit the space, a number makes no sense, the schedule has no room for a
            cycle, or later: there is no loss, it is not a finite scalar, or the training diverged before a selection.
        UnknownName: there is no criterion of that name, or nothing that ``remove`` could mean.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> budget, schedule = niwaki.Budget(macs=0.5), niwaki.Schedule(start=2, until=40, periods=2)
    >>> method = niwaki.CRIC(space, optimizer, budget, schedule, loss=lambda: model(x).square().mean())
    >>> for _ in range(40):
    ...     x = torch.randn(8, 4)
    ...     optimizer.zero_grad()
    ...     model(x).square().mean().backward()
    ...     optimizer.step()
    >>> method.progress.phase, method.progress.macs
    ('done', 0.5)
    >>> small = niwaki.cut(model, method.plan())
    """

    name, label = "hesso-cric", "HESSO-CRIC"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        loss: Callable[[], Any] | None = None,
        cycle: int | None = None,
        cycles: int = 10,
        tolerance: float = 0.01,
        layers: float = 0.5,
        criteria: Mapping[str, float] = WEIGHTS,
        window: int = 10,
        compare: Compare | None = None,
        remove: Literal["units", "structures", "both"] = "units",
        seed: int = 0,
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        check_budget(budget, space=space)
        Schedule.check(schedule, self.label)
        removal = removal_named(remove)
        units = TrainedUnits(self.label, space, optimizer, vectorised, removal=removal)
        compare = removal.compared(compare)
        target = Target.of(space, budget, removal)
        scores = TriedScores(
            units, target, schedule, criteria, window, seed, loss, cycle, cycles, tolerance, layers, compare
        )
        super().__init__(units, Portions(units, target, schedule, scores), fade_named(schedule.fade)(units), shrink)


register(
    CRIC.name,
    lambda t: CRIC(t.space, t.optimizer, t.budget, t.schedule, loss=t.loss, remove=t.remove, shrink=t.shrink),
    erases=True,
)
