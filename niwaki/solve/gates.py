"""Structures as groups of one unit: their gates, and an axis of one position on the costs of all that they contain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from niwaki.core.cost import CostModel, PeakMemory, Terms
from niwaki.core.counts import Counts, IntArray
from niwaki.core.space import Group, SearchSpace
from niwaki.core.structures import Erasures
from niwaki.core.tensor_dims import Role, TensorDim, slices_by_group
from niwaki.solve.axis_table import Tables


@dataclass(frozen=True, slots=True, eq=False)
class Homes:
    """The smallest structure that each operator of the first run, and each tensor, is in: its number. Those that are in
    none are missing."""

    operators: Mapping[int, int]
    tensors: Mapping[str, int]


def with_structures(space: SearchSpace, tables: Tables, erasures: Erasures, homes: Homes) -> SearchSpace:
    """``space`` with every structure that can be erased as a group of one unit, after all others.

    A structure owns all entries of the parameters that make its result. Where it is erased no operator in it costs
    anything: each of their terms gets one more axis, whose only position depends on the units of all structures around.
    """
    numbers = [number for number, one in enumerate(erasures.listed) if one.erasable]
    before, after = space.num_units, space.num_units + len(numbers)
    unit = {number: before + place for place, number in enumerate(numbers)}
    dims = _with_owners(space, [(erasures.listed[number].producers, unit[number]) for number in numbers], after)
    starts = np.append([group.first for group in space.groups], range(before, after + 1)).astype(np.int64)
    groups = [*space.groups]
    for number in numbers:
        groups.append(Group(f"{erasures.listed[number].name} (whole)", unit[number], 1, (), structure=number))
    slices = slices_by_group(dims, starts)
    around = {number: [unit[one] for one in erasures.around(number) if one in unit] for number in numbers}
    gates = _GatedCosts(space.cost_model, numbers, around, after)
    return replace(
        space,
        groups=tuple(replace(group, slices=own) for group, own in zip(groups, slices, strict=True)),
        dims=tuple(dims),
        erasures=erasures,
        cost_model=gates.costs(tables, homes),
    )


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
    """A cost model with one more axis for every structure, numbered after all others."""

    def __init__(self, old: CostModel, numbers: Sequence[int], around: Mapping[int, list[int]], units: int) -> None:
        self._old, self._units = old, units
        self._axes = old.counts.num_axes
        self._axis = {number: self._axes + place for place, number in enumerate(numbers)}
        self._around = [around[number] for number in numbers]

    def costs(self, tables: Tables, homes: Homes) -> CostModel:
        """The cost model itself. ``tables``: what the terms of the old one belong to."""
        old, operators = self._old, homes.operators
        peaks, work = old.activations, old.work
        return CostModel(
            self._counts(),
            self._terms(old.params, [homes.tensors.get(name) for name in tables.parameters]),
            self._terms(old.macs, [operators.get(place) for place in tables.multiplying]),
            self._terms(old.memory, [homes.tensors.get(name) for name in tables.tensors]),
            peaks
            and PeakMemory(
                self._terms(peaks.terms, [operators.get(moment) for moment in peaks.born.tolist()]),
                peaks.born,
                peaks.died,
            ),
            work
            and replace(
                work, terms=self._terms(work.terms, [operators.get(tables.working[n]) for n in work.operator.tolist()])
            ),
        )

    def _counts(self) -> Counts:
        old, extra = self._old.counts, len(self._around)
        width = max([old.units.shape[1], *map(len, self._around)])
        units = np.full((len(old.units) + extra, width), self._units)
        units[: len(old.units), : old.units.shape[1]] = np.where(old.units == old.num_units, self._units, old.units)
        for row, around in enumerate(self._around, len(old.units)):
            units[row, : len(around)] = around
        axis = np.append(old.axis, np.arange(self._axes, self._axes + extra))
        return Counts(
            self._units,
            self._axes + extra,
            units,
            np.append(old.times, np.ones(extra)),
            axis.astype(np.int64),
            old.runs,
        )

    def _terms(self, old: Terms, homes: Sequence[int | None]) -> Terms:
        """``homes``: the structure of each term."""
        none = self._axes + len(self._around)
        own = np.array([none if home is None else self._axis.get(home, none) for home in homes], np.int64)
        return Terms(old.constant, np.column_stack([np.where(old.axes == self._axes, none, old.axes), own]))
