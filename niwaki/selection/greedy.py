"""Choose the units to keep: the most saliency under limits on the cost. `objective` defines what a choice is worth.

Units are removed in the order of worth lost per cost saved.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from niwaki.core.counts import FloatArray, IntArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import Compare
from niwaki.selection.levels import buildable, depending, failing
from niwaki.selection.objective import Worth, costs, mixed, prices
from niwaki.selection.orders import Orders, Queue
from niwaki.selection.request import SelectionRequest
from niwaki.selection.steps import Widths

_ROUNDS = 8  # re-pricings on the way: the cost of a unit depends on its neighbours
_SWAPS = 16
_TIGHT = 0.01
_FREE = Widths()


def select(
    space: SearchSpace,
    saliency: FloatArray,
    limits: Mapping[str, float],
    removed: BoolArray | None = None,
    *,
    steps: Widths = _FREE,
    compare: Compare = "group",
    weight: FloatArray | None = None,
    staying: BoolArray | None = None,
) -> BoolArray:
    """The units to keep, [num_units], so that every measure in ``limits`` is met from below.

    ``saliency`` [num_units] is not negative. Units in ``removed`` are never taken back, and units in ``staying`` are
    never removed. ``compare="isomorphic"``: v and C are those of all isomorphic groups together. ``compare="space"``: a
    choice is worth the sum of its saliency, for saliencies that are comparable across groups. ``weight`` [groups]: a
    group of twice the weight keeps twice the fraction, or its saliency counts twice (``"space"``). Where the limits
    cannot be met, every group ends at its least size; the caller has to compare. Numbers of units that the sizes in the
    model's code cannot follow are avoided.
    """
    start = np.ones(space.num_units, dtype=bool) if removed is None else ~removed
    worth = Worth(space, saliency, start, compare, weight)
    chooser = _Chooser(space, dict(limits), steps, worth, staying)
    best = chooser.tighten(chooser.refill(chooser.shrink(start), start), start)
    wrong = failing(space, best)
    if not wrong:
        return best
    built = buildable(space, best, lambda keep, which: chooser.near(keep, start, which))
    which = depending(space, wrong)
    others = ~np.isin(chooser.block, chooser.block[which])  # independent of the sizes that failed
    filled = chooser.refill(built, start & others)
    return built if failing(space, filled) else filled


def widths(space: SearchSpace, saliency: FloatArray, request: SelectionRequest) -> BoolArray:
    """The same for a ``request``."""
    return select(
        space,
        saliency,
        request.limits,
        request.removed,
        steps=request.steps,
        compare=request.compare,
        weight=request.weight,
        staying=request.staying,
    )


def next_step(
    space: SearchSpace, keep: BoolArray, limits: Mapping[str, float], steps: Widths = _FREE
) -> tuple[IntArray, dict[str, float]] | None:
    """The smallest step by which ``keep`` could grow, measured by the limit that it comes nearest to or exceeds most:
    its units, and the cost with them. None if everything is kept."""
    even = np.ones(space.num_units)
    chooser = _Chooser(space, dict(limits), steps, Worth(space, even, keep))
    queue = chooser.orders.returning(keep, np.ones(space.num_units, dtype=bool), prices(chooser.model, keep, limits))
    found = []
    for number in range(len(queue)):
        units = queue.units[queue.start[number] : queue.start[number + 1]]
        more = keep.copy()
        more[units] = True
        reached = costs(chooser.model, more, limits)
        found.append((max(reached[measure] / max(limit, 1.0) for measure, limit in limits.items()), number, reached))
    if not found:
        return None
    _, number, reached = min(found, key=lambda one: one[:2])
    return queue.units[queue.start[number] : queue.start[number + 1]], reached


class _Chooser:
    def __init__(
        self,
        space: SearchSpace,
        limits: dict[str, float],
        steps: Widths,
        worth: Worth,
        staying: BoolArray | None = None,
    ) -> None:
        self.space, self.limits, self.model = space, limits, space.cost_model.merged()
        self.orders = Orders(space, self.model, limits, steps, worth, staying)
        self.block, self.dense = self.orders.block, self.orders.dense

    def shrink(self, keep: BoolArray, last: BoolArray | None = None) -> BoolArray:
        """Remove the units worth least, with a few re-pricings, until every limit is met.

        The units ``last`` are removed only after all others.
        """
        for rounds_left in range(_ROUNDS, 0, -1):
            excess = self._excess(keep)
            if not excess:
                break
            price = prices(self.model, keep, excess)
            queue = self.orders.leaving(keep, excess, price, last)
            count = self._steps_saving(queue, price, {m: e / rounds_left for m, e in excess.items()})
            if rounds_left == 1:
                count = self._fewest(queue, keep, count)
            keep = keep.copy()
            keep[queue.first(count)] = False
        return keep

    def refill(self, keep: BoolArray, start: BoolArray) -> BoolArray:
        """Take back the best of the units in ``start`` but not in ``keep`` that still fit under the limits."""
        full = np.zeros(self.space.num_units, dtype=bool)  # the units of blocks that cannot grow further
        while True:
            slack = self._slack(keep)
            if min(slack.values()) < 0:
                return keep
            price = prices(self.model, keep, self.limits)
            queue = self.orders.returning(keep, start & ~full, price)
            queue = queue.only(self._fitting(queue, price, slack))
            if not len(queue):
                return keep
            count = self._most(queue, keep, price, slack)
            keep = keep.copy()
            keep[queue.first(count)] = True
            if count == 0:
                full |= self.block == self.block[queue.units[0]]

    def tighten(self, keep: BoolArray, start: BoolArray) -> BoolArray:
        """Where steps are coarse (small networks) and much of the limits is unused: take back one large step in
        exchange for others if the choice is then worth more; the best such step first."""
        price = self.orders.weighty({measure: self.dense[measure] for measure in self.limits})
        worth = self.orders.worth.of(keep, price)
        for _ in range(_SWAPS):
            if not _TIGHT < self._unused(keep) < 1:
                break
            best, most = keep, worth
            back = self.orders.returning(keep, start, prices(self.model, keep, self.limits))
            for units in islice(back.steps(), _SWAPS):
                trial = keep.copy()
                trial[units] = True
                trial = self.refill(self.shrink(trial, self.block == self.block[units[0]]), start)
                value = self.orders.worth.of(trial, price)
                if value > most and not self._excess(trial):
                    best, most = trial, value
            if best is keep:
                break
            keep, worth = best, most
        return keep

    def near(self, keep: BoolArray, start: BoolArray, which: BoolArray) -> Iterator[BoolArray]:
        """The choices that differ from ``keep`` by steps of one block with units among ``which``, added or removed, in
        the order of their difference in cost; added only as far as they fit under the limits."""
        everything = {measure: self.dense[measure] for measure in self.limits}
        each = prices(self.model, keep, self.limits)
        price = mixed(each, self.dense, everything)
        steps: dict[int, list[IntArray]] = {}
        for units in self.orders.leaving(keep, everything, each, None).steps():
            steps.setdefault(int(self.block[units[0]]), []).append(units)
        ways = []
        for block in np.unique(self.block[which]).tolist():
            ways += [self._back(keep, start & (self.block == block), price), _away(keep, steps.get(block, ()), price)]
        return (trial for _, trial in heapq.merge(*ways, key=lambda way: way[0]))

    def _back(self, keep: BoolArray, start: BoolArray, price: FloatArray) -> Iterator[tuple[float, BoolArray]]:
        """Choices with one more step each, and their additional cost."""
        more = 0.0
        while True:
            queue = self.orders.returning(keep, start, prices(self.model, keep, self.limits))
            if not len(queue):
                return
            keep = keep.copy()
            keep[queue.first(1)] = True
            if self._excess(keep):
                return
            more += float(price[queue.first(1)].sum())
            yield more, keep

    def _excess(self, keep: BoolArray) -> dict[str, float]:
        """The excess over the limits that are not met."""
        return {measure: -room for measure, room in self._slack(keep).items() if room < 0}

    def _slack(self, keep: BoolArray) -> dict[str, float]:
        now = costs(self.model, keep, self.limits)
        return {measure: limit - now[measure] for measure, limit in self.limits.items()}

    def _unused(self, keep: BoolArray) -> float:
        """The unused fraction of the tightest limit (negative if one is not met)."""
        return min(room / max(self.limits[measure], 1.0) for measure, room in self._slack(keep).items())

    def _fitting(self, queue: Queue, price: Mapping[str, FloatArray], slack: Mapping[str, float]) -> BoolArray:
        """The steps that may fit into ``slack`` alone."""
        fits = np.ones(len(queue), dtype=bool)
        for measure, room in slack.items():
            fits &= queue.sums(price[measure]) <= room
        return fits

    def _steps_saving(self, queue: Queue, price: Mapping[str, FloatArray], amounts: Mapping[str, float]) -> int:
        """The number of steps that save ``amounts`` by the present prices. These promise too much, so fewer steps never
        suffice."""
        needed = [
            int(np.searchsorted(np.cumsum(queue.sums(price[measure])), amount)) + 1
            for measure, amount in amounts.items()
        ]
        return min(max(needed), len(queue))

    def _fewest(self, queue: Queue, keep: BoolArray, low: int) -> int:
        """The fewest steps, at least ``low``, after which every limit is met (all, if none does)."""
        high, stride = low, 1
        while high < len(queue) and not self._met(keep, queue.first(high), False):
            low, high, stride = high + 1, min(high + stride, len(queue)), 2 * stride
        while low < high:
            middle = (low + high) // 2
            if self._met(keep, queue.first(middle), False):
                high = middle
            else:
                low = middle + 1
        return low

    def _most(self, queue: Queue, keep: BoolArray, price: Mapping[str, FloatArray], slack: Mapping[str, float]) -> int:
        """The most steps that can return with every limit still met."""
        low, high = 0, len(queue)
        for measure, room in slack.items():  # prices are never above the cost of a return, so this bound is safe
            spent = np.cumsum(queue.sums(price[measure]))
            high = min(high, int(np.searchsorted(spent, room, side="right")))
        while low < high:
            middle = (low + high + 1) // 2
            if self._met(keep, queue.first(middle), True):
                low = middle
            else:
                high = middle - 1
        return low

    def _met(self, keep: BoolArray, units: IntArray, value: bool) -> bool:
        """Whether every limit is met by ``keep`` with ``units`` set to ``value``."""
        trial = keep.copy()
        trial[units] = value
        return not self._excess(trial)


def _away(keep: BoolArray, steps: Sequence[IntArray], price: FloatArray) -> Iterator[tuple[float, BoolArray]]:
    """Choices with one step less each, and their saving."""
    less = 0.0
    for units in steps:
        keep = keep.copy()
        keep[units] = False
        less += float(price[units].sum())
        yield less, keep
