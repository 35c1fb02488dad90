"""Which dimensions have the same positions, one for one: they are of one size after any cut."""

from __future__ import annotations

from functools import cached_property
from typing import final

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from niwaki.core.counts import IntArray
from niwaki.rules.axis import Axis
from niwaki.rules.constraints import Constraints


@final
class Alike:
    """Dimensions that equations tie to one another position by position, unlike those of which one is a part of the
    other, as in a concatenation."""

    def __init__(self, constraints: Constraints) -> None:
        self._constraints = constraints

    def key(self, axis: Axis) -> tuple[tuple[int, int, int], ...]:
        """The same for two axes that have the same positions, one for one."""
        return tuple(self._part(column) for column in axis.ids.T)

    def _part(self, column: IntArray) -> tuple[int, int, int]:
        """A number for what has the positions of a column; where it has a part of a dimension only, which part."""
        block = self._whole(column)
        return (int(self._component[block]), 0, 0) if block else (-1, int(column.min()), int(column.max()))

    @cached_property
    def _starts(self) -> IntArray:
        return np.array([block[0] for block in self._constraints.blocks], np.int64)

    @cached_property
    def _component(self) -> IntArray:
        """For each block of ids, numbered from 1, the blocks that it is tied to one for one."""
        ones, others = [0], [0]
        for left, right, _ in self._constraints.equal:
            if left.shape != right.shape:
                continue
            for a, b in zip(left.T, right.T, strict=True):
                one, other = self._whole(a), self._whole(b)
                if one and other and _one_for_one(a, b):
                    ones.append(one)
                    others.append(other)
        size = len(self._starts) + 1
        joined = coo_array((np.ones(len(ones), bool), (ones, others)), shape=(size, size))
        _, found = connected_components(joined, directed=False)
        return np.asarray(found, np.int64)

    def _whole(self, column: IntArray) -> int:
        """The block of which a column has all ids, and no others; 0 if there is none."""
        if not column.size or not column.min():
            return 0
        first, last = np.searchsorted(self._starts, [column.min(), column.max()], side="right").tolist()
        length = len(self._constraints.blocks[first - 1])
        if first != last or column.max() - column.min() + 1 != length:
            return 0
        return first if len(column) == length or len(np.unique(column)) == length else 0


def _one_for_one(left: IntArray, right: IntArray) -> bool:
    """Whether each id on one side stands beside one id of the other only."""
    pairs = np.unique(np.column_stack([left, right]), axis=0)
    return len(pairs) == len(np.unique(left)) == len(np.unique(right))
