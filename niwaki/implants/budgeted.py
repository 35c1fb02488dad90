"""Plans with implants within a budget: a share of what goes, or whatever saves most loss for its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.plan import Plan
from niwaki.core.scalars import is_number
from niwaki.core.space import BoolArray, SearchSpace, check_space
from niwaki.criteria.normalise import Compare, check_compare, normalise
from niwaki.criteria.score import Scores
from niwaki.errors import BudgetError
from niwaki.implants.corrected import Measured, corrected
from niwaki.implants.hap import most_sensitive, planned_with, saliency_of
from niwaki.implants.layers import ImplantLayers
from niwaki.implants.limits import latency_left, limits_of, meets
from niwaki.implants.value import ByValue
from niwaki.selection import UNITS
from niwaki.selection.budget import Budget, check_budget, check_met, provenance
from niwaki.selection.levels import leaving
from niwaki.selection.objective import costs
from niwaki.selection.request import SelectionRequest
from niwaki.selection.steps import Widths

_HALVINGS = 12


def choose(
    space: SearchSpace,
    scores: Scores,
    budget: Budget,
    *,
    implants: float | Literal["value"] = "value",
    rank: int | None = None,
    compare: Compare = "space",
    measured: Measured | None = None,
) -> Plan:
    """The plan within ``budget`` that keeps, implants or removes each unit.

    Args:
        space: the search space of a model with convolutions.
        scores: the saliency of each unit: how much the loss grows without it.
        budget: limits on ``macs`` and ``params``, and in a space that is `niwaki.timed` with these implants a fraction
            of the ``latency``, as it is predicted. ``round_to`` holds for all outputs of a layer together; by value,
            for the whole ones and the implants, too, which become convolutions of their own.
        implants: ``"value"`` does for each unit what costs the network least per saved multiply-accumulate (or
            parameter, or nanosecond: where implants save no time there are none). An implant is taken to lose the
            fraction of the unit's score that the entries around the centres of its kernels have of its squared weights.
            Or the fraction of the units that would be removed which are implanted instead, the most sensitive ones, as
            `hap` does; more are removed until the budget is met.
        rank: with it, rows of linear layers and of attention projections are implanted too: all of one layer together
            as the product of two matrices of this rank (4, 8, 16, ...), where that costs less than they do.
        compare: as in `niwaki.choose`. By default scores add up as they are: for criteria that are comparable across
            layers, such as ``relative_hessian_trace``.
        measured: for a limit of the ``latency``: what share of the dense network's latency a network takes. Up to seven
            networks are cut and measured, and the limit of what is predicted is corrected until one is measured to be
            within the limit, and not far below it:
            ``lambda small: niwaki.latency({"dense": model, "small": small}, x).ratios["small"].median``.

    Raises:
        BudgetError: the budget cannot be met, or has other limits; ``implants`` is neither; the scores are of another
            space.
        PlanError: the sizes in the model's code cannot follow the choice, or the space is of a program.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 20, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(20, 1, 3))
        >>> space = niwaki.search_space(net, torch.randn(1, 1, 8, 8))
        >>> plan = choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5), implants=0.25)
        >>> space.cost(plan).macs <= 0.5 * space.cost().macs, niwaki.check(net, plan, torch.randn(1, 1, 8, 8)).holds
        (True, True)
    """
    check_space(space)
    check_compare(compare)
    check_budget(budget, training=False)
    if implants != "value" and not (is_number(implants) and 0 <= implants <= 1):
        raise BudgetError(f"implants={implants!r} must be 'value', or a fraction from 0 to 1 of what would be removed.")
    saliency, layers = saliency_of(space, scores), ImplantLayers.of(space, rank)
    limits = limits_of(layers, budget)
    if measured is not None:
        if budget.latency is None or not callable(measured):
            raise BudgetError(
                "measured= is a function of a network, for a budget that limits the latency. Leave it out."
            )

        def at(share: float) -> Plan:
            return choose(space, scores, replace(budget, latency=share), implants=implants, rank=rank, compare=compare)

        return corrected(at, space.model, float(budget.latency), measured)
    if compare != "space":
        saliency = normalise(space, saliency, np.ones(space.num_units, dtype=bool), compare)
    if isinstance(implants, str):
        keep, slim = _by_value(layers, saliency, limits, budget)
    else:
        keep, slim = _share(layers, saliency, limits, budget, compare, float(implants))
    if not meets(layers, keep, slim, limits):
        check_met(space, space.least_keep(), limits, budget.steps)
        raise BudgetError(
            f"No choice with implants={implants!r} was found within {budget}. Allow fewer implants or a larger budget."
        )
    about = {"criterion": scores.criterion, "implants": implants}
    if compare != "group":
        about["compare"] = compare
    told = provenance(space, keep, budget, **about)
    if "latency" in limits:
        told["predicted"] = {"latency": latency_left(layers, keep, slim)}
    return planned_with(layers, keep, slim, **told)


def _share(
    layers: ImplantLayers,
    saliency: FloatArray,
    limits: Mapping[str, float],
    budget: Budget,
    compare: Compare,
    share: float,
) -> tuple[BoolArray, BoolArray]:
    """So many units are removed, by tighter limits, that the network is within them with the share as implants."""
    space = layers.space

    def at(under: Mapping[str, float]) -> tuple[BoolArray, BoolArray]:
        goes = ~UNITS.select(space, saliency, SelectionRequest(under, steps=budget.steps, compare=compare))
        slim = most_sensitive(saliency, goes & layers.can, int(share * goes.sum()))
        keep = ~leaving(space, goes & ~slim, budget.steps)
        return keep, slim & keep

    return _loosest(layers, at, limits)


def _by_value(
    layers: ImplantLayers, saliency: FloatArray, limits: Mapping[str, float], budget: Budget
) -> tuple[BoolArray, BoolArray]:
    """Steps of the least loss per saved cost. With ``round_to``, by tighter limits, after which units that were removed
    or implanted come back until the whole ones and the implants of every group are such multiples, each for itself."""

    def at(under: Mapping[str, float]) -> tuple[BoolArray, BoolArray]:
        keep, slim = ByValue(layers, saliency, under, budget.min_units).chosen()
        return rounded_up(layers, keep, slim, saliency, budget.steps)

    if budget.steps == Widths(min_units=budget.min_units):
        return ByValue(layers, saliency, limits, budget.min_units).chosen()
    budget.steps.check(layers.space)
    return _loosest(layers, at, limits)


def rounded_up(
    layers: ImplantLayers, keep: BoolArray, slim: BoolArray, saliency: FloatArray, steps: Widths
) -> tuple[BoolArray, BoolArray]:
    """The units to keep and the implants among them, both [num_units]: ``keep`` and ``slim``, rounded up. Units of the
    highest saliency are added until every group has a width that ``steps`` allow, with and without its implants."""
    space = layers.space
    keep = ~leaving(space, ~keep, steps)
    slim = slim & keep
    for group, multiple in zip(space.groups, steps.multiples(space).tolist(), strict=True):
        implants = np.flatnonzero(slim[group.numbers])
        whole = int(keep[group.numbers].sum()) - len(implants)
        back = min(-whole % multiple, len(implants))
        best = implants[np.argsort(-saliency[group.numbers][implants], kind="stable")[:back]]
        slim[group.first + best] = False
    return keep, slim


def _loosest(
    layers: ImplantLayers, at: Callable[[Mapping[str, float]], tuple[BoolArray, BoolArray]], limits: Mapping[str, float]
) -> tuple[BoolArray, BoolArray]:
    """What ``at`` finds with limits that are as tight as they have to be for it to meet ``limits``."""
    space = layers.space
    least = costs(space.cost_model, space.least_keep(), limits)

    def tighter(share: float) -> tuple[BoolArray, BoolArray]:
        return at({name: least[name] + share * max(limit - least[name], 0.0) for name, limit in limits.items()})

    found = tighter(1.0)
    if meets(layers, *found, limits):
        return found
    low, high, found = 0.0, 1.0, tighter(0.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        trial = tighter(middle)
        if meets(layers, *trial, limits):
            low, found = middle, trial
        else:
            high = middle
    return found
