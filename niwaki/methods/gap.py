"""GaP: a sparse network grown and pruned part by part (arXiv 2106.09857)."""

from __future__ import annotations

from collections.abc import Mapping

from torch.optim import Optimizer

from niwaki.core.scalars import is_whole
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError
from niwaki.methods.checks import check_steps
from niwaki.methods.grow_and_prune import GrowAndPrune, NoUpdate, bundles_of, parts_of
from niwaki.methods.method import Method
from niwaki.methods.parts import Target
from niwaki.methods.registry import register
from niwaki.methods.schedule import Schedule
from niwaki.methods.scoring import Criteria
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.trained_units import TrainedUnits
from niwaki.selection.budget import Budget, check_budget

CRITERIA: Mapping[str, float] = {"magnitude": 0.5, "taylor2": 0.5}


class GaP(Method):
    """GaP (scheduled grow-and-prune, cyclic) on any optimizer: every part of the network is once trained at its full
    width, while the rest is as small as it will be.

    The groups are divided into ``parts`` runs. After the first window, which begins at ``schedule.start``:

    * the least salient units of the whole network are set to zero, as many as the budget asks for;
    * in period p = 1 ... P the zero units of part (p - 1) mod ``parts`` return, and train with the rest; at its end
      this part is pruned again to the budget, with the rest as it is, by scores averaged over ``window`` steps;
    * the last pruning is at the end of step ``schedule.until``; from then on zeros stay zero.

    So a choice is not final: a unit that was set aside in the first network can take the place of another in the last.

    What differs from the paper, which grows single weights from zero: a unit cannot grow from zero (the scale of a norm
    and the kernel before it are zero together, and neither has a gradient then), so it returns with the weights that it
    had when it was set aside; units are chosen by size and a Taylor term, since size alone would mostly choose the same
    ones again; and the network is pruned at once, without a training of its own before.

    A copy of the weights, and of the running statistics of norms, is kept until the end. The network is dense in one
    part at a time, so it cannot be shrunk before the end.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any optimizer that holds all parameters of the space.
        budget: what must hold after ``schedule.until`` steps.
        schedule: ``periods`` is how often a part grows: as many times as there are parts, or more.
        parts: in how many parts the network grows; by default as many as there are periods, or groups of units if these
            are fewer.
        criteria: criteria and their weights, as for `niwaki.HESSO`.
        window: over how many steps they are averaged before each pruning.
        shrink: True lets the units leave the model in place at the end; see `ShrinkPolicy`.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met.
        MethodError: the optimizer does not fit the space, a part would never grow, a number makes no sense, or later:
            the training diverged.

    >>> import niwaki, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> method = niwaki.GaP(space, optimizer, niwaki.Budget(units=0.5), niwaki.Schedule(start=2, until=12, periods=2))
    >>> def train(steps):
    ...     for _ in range(steps):
    ...         optimizer.zero_grad()
    ...         model(torch.randn(8, 4)).square().mean().backward()
    ...         optimizer.step()
    >>> train(6)
    >>> method.progress.phase, method.progress.zero
    ('growing', 4)
    >>> train(6)
    >>> method.progress.phase, method.progress.zero
    ('done', 8)
    """

    name, label = "gap", "GaP"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        parts: int | None = None,
        criteria: Criteria = CRITERIA,
        window: int = 10,
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        check_budget(budget, space=space)
        Schedule.check(schedule, self.label)
        schedule.check_ramp(self.label)
        schedule.check_fade(self.label)
        check_steps("window", window, "scores are averaged over it")
        units = TrainedUnits(self.label, space, optimizer, vectorised)
        parts = _number(parts, schedule.periods, len(bundles_of(space)))
        target, masks = Target.of(space, budget), parts_of(space, parts)
        selector = GrowAndPrune(units, target, schedule, masks, criteria, int(window))
        super().__init__(units, selector, NoUpdate(), shrink)


def _number(parts: int | None, periods: int, bundles: int) -> int:
    """In how many parts the network grows."""
    parts = min(periods, bundles) if parts is None else parts
    if not is_whole(parts) or parts < 1:
        raise MethodError(f"parts={parts!r} must be a whole number, 1 or more: the parts grow one after the other.")
    if parts > periods:
        raise MethodError(
            f"parts={parts}, but the schedule has {periods} periods, in each of which one part grows: some would never "
            "grow. Use fewer parts, or more periods."
        )
    return int(parts)


register(GaP.name, lambda t: GaP(t.space, t.optimizer, t.budget, t.schedule, shrink=t.shrink))
