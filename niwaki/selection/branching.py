"""The best choice of few structures: all valid sets that could be better than what is known, by branch and bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.core.structures import Erasures
from niwaki.selection.objective import costs, mixed, prices
from niwaki.selection.request import SelectionRequest
from niwaki.selection.structures import erasable, erase_structures

_MOST_BLOCKS = 200  # of more, each is so small that a greedy selection wastes little
_MOST_ERASED = 20_000  # structures that are erased in thought, in all sets together: a fraction of a second
_SAME = 1e-9  # of a loss: what loses that much less loses as much


def least_lost(space: SearchSpace, saliency: FloatArray, request: SelectionRequest) -> BoolArray:
    """The units to keep, [num_units]: without what `erase_structures` erases, or without other structures that lose
    less, as long as there are few and the ``request`` does not ask for the order.

    Structures are large, so that a greedy selection may waste much of a budget. What a choice loses is the saliency of
    what it erases, of nested structures that of the outermost.
    """
    keep = erase_structures(space, saliency, request)
    units, there = erasable(space, request.untrained), request.present(space)
    if request.in_order or space.erasures is None or not units or len(units) > _MOST_BLOCKS:
        return keep
    gone = {number for number, unit in units.items() if there[unit] and not keep[unit]}
    outermost = [units[number] for number in gone if gone.isdisjoint(space.erasures.around(number)[1:])]
    reached = costs(space.cost_model, keep, request.limits)
    met = all(cost <= request.limits[measure] for measure, cost in reached.items())
    known = float(saliency[outermost].sum()) if met else np.inf
    better = _Branching(space, space.erasures, request, units, saliency, known).best()
    return keep if better is None else better


class _Branching:
    """All valid sets of structures that lose less than ``known`` and without which all limits are met.

    Structures are decided one after the other, by saliency over cost, those that only go together as one. What is
    decided is given up where the rest could not meet a limit without losing more than the best set that is known, even
    if a fraction of a structure could be erased. This takes structures to save together at most what each saves alone.
    """

    def __init__(
        self,
        space: SearchSpace,
        erasures: Erasures,
        request: SelectionRequest,
        units: Mapping[int, int],
        saliency: FloatArray,
        known: float,
    ) -> None:
        self._erasures, self._limits, self._units = erasures, request.limits, units
        self._model = space.cost_model.merged()
        self._around = {number: frozenset(erasures.around(number)) for number in units}
        self._start, staying = request.present(space), request.held(space)
        self._before = [number for number, unit in units.items() if not self._start[unit]]
        self._known = known * (1 - _SAME)
        self._found: BoolArray | None = None
        self._left = _MOST_ERASED
        blocks = erasures.blocks({number: float(saliency[unit]) for number, unit in units.items()})
        present = self._without([])
        may = {number for number, unit in units.items() if present[unit] and not staying[unit]}
        self._blocks = [block for block in blocks if may.issuperset(block)]
        self._rank(saliency, present)

    def _rank(self, saliency: FloatArray, present: BoolArray) -> None:
        """Order the blocks, and note what each loses and saves and which others it is nested with."""
        price, over = prices(self._model, present, self._limits), self._over(present)
        dense = costs(self._model, np.ones_like(present), self._limits)
        one = mixed(price, dense, over) if over else np.ones_like(saliency)
        members = {block: [self._units[number] for number in block] for block in self._blocks}
        self._blocks.sort(key=lambda block: float(saliency[members[block]].sum() / one[members[block]].sum()))
        self._lost = np.array([saliency[members[block]].sum() for block in self._blocks])
        self._saved = {m: np.array([each[members[block]].sum() for block in self._blocks]) for m, each in price.items()}
        self._by_rate = {m: np.argsort(self._lost / saved.clip(min=1e-300)) for m, saved in self._saved.items()}
        around = [{*chain.from_iterable(self._around[number] for number in block)} for block in self._blocks]
        inside = np.array([[not others.isdisjoint(block) for others in around] for block in self._blocks], dtype=bool)
        self._nested = (inside | inside.T).reshape(len(around), len(around))

    def best(self) -> BoolArray | None:
        """The units to keep, [num_units], for the set that loses least; None if no better one than what is known was
        found."""
        self._search([], 0)
        return self._found

    def _search(self, chosen: list[int], first: int) -> None:
        """Look at all sets of ``chosen``, places in the order of blocks, and of blocks from ``first`` on."""
        keep, lost = self._without(chosen), float(self._lost[chosen].sum())
        over = self._over(keep)
        if not over:
            self._found, self._known = keep, lost * (1 - _SAME)
            return
        free = ~self._nested[chosen].any(axis=0)
        for place in range(first, len(self._blocks)):
            free[:place] = False
            if self._left <= 0 or lost + self._at_least(free, over) >= self._known:
                return
            more = [*chosen, place]
            self._left -= len(more)
            if free[place] and lost + self._lost[place] < self._known and self._valid(more):
                self._search(more, place + 1)

    def _at_least(self, free: BoolArray, over: Mapping[str, float]) -> float:
        """The least that is lost of ``free`` blocks [blocks] to save what is ``over``; infinite if they cannot."""
        found = 0.0
        for measure, excess in over.items():
            order = self._by_rate[measure]
            order = order[free[order]]
            saved = np.cumsum(self._saved[measure][order])
            last = int(np.searchsorted(saved, excess))
            if last == len(order):
                return np.inf
            whole, rest = order[:last], excess - (saved[last - 1] if last else 0.0)
            fraction = rest / self._saved[measure][order[last]]
            found = max(found, float(self._lost[whole].sum() + fraction * self._lost[order[last]]))
        return found

    def _valid(self, chosen: Sequence[int]) -> bool:
        trial, gone = self._erasures.trial(), [*self._before]
        for number in gone:
            trial.erase(number)
        for block in (self._blocks[place] for place in chosen):
            gone += block
            if len(block) > 1 and self._erasures.why_not(gone) is not None:
                return False
            if any(trial.erase(number) is not None for number in block):
                return False
        return True

    def _without(self, chosen: Sequence[int]) -> BoolArray:
        gone = {*self._before, *chain.from_iterable(self._blocks[place] for place in chosen)}
        left = self._start.copy()
        left[[unit for number, unit in self._units.items() if not self._around[number].isdisjoint(gone)]] = False
        return left

    def _over(self, keep: BoolArray) -> dict[str, float]:
        reached = costs(self._model, keep, self._limits)
        return {m: cost - self._limits[m] for m, cost in reached.items() if cost > self._limits[m]}
