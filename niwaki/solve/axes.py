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
    base, width = num_units + 1, rows.shape[1]
    if num_axes * base**width < 2**62:  # a row fits into one integer, which sorts much faster
        powers = base ** np.arange(width - 1, -1, -1, dtype=np.int64)
        keys, times = np.unique(axis * base**width + rows @ powers, return_counts=True)
        merged_axis, merged = keys // base**width, keys[:, None] // powers % base
    else:
        table, times = np.unique(np.concatenate([axis[:, None], rows], axis=1), axis=0, return_counts=True)
        merged_axis, merged = table[:, 0], table[:, 1:]
    return Counts(num_units, num_axes, merged, times.astype(np.float64), merged_axis)


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
        table = AxisTable()
        self.claims = [
            (claim, _numbered(claim.expression, facts, table), None if claim.axis is None else table.number(claim.axis))
            for claim in facts.sizes
        ]
        self.repairs = [
            (claim, [(table.number(factor.axis), factor.axis.size, factor.power) for factor in claim.scale])
            for claim in facts.repairs
        ]
        self.macs = [(float(term.times), [table.number(axis) for axis in term.axes]) for term in facts.macs]
        self.params: list[tuple[float, list[int]]] = []
        self.memory: list[tuple[float, list[int]]] = []
        for value in graph.values:
            if value.origin not in (Origin.PARAMETER, Origin.BUFFER):
                continue
            axes = []
            for dim in range(len(value.shape)):
                first, size = facts.places[value.number, dim]
                axes.append(table.number(Axis(np.arange(first, first + size)[:, None])))
            self.memory.append((float(value.dtype.itemsize), axes))
            if value.origin is Origin.PARAMETER:
                self.params.append((1.0, axes))
        rows, self.axis = table.rows()
        self.rows = solution.canonical(rows) if len(rows) else rows
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
