"""A table of all axes that costs and sizes refer to, as functions of the units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from niwaki.core.counts import Counts, IntArray
from niwaki.core.numbers import Combination, Count, Expression
from niwaki.rules.axis import Axis
from niwaki.solve.equations import Components
from niwaki.solve.facts import Facts
from niwaki.solve.units import Units
from niwaki.trace.graph import Graph, Origin


class AxisTable:
    """Numbers axes; those that are known to depend on the same components have one number."""

    def __init__(self, solution: Components) -> None:
        self._solution = solution
        self._numbers: dict[object, int] = {}
        self._axes: list[IntArray] = []

    def __len__(self) -> int:
        return len(self._axes)

    def number(self, axis: Axis) -> int:
        """The number of an axis."""
        key = self._solution.name(axis.ids)
        if key not in self._numbers:
            self._numbers[key] = len(self._axes)
            self._axes.append(axis.ids)
        return self._numbers[key]

    def rows(self) -> tuple[IntArray, IntArray]:
        """The components of all positions of all axes [R, K], 0 padded, and the axis number of each row [R]."""
        solved = [self._solution.canonical(ids) for ids in self._axes]
        width = max([1, *(own.shape[1] for own in solved)])
        sizes = [len(own) for own in solved]
        rows = np.zeros((sum(sizes), width), dtype=np.int64)
        start = 0
        for own in solved:
            rows[start : start + len(own), : own.shape[1]] = own
            start += len(own)
        return rows, np.repeat(np.arange(len(sizes)), sizes)


def count_rows(rows: IntArray, axis: IntArray, num_axes: int, num_units: int) -> Counts:
    """Merge equal rows of unit numbers (``num_units`` is the padding) of the same axis; ``axis`` ascends."""
    if rows.shape[1] > 1:
        rows = np.sort(rows, axis=1)
    new = (rows[1:] != rows[:-1]).any(axis=1) | (axis[1:] != axis[:-1])
    begin = np.flatnonzero(np.append(np.ones(min(1, len(rows)), dtype=bool), new))
    times = np.diff(np.append(begin, len(rows)))
    rows, axis = rows[begin], axis[begin]
    base, width = num_units + 1, rows.shape[1]
    if num_axes * base**width < 2**62:  # a row fits into one integer, which sorts much faster
        powers = base ** np.arange(width - 1, -1, -1, dtype=np.int64)
        keys = axis * base**width + rows @ powers
        jumbled = np.zeros(num_axes, dtype=bool)
        jumbled[axis[1:][keys[1:] <= keys[:-1]]] = True
        which = jumbled[axis]
        if which.any():
            sorted_keys, inverse = np.unique(keys[which], return_inverse=True)
            merged = np.bincount(inverse, weights=times[which], minlength=len(sorted_keys))
            axis = np.concatenate([axis[~which], sorted_keys // base**width])
            rows = np.concatenate([rows[~which], sorted_keys[:, None] // powers % base])
            times = np.concatenate([times[~which], merged])
    else:
        table, inverse = np.unique(np.concatenate([axis[:, None], rows], axis=1), axis=0, return_inverse=True)
        times = np.bincount(inverse.reshape(-1), weights=times, minlength=len(table))
        axis, rows = table[:, 0], table[:, 1:]
    return Counts.of(num_units, num_axes, rows, times.astype(np.float64), axis)


def pad(lists: Sequence[Sequence[int]], filler: int) -> IntArray:
    """Lists of different lengths as one array."""
    width = max([1, *map(len, lists)])
    array = np.full((len(lists), width), filler, dtype=np.int64)
    for row, items in enumerate(lists):
        array[row, : len(items)] = items
    return array


class Tables:
    """All axes that sizes and costs refer to, numbered, with the claims and terms written in those numbers."""

    def __init__(self, graph: Graph, facts: Facts, solution: Components) -> None:
        table = AxisTable(solution)
        self.claims = [
            (claim, _numbered(claim.expression, facts, table), None if claim.axis is None else table.number(claim.axis))
            for claim in facts.sizes
        ]
        self.repairs = [
            (claim, [(table.number(factor.axis), factor.axis.size, factor.power) for factor in claim.scale])
            for claim in facts.repairs
        ]
        self.macs = [(float(term.times), [table.number(axis) for axis in term.axes]) for term in facts.macs]
        ids = {int(block[0]): block[:, None] for block in facts.blocks if len(block)}
        self.params: list[tuple[float, list[int]]] = []
        self.memory: list[tuple[float, list[int]]] = []
        for value in graph.values:
            if value.origin not in (Origin.PARAMETER, Origin.BUFFER):
                continue
            axes = []
            for dim in range(len(value.shape)):
                axes.append(table.number(Axis(ids[facts.places[value.number, dim][0]])))
            self.memory.append((float(value.dtype.itemsize), axes))
            if value.origin is Origin.PARAMETER:
                self.params.append((1.0, axes))
        self.rows, self.axis = table.rows()
        self.num_axes = len(table)
        self._first = np.searchsorted(self.axis, np.arange(self.num_axes + 1))

    def rows_of(self, axis: int) -> IntArray:
        """The components [n, K] of the positions of one axis."""
        return self.rows[self._first[axis] : self._first[axis + 1]]

    def counts(self, units: Units) -> Counts:
        """Surviving positions of every axis, as a function of the units there are now."""
        return count_rows(units.of_components(self.rows), self.axis, self.num_axes, len(units))


def _numbered(expression: Expression, facts: Facts, table: AxisTable) -> Expression:
    if isinstance(expression, Combination):
        left, right = _numbered(expression.left, facts, table), _numbered(expression.right, facts, table)
        return Combination(expression.symbol, left, right, expression.value)
    if isinstance(expression, Count):
        assert isinstance(expression.axis, tuple)
        value, dim = expression.axis
        label = facts.labels[value]
        assert label is not None
        return Count(table.number(label.axes[dim]), expression.value)
    return expression
