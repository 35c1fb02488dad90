"""An order in which units leave or return, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from niwaki.core.counts import FloatArray, IntArray
from niwaki.core.space import BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class Queue:
    """Units in the order in which they leave (or return): step i moves ``units[start[i] : start[i + 1]]``."""

    units: IntArray
    start: IntArray  # [steps + 1]

    @classmethod
    def of(cls, units: IntArray, block: IntArray, level: IntArray, worth: FloatArray, price: FloatArray) -> Queue:
        """Steps from units with equal ``block`` and ``level``, in the order of worth per price; the steps of a block
        stay in the order of their levels. All arguments [units]."""
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
        """The steps with ``which`` true."""
        sizes = np.diff(self.start)
        return Queue(self.units[np.repeat(which, sizes)], np.append(0, np.cumsum(sizes[which])))

    def sums(self, values: FloatArray) -> FloatArray:
        """Sums of ``values`` [num_units] over each step."""
        return _sums(values[self.units], self.start)

    def __len__(self) -> int:
        return len(self.start) - 1


def _sums(values: FloatArray, start: IntArray) -> FloatArray:
    """Sums of consecutive pieces, none of them empty."""
    return np.add.reduceat(values, start[:-1]) if len(values) else np.empty(0)
