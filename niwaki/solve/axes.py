"""A table of all axes that costs and sizes refer to, as functions of the units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from niwaki.core.counts import Counts, IntArray
from niwaki.rules.axis import Axis


class AxisTable:
    """Numbers axes by the identity of their ids."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._axes: list[Axis] = []

    def __len__(self) -> int:
        return len(self._axes)

    def number(self, axis: Axis) -> int:
        """The number of an axis."""
        key = id(axis.ids)
        if key not in self._numbers:
            self._numbers[key] = len(self._axes)
            self._axes.append(axis)
        return self._numbers[key]

    def rows(self) -> tuple[IntArray, IntArray]:
        """All ids of all axes [R, K], 0 padded, and the axis number of each row [R]."""
        width = max([1, *(axis.ids.shape[1] for axis in self._axes)])
        sizes = [axis.size for axis in self._axes]
        rows = np.zeros((sum(sizes), width), dtype=np.int64)
        start = 0
        for axis in self._axes:
            rows[start : start + axis.size, : axis.ids.shape[1]] = axis.ids
            start += axis.size
        return rows, np.repeat(np.arange(len(sizes)), sizes)


def count_rows(rows: IntArray, axis: IntArray, num_axes: int, num_units: int) -> Counts:
    """Merge equal rows of unit numbers (``num_units`` is the padding) of the same axis."""
    rows = np.sort(rows, axis=1)
    table = np.concatenate([axis[:, None], rows], axis=1)
    order = np.lexsort(table.T[::-1])
    table = table[order]
    if not len(table):
        return Counts(num_units, num_axes, rows, np.zeros(0), axis)
    new = np.append(True, (table[1:] != table[:-1]).any(axis=1))
    starts = np.flatnonzero(new)
    times = np.diff(np.append(starts, len(table))).astype(np.float64)
    return Counts(num_units, num_axes, table[starts, 1:], times, table[starts, 0])


def pad(lists: Sequence[Sequence[int]], filler: int) -> IntArray:
    """Lists of different lengths as one array."""
    width = max([1, *map(len, lists)])
    array = np.full((len(lists), width), filler, dtype=np.int64)
    for row, items in enumerate(lists):
        array[row, : len(items)] = items
    return array
