"""Structures as groups of one unit: their gates, and an axis of one position on the costs of all that they contain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from niwaki.core.cost import CostModel, PeakMemory, Terms
from niwaki.core.counts import Counts, IntArray
from niwaki.core.numbers import Numbers
from niwaki.core.space import Group, SearchSpace
from niwaki.core.structures import Erasures, group_of
from niwaki.core.tensor_dims import Role, TensorDim, slices_by_group
from niwaki.solve.axis_table import Tables, count_rows, pad, stacked
from niwaki.solve.components import Components
from niwaki.solve.groups import SolvedGroups
from niwaki.solve.sizes import equations_of


@dataclass(frozen=True, slots=True, eq=False)
class Homes:
    """The structures without which nothing needs an operator of the first run, or a tensor, any more: the smallest that
    it is in, or several that it serves. ``parts``: of each structure that is concatenated, what reads it, and of each
    expert its slices; ``absences``: where the former are, if there are any, and ``split``: where the latter."""

    operators: Mapping[int, Sequence[int]]
    tensors: Mapping[str, Sequence[int]]
    parts: Mapping[int, Sequence[TensorPart]]
    absences: Absences | None
    split: Sequence[SplitAxis] = ()


@dataclass(frozen=True, slots=True, eq=False)
class SplitAxis:
    """An axis with one position for each of ``structures``: dimensions of ``tensors``, and of the products that
    operators multiply (by the number of the term of multiply-accumulates, and the place in it)."""

    structures: Sequence[int]
    tensors: Sequence[tuple[str, int]]
    macs: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, eq=False)
class TensorPart:
    """Positions of one dimension of a tensor that go with a structure."""

    tensor: str
    dim: int
    positions: IntArray
    role: Role
    parameter: bool


@dataclass(frozen=True, slots=True, eq=False)
class Absences:
    """``solution``: the components that positions lie in, if structures may vanish; ``structures``: those of the
    components that are structures, by their numbers."""

    solution: Components
    structures: Mapping[int, int]

    def units(self, arrays: Sequence[IntArray], unit: Mapping[int, int], none: int) -> Iterable[tuple[int, IntArray]]:
        """The axes, by their numbers, with positions that go with structures: their rows of units [n, K], padded with
        ``none``. ``arrays``: the ids of all axes."""
        number = np.full(self.solution.size, none)
        number[list(self.structures)] = [unit[structure] for structure in self.structures.values()]
        for axis, ids in enumerate(arrays if self.structures else ()):
            found = number[self.solution.canonical(ids)]
            some = (found != none).any(axis=0)
            if some.any():
                yield axis, found[:, some]


def with_structures(
    space: SearchSpace, units: SolvedGroups, tables: Tables, erasures: Erasures, homes: Homes
) -> SearchSpace:
    """``space`` with every structure that can be erased as a group of one unit, after all others.

    A structure owns all entries of the parameters that make its result, and those that read its part of a
    concatenation. Where it is erased no operator in it costs anything: each of their terms gets one more axis, whose
    only position depends on the units of all structures around. What serves several structures is gone when they all
    are. Axes with the part of a structure get shorter.
    """
    numbers = [number for number, one in enumerate(erasures.listed) if one.erasable]
    before, after = space.num_units, space.num_units + len(numbers)
    unit = {number: before + place for place, number in enumerate(numbers)}
    dims = _with_owners(space, [(erasures.listed[number].producers, unit[number]) for number in numbers], after)
    dims = _with_parts(dims, homes, unit, {one.name: one.shape for one in space.shapes}, after)
    starts = np.append([group.first for group in space.groups], range(before, after + 1)).astype(np.int64)
    groups = [*space.groups]
    for number in numbers:
        one = erasures.listed[number]
        why = None if one.layer is None else "no zeros make a network without the whole layer"
        groups.append(Group(group_of(one.name), unit[number], 1, (), inexact=why, structure=number))
    slices = slices_by_group(dims, starts)
    around = {number: [unit[one] for one in erasures.around(number) if one in unit] for number in numbers}
    gates = _GatedCosts(space.cost_model, numbers, around, after, homes.split, unit)
    cost_model = gates.costs(units, tables, homes, unit)
    moving = cost_model.counts.varies()[: tables.num_axes]
    numbers_left = _with_more(space.numbers, equations_of(tables, moving)[0]) if homes.parts else space.numbers
    return replace(
        space,
        groups=tuple(replace(group, slices=own) for group, own in zip(groups, slices, strict=True)),
        dims=tuple(dims),
        erasures=erasures,
        cost_model=cost_model,
        numbers=numbers_left,
    )


def _with_parts(
    dims: Sequence[TensorDim], homes: Homes, unit: Mapping[int, int], shapes: Mapping[str, Sequence[int]], none: int
) -> list[TensorDim]:
    """``dims`` whose positions belong, too, to the structures that they are parts of. ``none`` stands for no unit."""
    known = {(dim.tensor, dim.dim): dim.role for dim in dims}
    columns: dict[tuple[str, int, Role, bool], list[IntArray]] = {}
    for number, parts in homes.parts.items():
        for part in parts:
            there = known.get((part.tensor, part.dim), part.role)
            role = there if part.role is Role.CONSUMER else part.role
            own = columns.setdefault((part.tensor, part.dim, role, part.parameter), [])
            column = next((column for column in own if (column[part.positions] == none).all()), None)
            if column is None:
                column = np.full(shapes[part.tensor][part.dim], none)
                own.append(column)
            column[part.positions] = unit[number]
    joined: dict[tuple[int, bytes], IntArray] = {}
    found = []
    for dim in dims:
        own = columns.pop((dim.tensor, dim.dim, dim.role, dim.parameter), [])
        alike = id(dim.units), b"".join(column.tobytes() for column in own)
        if alike not in joined:
            joined[alike] = np.column_stack([dim.units, *own]) if own else dim.units
        found.append(replace(dim, units=joined[alike]))
    for (tensor, place, role, parameter), own in columns.items():
        found.append(TensorDim(tensor, place, np.column_stack(own), role, parameter))
    return found


def _with_more(known: Numbers, more: Numbers) -> Numbers:
    """``known`` and the equations of ``more`` that are not among them: those that only structures can break."""
    place = {id(equation): number for number, equation in enumerate(known.equations)}
    equations = [*known.equations]
    for equation in more.equations:
        if id(equation) not in place:
            place[id(equation)] = len(equations)
            equations.append(equation)
    deciding = {attribute: place[id(more.equations[number])] for attribute, number in more.deciding.items()}
    return Numbers(tuple(equations), deciding | dict(known.deciding))


def _with_owners(space: SearchSpace, owned: Sequence[tuple[Sequence[str], int]], after: int) -> list[TensorDim]:
    """The dimensions of a space in which every position of the parameters of ``owned``, each with a unit, belongs to
    that unit too. ``after``: how many units there are then. Dimensions that shared their units, and are owned alike,
    still do."""
    before = space.num_units
    extra: dict[tuple[str, int], list[int]] = {}
    new: list[tuple[str, int]] = []
    ranks = {one.name: len(one.shape) for one in space.shapes}
    roles = {(dim.tensor, dim.dim): dim.role for dim in space.dims}
    for names, unit in owned:
        for name in names:
            if not ranks[name]:
                continue  # no dimension that a position could be in; something else in the structure is zero, too
            found = [dim for dim in range(ranks[name]) if roles.get((name, dim)) is Role.PRODUCER]
            bare = [dim for dim in range(ranks[name]) if (name, dim) not in roles]
            key = name, (*found, *bare, 0)[0]
            if not found and key not in new:
                new.append(key)
            extra.setdefault(key, []).append(unit)
    known: dict[tuple[int, tuple[int, ...]], IntArray] = {}
    dims = []
    for dim in space.dims:
        owners = () if (dim.tensor, dim.dim) in new else tuple(extra.get((dim.tensor, dim.dim), ()))
        alike = id(dim.units), owners
        if alike not in known:
            columns = np.broadcast_to(np.array(owners, np.int64), (len(dim.units), len(owners)))
            known[alike] = np.column_stack([np.where(dim.units == before, after, dim.units), columns])
        dims.append(replace(dim, units=known[alike]))
    lengths = {one.name: one.shape for one in space.shapes}
    for name, place in new:
        units = np.tile(np.array(extra[name, place], np.int64), (lengths[name][place], 1))
        dims.append(TensorDim(name, place, units, Role.PRODUCER, True))
    return dims


class _GatedCosts:
    """A cost model with one more axis for every structure, numbered after all others, and one for every axis that
    structures share after these."""

    def __init__(
        self,
        old: CostModel,
        numbers: Sequence[int],
        around: Mapping[int, list[int]],
        units: int,
        split: Sequence[SplitAxis],
        unit: Mapping[int, int],
    ) -> None:
        self._old, self._units = old, units
        self._axes = old.counts.num_axes
        self._axis = {number: self._axes + place for place, number in enumerate(numbers)}
        self._around = [around[number] for number in numbers]
        self._split, self._shares = split, [[unit[number] for number in one.structures] for one in split]

    def costs(self, units: SolvedGroups, tables: Tables, homes: Homes, unit: Mapping[int, int]) -> CostModel:
        """The cost model itself. ``tables``: what the terms of the old one belong to."""
        old, operators = self._old, homes.operators
        peaks, work = old.activations, old.work
        params, macs, memory = self._shared(tables)
        if peaks is not None:
            terms, row = self._terms(peaks.terms, [operators.get(moment, ()) for moment in peaks.born.tolist()])
            peaks = PeakMemory(terms, peaks.born[row], peaks.died[row])
        if work is not None:
            places = [tables.working[number] for number in work.operator.tolist()]
            terms, row = self._terms(work.terms, [operators.get(place, ()) for place in places])
            work = replace(work, terms=terms, operator=work.operator[row])
        multiplying, of = self._terms(macs, [operators.get(place, ()) for place in tables.multiplying])
        return CostModel(
            self._counts(self._parted(units, tables, homes.absences, unit)),
            self._terms(params, [homes.tensors.get(name, ()) for name in tables.parameters])[0],
            multiplying,
            self._terms(memory, [homes.tensors.get(name, ()) for name in tables.tensors])[0],
            peaks,
            work,
            macs_of={name: tuple(np.flatnonzero(np.isin(of, terms)).tolist()) for name, terms in old.macs_of.items()},
        )

    def _shared(self, tables: Tables) -> tuple[Terms, Terms, Terms]:
        """The terms of parameters, multiply-accumulates and memory, with the axes that structures share."""
        old = self._old
        found = [Terms(terms.constant, terms.axes.copy()) for terms in (old.params, old.macs, old.memory)]
        rows = [{name: row for row, name in enumerate(names)} for names in (tables.parameters, tables.tensors)]
        for axis, one in enumerate(self._split, self._axes + len(self._around)):
            for terms, row in ((found[0], rows[0]), (found[2], rows[1])):
                for name, dim in one.tensors:
                    if name in row:
                        terms.axes[row[name], dim] = axis
            for number, column in one.macs:
                found[1].axes[number, column] = axis
        return found[0], found[1], found[2]

    def _parted(
        self, units: SolvedGroups, tables: Tables, absences: Absences | None, unit: Mapping[int, int]
    ) -> Counts:
        """The counts of the axes with parts of structures, which depend on units and structures."""
        found: list[tuple[int, IntArray]] = []
        known = () if absences is None else absences.units(tables.arrays, unit, self._units)
        for number, absent in known:
            own = units.of(tables.arrays[number])
            found.append((number, np.concatenate([np.where(own == len(units), self._units, own), absent], axis=1)))
        rows = stacked([rows for _, rows in found], self._units)
        axis = np.repeat([number for number, _ in found], [len(rows) for _, rows in found]).astype(np.int64)
        return count_rows(rows, axis, np.ones(len(rows), np.int64), self._axes, self._units)

    def _counts(self, parted: Counts) -> Counts:
        """``parted``: the counts of some axes, in place of the old ones."""
        old, extra = self._old.counts, len(self._around)
        others = np.isin(np.arange(self._axes), np.concatenate([parted.axis, parted.runs.axis]), invert=True)
        kept = others[old.axis]
        units = np.where(old.units[kept] == old.num_units, self._units, old.units[kept])
        shared = [np.array(own)[:, None] for own in self._shares]
        rows = stacked([units, parted.units, *(np.array([around]) for around in self._around), *shared], self._units)
        axis = [
            old.axis[kept],
            parted.axis,
            np.arange(self._axes, self._axes + extra),
            *(np.full(len(own), self._axes + extra + number) for number, own in enumerate(self._shares)),
        ]
        return Counts(
            self._units,
            self._axes + extra + len(shared),
            rows,
            np.concatenate([old.times[kept], parted.times, np.ones(extra + sum(map(len, shared)))]),
            np.concatenate(axis).astype(np.int64),
            old.runs[others[old.runs.axis]].joined(parted.runs),
        )

    def _terms(self, old: Terms, homes: Sequence[Sequence[int]]) -> tuple[Terms, IntArray]:
        """The terms with the gates of their structures, ``homes``, and the old row of each. What serves structures a
        and b is needed as long as one of them is there, a + b - a b: three terms."""
        none = self._axes + len(self._around) + len(self._split)
        row: list[int] = []
        sign: list[float] = []
        gates: list[list[int]] = []
        for number, several in enumerate(homes):
            own = [self._axis[one] for one in several if one in self._axis]
            choices = [some for size in range(1, len(own) + 1) for some in combinations(own, size)] or [()]
            row += [number] * len(choices)
            sign += [-1.0 if some and len(some) % 2 == 0 else 1.0 for some in choices]
            gates += map(list, choices)
        axes = np.where(old.axes == self._axes, none, old.axes)
        rows = np.array(row, np.int64)
        return Terms(old.constant[rows] * np.array(sign), np.column_stack([axes[rows], pad(gates, none)])), rows
