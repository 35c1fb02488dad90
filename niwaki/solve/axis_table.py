"""Number the axes that costs and sizes refer to, and count their positions as a function of the units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from niwaki.core.counts import Counts, IntArray
from niwaki.core.numbers import Attribute, Combination, Count, Equation, Expression, leaves
from niwaki.rules.axis import Axis
from niwaki.rules.constraints import Constraints
from niwaki.solve.components import Components
from niwaki.solve.costs import lifetimes, tasks
from niwaki.solve.groups import SolvedGroups
from niwaki.trace.graph import Origin

_CHUNK = 2**18  # rows that are solved together


class AxisTable:
    """Numbers axes, with one number for those that are known to depend on the same components."""

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

    @property
    def arrays(self) -> Sequence[IntArray]:
        """The ids of the positions of each axis."""
        return self._axes

    def rows(self, units: SolvedGroups) -> tuple[IntArray, IntArray, IntArray]:
        """For each position of each axis, the components that are still free [R, K], 0 padded; the axis number of each
        row [R]; and how many successive positions each row stands for [R]."""
        pieces: list[tuple[IntArray, IntArray, IntArray]] = []
        first = 0
        while first < len(self._axes) or not pieces:
            solved: list[IntArray] = []
            while first + len(solved) < len(self._axes) and sum(map(len, solved)) < _CHUNK:
                solved.append(self._solution.canonical(self._axes[first + len(solved)]))
            axis = np.repeat(np.arange(first, first + len(solved)), list(map(len, solved)))
            rows = units.active(stacked(solved))
            pieces.append(merged(rows, axis, np.ones(len(rows), dtype=np.int64)))
            first += len(solved)
        table = stacked([rows for rows, _, _ in pieces])
        used = (table != 0).any(axis=0)
        used[0] = True
        return table[:, used], np.concatenate([axis for _, axis, _ in pieces]), np.concatenate([n for *_, n in pieces])


def stacked(arrays: Sequence[IntArray], filler: int = 0) -> IntArray:
    """Stack arrays of rows, padded with ``filler`` to the widest."""
    width = max([1, *(own.shape[1] for own in arrays)])
    rows = np.full((sum(map(len, arrays)), width), filler, dtype=np.int64)
    start = 0
    for own in arrays:
        rows[start : start + len(own), : own.shape[1]] = own
        start += len(own)
    return rows


def merged(rows: IntArray, axis: IntArray, times: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Merge successive equal rows of the same axis."""
    new = (rows[1:] != rows[:-1]).any(axis=1) | (axis[1:] != axis[:-1])
    begin = np.flatnonzero(np.append(np.ones(min(1, len(rows)), dtype=bool), new))
    return rows[begin], axis[begin], np.add.reduceat(times, begin) if len(begin) else times


def count_rows(rows: IntArray, axis: IntArray, times: IntArray, num_axes: int, num_units: int) -> Counts:
    """Merge equal rows of unit numbers (``num_units`` is the padding) of the same axis; ``axis`` ascends."""
    rows, axis, times = merged(np.sort(rows, axis=1) if rows.shape[1] > 1 else rows, axis, times)
    after = np.zeros(max(len(rows) - 1, 0), dtype=bool)  # whether a row sorts after the previous one
    for column in rows.T[::-1]:
        after = (column[1:] > column[:-1]) | ((column[1:] == column[:-1]) & after)
    jumbled = np.zeros(num_axes, dtype=bool)
    jumbled[axis[1:][(axis[1:] == axis[:-1]) & ~after]] = True
    which = jumbled[axis]
    if which.any():
        order = np.flatnonzero(which)
        order = order[np.lexsort((*rows[order].T[::-1], axis[order]))]
        ordered = merged(rows[order], axis[order], times[order])
        rows, axis, times = (
            np.concatenate([old[~which], new]) for old, new in zip((rows, axis, times), ordered, strict=True)
        )
    return Counts.of(num_units, num_axes, rows, times.astype(np.float64), axis)


def pad(lists: Sequence[Sequence[int]], filler: int) -> IntArray:
    """Put lists of different lengths into one array, padded with ``filler``."""
    width = max([1, *map(len, lists)])
    array = np.full((len(lists), width), filler, dtype=np.int64)
    for row, items in enumerate(lists):
        array[row, : len(items)] = items
    return array


