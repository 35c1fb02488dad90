"""Hessian-Aware Pruning: one threshold for the whole network, and implants instead of the most sensitive that go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.plan import Plan
from niwaki.core.scalars import is_number
from niwaki.core.space import BoolArray, SearchSpace, check_space
from niwaki.criteria.mix import finite
from niwaki.criteria.score import Scores
from niwaki.errors import BudgetError
from niwaki.implants.layers import ImplantLayers
from niwaki.implants.limits import latency_left, limits_of, meets
from niwaki.selection.budget import Budget, provenance
from niwaki.selection.levels import leaving
from niwaki.selection.steps import Widths


def hap(
    space: SearchSpace,
    scores: Scores,
    removed: float | Budget = 0.5,
    *,
    implants: float = 0.1,
    least: float = 0.05,
    rank: int | None = None,
) -> Plan:
    """The plan of Hessian-Aware Pruning (arXiv 2101.08940), for scores by ``relative_hessian_trace``.

    The fraction ``removed`` of all units with the lowest scores leaves, wherever they are; every group keeps its best
    ones, at least the fraction ``least`` and one of them. Then the fraction ``implants`` of those that would leave, the
    most sensitive of which can be implanted, stays as implants; rows of linear layers too, with a ``rank``. With a
    budget for ``removed``, in ``macs`` or ``params``, the smallest such fraction that meets it.

    Raises:
        BudgetError: a fraction is out of range, the scores are for another space, or the budget cannot be met or limits
            something else.
        PlanError: the sizes in the model's code cannot follow.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 20, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(20, 1, 3))
        >>> space = niwaki.search_space(net, torch.randn(1, 1, 8, 8))
        >>> plan = hap(space, niwaki.score(space, "magnitude"), 0.5, implants=0.2)
        >>> print(niwaki.cut(net, plan)[0])
        Implanted(
          (whole): Conv2d(1, 10, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          (slim): Conv2d(1, 2, kernel_size=(1, 1), stride=(1, 1))
        )
    """
    check_space(space)
    fractions = {"implants": implants, "least": least}
    if not isinstance(removed, Budget):
        fractions["removed"] = removed
    check_fractions(fractions)
    ranking = _Ranking(ImplantLayers.of(space, rank), saliency_of(space, scores), implants, least)
    about: dict[str, Any] = {"criterion": scores.criterion, "implants": implants, "least": least}
    if not isinstance(removed, Budget):
        keep, slim = ranking.without(math.floor(removed * len(ranking.order)))
        return planned_with(ranking.layers, keep, slim, removed=removed, **about)
    gone = ranking.fewest(removed)
    keep, slim = ranking.without(gone, removed)
    about["removed"] = gone / max(len(ranking.order), 1)
    told = provenance(space, keep, removed, **about)
    if "latency" in removed.limits:
        told["predicted"] = {"latency": latency_left(ranking.layers, keep, slim)}
    return planned_with(ranking.layers, keep, slim, **told)


def check_fractions(values: Mapping[str, object]) -> None:
    """Raise `BudgetError` if one of ``values``, by the name of its argument, is no fraction from 0 to 1."""
    for name, value in values.items():
        if not is_number(value) or not 0 <= value <= 1:
            raise BudgetError(f"{name}={value!r} must be a fraction from 0 to 1.")


class _Ranking:
    """All units of layers, the least sensitive first: ``order``."""

    def __init__(self, layers: ImplantLayers, saliency: FloatArray, implants: float, least: float) -> None:
        self.layers, self._saliency, self._implants, self._least = layers, saliency, implants, least
        order = np.argsort(saliency, kind="stable")
        self.order = order[order < sum(group.units for group in layers.space.width_groups)]

    def without(self, number: int, budget: Budget | None = None) -> tuple[BoolArray, BoolArray]:
        """The units that stay and those of them that are implants, both [num_units], where the ``number`` first ones
        leave; widths are those that ``budget`` allows."""
        space, steps = self.layers.space, Widths() if budget is None else budget.steps
        goes = np.zeros(space.num_units, dtype=bool)
        goes[self.order[:number]] = True
        for group in space.width_groups:
            stays = max(1, math.ceil(self._least * group.units), steps.min_units)
            best = np.argsort(-self._saliency[group.numbers], kind="stable")[:stays]
            goes[group.first + best] = False
        slim = most_sensitive(self._saliency, goes & self.layers.can, math.floor(self._implants * goes.sum()))
        keep = ~leaving(space, goes & ~slim, steps)
        return keep, slim & keep

    def fewest(self, budget: Budget) -> int:
        """How many have to leave for ``budget``.

        Raises:
            BudgetError: it cannot be met, or limits something else than multiply-accumulates and parameters.
        """
        limits = limits_of(self.layers, budget)
        low, high = -1, len(self.order)
        keep, slim = self.without(high, budget)
        if not meets(self.layers, keep, slim, limits):
            left = self.layers.space.cost(planned_with(self.layers, keep, slim))
            raise BudgetError(
                f"The budget ({budget}) cannot be met: with the fraction {self._least} of every group, and the "
                f"fraction {self._implants} of the others as implants, {left} remain. Raise the budget, or lower "
                "`least` or `implants`."
            )
        while high - low > 1:
            middle = (low + high) // 2
            if meets(self.layers, *self.without(middle, budget), limits):
                high = middle
            else:
                low = middle
        return high


def implanted(
    space: SearchSpace, plan: Plan, scores: Scores, implants: float = 0.1, *, rank: int | None = None
) -> Plan:
    """``plan``, a choice of units of ``space``, with implants instead of the fraction ``implants`` of the units that it
    removes, of those that can be implanted the ones of the highest scores; ``rank`` as in `choose`.

    Raises:
        BudgetError: the fraction is out of range, or the scores are for another space.
        PlanError: the plan is of another space, has implants, or the sizes in the model's code cannot follow.
    """
    check_space(space)
    check_fractions({"implants": implants})
    saliency, layers = saliency_of(space, scores), ImplantLayers.of(space, rank)
    goes = ~space.keep_of(plan)
    slim = most_sensitive(saliency, goes & layers.can, math.floor(implants * goes.sum()))
    keep = ~leaving(space, goes & ~slim, Widths())
    return planned_with(layers, keep, slim & keep, **{**plan.provenance, "implants": implants})


def planned_with(layers: ImplantLayers, keep: BoolArray, slim: BoolArray, **about: Any) -> Plan:
    """The plan that keeps the units ``keep`` [num_units], those ``slim`` as implants."""
    space = layers.space
    plan = space.plan(keep, about)
    plan = plan.with_edits(layers.edits(plan, slim))
    dense, cost = space.cost(), space.cost(plan)
    told = {
        key: {"params": one.params, "macs": one.macs, "memory": one.memory}
        for key, one in (("dense", dense), ("kept", cost))
    }
    return replace(plan, provenance={**plan.provenance, **told})


def most_sensitive(saliency: np.ndarray[Any, np.dtype[np.float64]], among: BoolArray, number: int) -> BoolArray:
    """The ``number`` units ``among`` [num_units] of the highest saliency."""
    found = np.zeros(len(saliency), dtype=bool)
    units = np.flatnonzero(among)
    found[units[np.argsort(-saliency[units], kind="stable")[:number]]] = True
    return found


def saliency_of(space: SearchSpace, scores: Scores) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The values of ``scores``, none below 0.

    Raises:
        BudgetError: these are no scores, or scores for another space.
    """
    if not isinstance(scores, Scores) or np.shape(scores.values) != (space.num_units,):
        raise BudgetError(
            f"scores must be what niwaki.score returns for this search space, of {space.num_units} units. Score the "
            "space that you choose from."
        )
    values = finite(space, scores.values, scores.criterion)
    return np.asarray(values - min(0.0, values.min(initial=0.0)), np.float64)
