"""The orders in which units are removed and returned: by worth per cost; and a queue of steps."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from niwaki.core.cost import CostModel
from niwaki.core.counts import FloatArray, IntArray
from niwaki.core.isomorphic import group_of
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.selection.levels import Levels
from niwaki.selection.objective import WORTH_BY, Worth, costs, mixed, prices, worth_weight
from niwaki.selection.steps import Widths

_HUGE = 1e200


class Orders:
    """Orders of the units of ``space`` by ``worth``. Groups shrink in ``steps``; units in ``staying`` are never
    removed.

    ``measures``: the costs that count. ``block`` [num_units]: equal for groups that shrink together.
    """

    def __init__(
        self,
        space: SearchSpace,
        model: CostModel,
        measures: Collection[str],
        steps: Widths,
        worth: Worth,
        staying: BoolArray | None = None,
    ) -> None:
        self.worth, self.measures = worth, measures
        self.staying = np.zeros(space.num_units, dtype=bool) if staying is None else staying
        self.group, self.groups = group_of(space), len(space.groups)
        self.levels = Levels.of(space, steps)
        self.block = self.levels.block[self.group]
        self.first = np.array([group.first for group in space.groups], np.int64)
        self.size = np.array([group.units for group in space.groups], np.int64)
        everything = np.ones(space.num_units, dtype=bool)
        known = [*measures, *(other for measure in measures for other in WORTH_BY.get(measure, ()))]
        self.dense_price = prices(model, everything, known)
        self.dense = costs(model, everything, known)

    def leaving(
        self, keep: BoolArray, weight: Mapping[str, float], price: Mapping[str, FloatArray], last: BoolArray | None
    ) -> Queue:
        """The steps by which the groups of ``keep`` can shrink, by worth lost per cost saved, the least first."""
        mixed = self._mixed(price, weight)
        key = np.where(self.staying, np.inf, self.worth.share / mixed)
        units, group, place, alive = self._sorted(keep, key)
        kept = self.worth.held(keep, key, -1)[units]  # when this unit is the next to be removed
        worth = self.worth(units, kept, kept - self.worth.share[units], self.weighty(weight))
        if last is not None:
            worth = np.where(last[units], _HUGE, worth)
        level = self.levels.reached[self.first[group] + (self.size - alive)[group] + place]
        may = level >= 0
        queue = Queue.of(units[may], self.block[units[may]], level[may], worth[may], mixed[units[may]])
        return queue.only(queue.sums(self.staying.astype(np.float64)) == 0)

    def returning(self, keep: BoolArray, may: BoolArray, price: Mapping[str, FloatArray]) -> Queue:
        """The next step by which each block can grow with units of ``may``, by worth per cost, the most first."""
        weight = {measure: self.dense[measure] for measure in self.measures}
        mixed = self._mixed(price, weight)
        key = -self.worth.share / mixed
        units, group, place, missing = self._sorted(may & ~keep, key)
        gone = self.size - np.bincount(self.group[keep], minlength=self.groups)
        left = self.levels.left[np.minimum(self.first + np.maximum(gone, 1), len(keep)) - 1]
        needed = gone - np.where(gone > 0, left, 0) * self.levels.step
        blocked = self.levels.block[missing < needed]  # some units of its last step cannot return
        after = self.worth.total(keep)[units] + self.worth.held(may & ~keep, key, 1)[units]
        worth = self.worth(units, after, after - self.worth.share[units], self.weighty(weight))
        near = (place < needed[group]) & ~np.isin(self.block[units], blocked)
        units, worth = units[near], worth[near]
        return Queue.of(units, self.block[units], np.zeros_like(units), -worth, mixed[units])

    def _sorted(self, which: BoolArray, key: FloatArray) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """The units of ``which`` by group and then by ``key``; their groups, their ranks there; the groups' sizes."""
        units = np.flatnonzero(which)
        units = units[np.lexsort((key[units], self.group[units]))]
        group = self.group[units]
        size = np.bincount(group, minlength=self.groups)
        return units, group, np.arange(len(units)) - (np.cumsum(size) - size)[group], size

    def _mixed(self, price: Mapping[str, FloatArray], weight: Mapping[str, float]) -> FloatArray:
        return mixed(price, self.dense, weight)

    def weighty(self, weight: Mapping[str, float]) -> FloatArray:
        """The cost of units in the dense network, in the measures that define worth, [num_units]."""
        return mixed(self.dense_price, self.dense, worth_weight(weight, self.dense))


@dataclass(frozen=True, slots=True, eq=False)
class Queue:
    """Units in the order in which they are removed (or returned): step i moves ``units[start[i] : start[i + 1]]``."""

    units: IntArray
    start: IntArray  # [steps + 1]

    @classmethod
    def of(cls, units: IntArray, block: IntArray, level: IntArray, worth: FloatArray, price: FloatArray) -> Queue:
        """Steps from units with equal ``block`` and ``level``, in the order of worth per price; the steps of a block
        are in the order of their levels. All arguments [units]."""
        if not len(units):
            return cls(units, np.zeros(1, np.int64))
        order = np.lexsort((level, block))
        units, block, level = units[order], block[order], level[order]
        new = np.append(True, (np.diff(block) != 0) | (np.diff(level) != 0))
        start = np.append(np.flatnonzero(new), len(units))
        sizes = np.diff(start)
        key = _sums(worth[order], start) / _sums(price[order], start)
        rank = np.empty(len(key), np.int64)
        rank[np.argsort(key, kind="stable")] = np.arange(len(key))
        lift = block[start[:-1]] * len(key)
        rank = np.maximum.accumulate(rank + lift) - lift
        order = np.argsort(rank, kind="stable")
        ends = np.cumsum(sizes[order])
        within = np.arange(len(units)) - np.repeat(ends - sizes[order], sizes[order])
        return cls(units[np.repeat(start[:-1][order], sizes[order]) + within], np.append(0, ends))

    def first(self, steps: int) -> IntArray:
        """The units of the first ``steps`` steps."""
        return self.units[: self.start[steps]]

    def steps(self) -> Iterator[IntArray]:
        """The units of each step."""
        for first, last in pairwise(self.start.tolist()):
            yield self.units[first:last]

    def only(self, which: BoolArray) -> Queue:
        """The queue of the steps with ``which`` true."""
        sizes = np.diff(self.start)
        return Queue(self.units[np.repeat(which, sizes)], np.append(0, np.cumsum(sizes[which])))

    def sums(self, values: FloatArray) -> FloatArray:
        """Sums of ``values`` [num_units] over each step."""
        return _sums(values[self.units], self.start)

    def __len__(self) -> int:
        return len(self.start) - 1


def _sums(values: FloatArray, start: IntArray) -> FloatArray:
    """Sums of consecutive pieces, which are not empty."""
    return np.add.reduceat(values, start[:-1]) if len(values) else np.empty(0)
