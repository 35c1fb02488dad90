"""Choose structures to erase: those worth least for what they cost, as long as what is left is a valid network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.core.structures import Erasures
from niwaki.errors import BudgetError
from niwaki.selection.objective import costs, mixed, prices


def erase_structures(space: SearchSpace, saliency: FloatArray, limits: Mapping[str, float]) -> BoolArray:
    """The units to keep, [num_units], where whole structures go until every one of ``limits`` is met, or no other can.

    H2SPG's greedy selection (Only-Train-Once v3, section 3.3): by increasing saliency, here over the cost that erasing
    saves beside what is erased already, each is erased if outputs still follow from inputs without it, and skipped
    otherwise. What is inside of an erased structure costs nothing more, and is not asked for. ``saliency`` [num_units]
    is not negative.
    """
    keep = np.ones(space.num_units, dtype=bool)
    groups = {group.structure: group.first for group in space.groups if group.structure is not None}
    if space.erasures is None or not groups:
        return keep
    model, trial = space.cost_model.merged(), space.erasures.trial()
    dense = costs(model, keep, limits)
    nested = {number for number in groups if len(space.erasures.around(number)) > 1}
    waiting, priced = list(groups), False
    while waiting:
        over = {m: cost - limits[m] for m, cost in costs(model, keep, limits).items() if cost > limits[m]}
        if not over:
            break
        if not priced:  # what a structure costs changes only with those inside of it
            price = mixed(prices(model, keep, over), dense, over)
            waiting.sort(key=lambda number: (saliency[groups[number]] / price[groups[number]], number), reverse=True)
        number = waiting.pop()
        priced = True
        if trial.erase(number) is None:
            keep[groups[number]] = False
            priced = number not in nested
            inside = {one for one in nested.intersection(waiting) if number in space.erasures.around(one)}
            keep[[groups[one] for one in inside]] = False
            waiting = [one for one in waiting if one not in inside] if inside else waiting
    return keep


def check_erased(space: SearchSpace, keep: BoolArray, limits: Mapping[str, float]) -> None:
    """Raise `BudgetError` if ``keep``, the result of `erase_structures`, costs more than ``limits``, or there is
    nothing to erase."""
    erasable = [one for one in space.structures if one.erasable]
    if not erasable:
        raise BudgetError(
            f"There is no structure that could be erased: {_why_none(space.erasures)} Use remove='units' to make "
            "layers narrower."
        )
    for measure, reached in costs(space.cost_model, keep, limits).items():
        if reached > limits[measure]:
            dense = costs(space.cost_model, np.ones_like(keep), limits)[measure]
            erased = sum(1 for group in space.groups if group.structure is not None and not keep[group.first])
            limit = f"{measure} <= {limits[measure]:,.0f} ({limits[measure] / dense:.1%} of {dense:,.0f})"
            raise BudgetError(
                f"The budget {limit} cannot be met by erasing: without {erased} of {len(erasable)} structures "
                f"{reached:,.0f} ({reached / dense:.1%}) remain, and no other can go beside them. Ask for more "
                f"{measure}, or make layers narrower too."
            )


def _why_none(erasures: Erasures | None) -> str:
    if erasures is None or not erasures.listed:
        return "the search space was made without erase=True, or no result of the network joins others by an addition."
    reasons = dict.fromkeys(f"{one.name}: {one.refused}" for one in erasures.listed if one.refused)
    return f"{'; '.join(list(reasons)[:2])}."