@dataclass(frozen=True, slots=True, eq=False)
class Leaves:
    """The leaves of an expression: its attributes, the axes that it counts, and the number of all leaves."""

    attributes: tuple[Attribute, ...]
    axes: tuple[int, ...]
    number: int

    @classmethod
    def of(cls, expression: Expression) -> Leaves:
        """Collect the leaves of an expression in axis numbers."""
        inside = list(leaves(expression))
        attributes = tuple(leaf for leaf in inside if isinstance(leaf, Attribute))
        axes = tuple(leaf.axis for leaf in inside if isinstance(leaf, Count) and isinstance(leaf.axis, int))
        return cls(attributes, axes, len(inside))


class Tables:
    """All axes that sizes and costs refer to, numbered, with the equations and terms written in those numbers."""

    def __init__(self, units: SolvedGroups) -> None:
        graph, constraints = units.graph, units.constraints
        table = AxisTable(units.solution)
        self.equations = [_equation(known, constraints, table) for known in constraints.sizes]
        self.leaves = [Leaves.of(equation.expression) for equation in self.equations]
        self.repairs = [
            (claim, [(table.number(factor.axis), factor.axis.size, factor.power) for factor in claim.scale])
            for claim in constraints.repairs
        ]
        self.macs = [(float(term.times), [table.number(axis) for axis in term.axes]) for term in constraints.macs]
        self.multiplying = [term.node for term in constraints.macs]  # the operators of the terms
        self.macs_of: dict[str, tuple[int, ...]] = {}  # the numbers of the terms that multiply by each parameter
        nodes = graph.runs[0].nodes if graph.runs else ()
        for number, place in enumerate(self.multiplying):
            for root in {graph.values[value].root for value in nodes[place].inputs()}:
                if graph.values[root].origin is Origin.PARAMETER and len(graph.values[root].shape) > 1:
                    name = graph.values[root].name
                    self.macs_of[name] = (*self.macs_of.get(name, ()), number)
        ids = {int(block[0]): block[:, None] for block in constraints.blocks if len(block)}
        self.lengths: dict[tuple[str, int], int] = {}  # the axis of each dimension of a parameter
        self.params: list[tuple[float, list[int]]] = []
        self.memory: list[tuple[float, list[int]]] = []
        self.parameters: list[str] = []  # the tensors of these terms
        self.tensors: list[str] = []
        for value in graph.values:
            if value.origin not in (Origin.PARAMETER, Origin.BUFFER) or 0 in value.shape:
                continue
            axes = []
            for dim in range(len(value.shape)):
                axes.append(table.number(Axis(ids[constraints.ids_of[value.number, dim][0]])))
            self.memory.append((float(value.dtype.itemsize), axes))
            self.tensors.append(value.name)
            if value.origin is Origin.PARAMETER:
                self.params.append((1.0, axes))
                self.parameters.append(value.name)
                self.lengths.update(((value.name, dim), axis) for dim, axis in enumerate(axes))
        self.activations = [
            (one, (float(one.bytes), [table.number(axis) for axis in one.axes]))
            for one in lifetimes(graph, constraints)
        ]
        working = tasks(graph, constraints)
        self.work = [
            (task.operator, [(float(times), [table.number(axis) for axis in axes]) for times, axes in task.terms])
            for task in working
        ]
        self.working = [task.place for task in working]
        self.rows, self.axis, self.times = table.rows(units)
        self.num_axes, self.arrays = len(table), table.arrays
        self._first = np.searchsorted(self.axis, np.arange(self.num_axes + 1))

    def rows_of(self, axis: int) -> tuple[IntArray, IntArray]:
        """The components [n, K] that one axis depends on, and how many positions each row stands for [n]."""
        own = slice(self._first[axis], self._first[axis + 1])
        return self.rows[own], self.times[own]

    def counts(self, units: SolvedGroups) -> Counts:
        """Count the surviving positions of every axis as a function of the present units."""
        return count_rows(units.of_components(self.rows), self.axis, self.times, self.num_axes, len(units))


def _equation(known: Equation[Axis], constraints: Constraints, table: AxisTable) -> Equation[int]:
    expression = _numbered(known.expression, constraints, table)
    axis = None if known.axis is None else table.number(known.axis)
    return Equation(expression, axis, known.what, known.location)


def _numbered(expression: Expression, constraints: Constraints, table: AxisTable) -> Expression:
    if isinstance(expression, Combination):
        left, right = _numbered(expression.left, constraints, table), _numbered(expression.right, constraints, table)
        return Combination(expression.symbol, left, right, expression.value)
    if isinstance(expression, Count):
        assert isinstance(expression.axis, tuple)
        value, dim = expression.axis
        label = constraints.labels[value]
        assert label is not None
        return Count(table.number(label.axes[dim]), expression.value)
    return expression
