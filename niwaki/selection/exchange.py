"""Make up for what a greedy selection of structures wastes: they are few and large, and do not fill a budget."""

from __future__ import annotations

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.selection.objective import costs
from niwaki.selection.request import SelectionRequest
from niwaki.selection.structures import erasable, erase_structures

_UNUSED = 0.01  # of a limit: less than that is not worth another look
_TRIALS = 16  # structures that stay on trial, in each round
_ROUNDS = 8


def exchange_structures(space: SearchSpace, saliency: FloatArray, request: SelectionRequest) -> BoolArray:
    """The units to keep, [num_units]: what `erase_structures` keeps, or other structures that are worth more.

    Where the greedy selection leaves more than 1 % of every limit unused, each of the most salient structures that it
    erases stays on trial, and it selects again among the others. Of the choices that meet all limits the one that
    erases least saliency is gone on with, as long as there is a better one.
    """
    limits, held, there = request.limits, request.held(space), request.present(space)
    keep = erase_structures(space, saliency, request)
    model, units = space.cost_model.merged(), erasable(space, request.untrained)

    def unused(kept: BoolArray) -> float:
        return min((1 - cost / limits[m] for m, cost in costs(model, kept, limits).items() if limits[m]), default=0.0)

    def outermost(kept: BoolArray) -> list[int]:
        assert space.erasures is not None
        gone = {number for number, unit in units.items() if there[unit] and not kept[unit]}
        return [units[number] for number in gone if gone.isdisjoint(space.erasures.around(number)[1:])]

    def erased(kept: BoolArray) -> float:
        return float(saliency[outermost(kept)].sum())

    for _ in range(_ROUNDS):
        if unused(keep) <= _UNUSED:
            break
        found = []
        for unit in sorted(outermost(keep), key=lambda unit: -saliency[unit])[:_TRIALS]:
            also = held.copy()
            also[unit] = True
            found.append((erase_structures(space, saliency, request.holding(also)), also))
        better = [(erased(kept), place) for place, (kept, _) in enumerate(found) if unused(kept) >= 0]
        least, place = min(better, default=(np.inf, 0))
        if least >= erased(keep):
            break
        keep, held = found[place]
    return keep
