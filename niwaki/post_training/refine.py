"""Change how much each group keeps, at equal cost, as long as the outputs come nearer to those of the dense network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.choosing import compared
from niwaki.core.counts import FloatArray
from niwaki.core.plan import Plan
from niwaki.core.scalars import is_number, is_whole
from niwaki.core.space import SearchSpace, check_space
from niwaki.criteria.mix import finite
from niwaki.criteria.normalise import Compare
from niwaki.criteria.score import Scores
from niwaki.errors import MethodError
from niwaki.post_training.distillation import Forward, divergence, evaluated, logits_of, plainly
from niwaki.post_training.iterative import REPAIRS, Repair
from niwaki.repair.batchnorm import reestimate_norms
from niwaki.repair.compensate import compensate
from niwaki.selection import UNITS, SelectionRequest
from niwaki.selection.budget import Budget, check_budget, check_left, followed, provenance
from niwaki.surgery.cut import cut

_HELD_OUT = 4  # one of so many batches decides in the end


def refine(
    space: SearchSpace,
    scores: Scores,
    budget: Budget,
    batches: Iterable[Any],
    forward: Forward | None = None,
    *,
    repair: Repair = "compensate",
    compare: Compare | None = None,
    sweeps: int = 1,
    step: float = 1.5,
    told: Callable[[int, int, float], object] | None = None,
) -> Plan:
    """The plan of `niwaki.choose`, with the budget shared out among the groups by trial.

    Scores rank the units of a group well, and say less of how much a whole group matters. One group after the other is
    made to count ``step`` times as much, or less, which moves the budget between it and all others; the network is cut
    and repaired, and the change stays if the outputs are nearer to those of the dense network: KL(dense || small) on
    three quarters of the batches. On the last quarter the result is compared with the plan of `niwaki.choose`, and the
    better one is returned: there, it is never worse.

    Args:
        space: the search space; its units are chosen, not structures.
        scores: from `niwaki.score`.
        budget: limits that need no measurement.
        batches: two or more, all of which are held.
        forward: how to run a network on a batch, for its logits, as for `niwaki.distillation`.
        repair: what is done to each network before it is compared: ``compensate``, ``norms`` or ``none``. It should be
            what is done to the result.
        compare: as for `niwaki.choose`.
        sweeps: how often all groups are tried.
        step: above 1.
        told: is called after each group with its number, the number of trials, and the divergence reached.

    It costs up to three trials for each group and sweep: a repair, and a forward pass.

    Raises:
        MethodError: there are fewer than two batches, or an argument makes no sense.
        BudgetError: the budget cannot be met, or has limits that can only be measured.

    Example:
        >>> import torch, niwaki
        >>> layers = [torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh()]
        >>> net = torch.nn.Sequential(*layers, torch.nn.Linear(16, 3))
        >>> data = list(torch.randn(128, 4).split(32))
        >>> space = niwaki.search_space(net, data[0])
        >>> plan = niwaki.refine(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5), data)
        >>> space.cost(plan).macs <= 0.5 * space.cost().macs
        True
    """
    check_space(space)
    compare = compared(scores, compare)
    check_budget(budget, space=space)
    if repair not in REPAIRS:
        raise MethodError(f"repair={repair!r} is none of {', '.join(map(repr, REPAIRS))}.")
    if not is_whole(sweeps) or sweeps < 1:
        raise MethodError(f"sweeps={sweeps!r} must be a whole number, 1 or more.")
    if not is_number(step) or not 1 < step < float("inf"):
        raise MethodError(f"step={step!r} must be a number above 1.")
    data = list(batches)
    if len(data) < 2:
        raise MethodError(
            f"There {'is one batch' if data else 'are no batches'}. Some choose and others decide: pass two or more."
        )
    values = finite(space, scores.values, scores.criterion)
    limits = budget.absolute(space, followed(space))
    border = len(data) - max(1, len(data) // _HELD_OUT)
    trials = _Distances(space, data[:border], forward or plainly, repair)

    def selected(weight: FloatArray) -> Plan:
        request = SelectionRequest(limits, steps=budget.steps, compare=compare, weight=weight)
        keep = UNITS.select(space, values - min(0.0, values.min(initial=0.0)), request)
        check_left(space, UNITS, keep, limits, budget.steps)
        told_of = {"criterion": scores.criterion, "refined": repair}
        return space.plan(keep, provenance(space, keep, budget, **told_of))

    groups = len(space.groups)
    weight = np.ones(groups)
    first = best = selected(weight)
    least = trials.divergence(best)
    for number in range(sweeps * groups):
        for factor in (step, 1 / step):
            other = weight.copy()
            other[number % groups] *= factor
            plan = selected(other)
            found = trials.divergence(plan)
            if found < least:
                weight, best, least = other, plan, found
                break
        if told is not None:
            told(number + 1, sweeps * groups, least)
    if best is first:
        return first
    return best if trials.divergence(best, data[border:]) <= trials.divergence(first, data[border:]) else first


class _Distances:
    """Networks that are cut and repaired, and how far they are from the dense one; each plan is tried once."""

    def __init__(self, space: SearchSpace, batches: Sequence[Any], forward: Forward, repair: Repair) -> None:
        self._space, self._batches, self._forward, self._repair = space, batches, forward, repair
        self._known: dict[tuple[tuple[int, ...], ...], float] = {}
        self._dense: list[Tensor] = []  # the logits of the dense network, of the batches of the repair

    def divergence(self, plan: Plan, batches: Sequence[Any] | None = None) -> float:
        """The mean KL(dense || small) over ``batches``, by default those of the repair."""
        key = tuple(tuple(kept) for kept in plan.kept.values())
        if batches is None and key in self._known:
            return self._known[key]
        small, model = self._small(plan), self._space.model
        if batches is None:
            self._dense = self._dense or [self._logits(model, batch) for batch in self._batches]
            pairs = list(zip(self._batches, self._dense, strict=True))
        else:
            pairs = [(batch, self._logits(model, batch)) for batch in batches]
        mean = sum(float(divergence(self._logits(small, batch), dense, 1.0)) for batch, dense in pairs) / len(pairs)
        if batches is None:
            self._known[key] = mean
        return mean

    def _small(self, plan: Plan) -> nn.Module:
        if self._repair == "compensate":
            made = compensate(self._space, plan, self._batches, forward=self._forward)
            return cut(made.model, plan)
        small = cut(self._space.model, plan)
        if self._repair == "norms":
            reestimate_norms(small, self._batches, self._forward)
        return small

    def _logits(self, model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad(), evaluated(model):
            return logits_of(model, self._forward(model, batch))
