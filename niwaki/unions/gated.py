"""A space in which masks of union streams are learnt: streams stay, and what branches write and read has gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from niwaki.core.cost import CostModel, Terms
from niwaki.core.counts import BoolArray, Counts, FloatArray, IntArray
from niwaki.core.names import named_buffers, named_parameters
from niwaki.core.space import Group, SearchSpace, Tie
from niwaki.core.tensor_dims import Role, TensorDim, slices_by_group
from niwaki.errors import PlanError
from niwaki.unions.readers import Reader
from niwaki.unions.writers import Writers


@dataclass(frozen=True, slots=True, eq=False)
class GatedUnions:
    """``space``: of the units that streams do not carry, and after them of the channels of each writer and reader; it
    costs what the plans of unions cost, and is not to be cut itself. ``units`` [its num_units]: the number of each in
    the space of unions (`Writers.scored_space`)."""

    space: SearchSpace
    units: IntArray

    @classmethod
    def of(cls, writers: Writers) -> GatedUnions:
        """That of the streams of ``writers``. All channels of streams stay, and so do whole structures.

        Raises:
            PlanError: the sizes of a stream and of other layers depend on one another.
        """
        space, streams = writers.space, {end.group for end in writers.ends}
        stays = np.zeros(space.num_units, dtype=bool)
        for which, group in enumerate(space.groups):
            stays[group.numbers] = which in streams or group.structure is not None
        own = np.flatnonzero(~stays)
        total = len(own) + sum(len(end.units) for end in writers.ends)
        number: IntArray = np.full(space.num_units + 1, total)
        number[own] = np.arange(len(own))
        groups, kept = _groups(space, streams, number)
        units, first, ends = [own], len(own), list[Group]()
        roles: dict[int, tuple[IntArray, Role]] = {}  # by the identity of the dimension
        channels_of: dict[tuple[str, int], IntArray] = {}
        told = space.num_units
        for end, name in zip(writers.ends, writers.names, strict=True):
            channels = np.arange(first, first + len(end.units))
            gated = {place.tensor for place in end.dims if place.tensor.rpartition(".")[0] in _last(end)}
            for place in end.dims:  # all are zero without the channel, and the last ones have its gate
                role = Role.ZEROED_CONSUMER if place.tensor in gated else Role.PRODUCER
                roles[id(place)] = channels, role
                channels_of[place.tensor, place.dim] = channels
            ends.append(Group(name, first, len(channels), ()))
            units.append(np.arange(told, told + len(channels)))
            first, told = first + len(channels), told + len(channels)
        dims = tuple(_dim(place, number, roles.get(id(place))) for place in space.dims)
        dims = tuple(place for place in dims if bool((place.units < total).any()))
        every = (*groups, *ends)
        starts = np.array([*(group.first for group in every), total])
        slices = slices_by_group(dims, starts)
        return cls(
            replace(
                space,
                groups=tuple(replace(group, slices=own) for group, own in zip(every, slices, strict=True)),
                dims=dims,
                cost_model=_costs(writers, number, total, channels_of),
                ties=_ties(space, streams, kept),
                erasures=None,
            ),
            np.concatenate(units),
        )

    def keep(self, mask: BoolArray, num_units: int) -> BoolArray:
        """``mask`` [num_units of this space] as one of the space of unions [num_units], in which all else stays."""
        found = np.ones(num_units, dtype=bool)
        found[self.units] = mask
        return found


def _last(end: Any) -> set[str]:
    """The modules whose tensors have the gates of the channels: those that read, or the last one that writes."""
    return {path for path, _ in end.layers} if isinstance(end, Reader) else {end.module}


def _groups(space: SearchSpace, streams: set[int], number: IntArray) -> tuple[list[Group], dict[int, int]]:
    """The groups that no stream carries, and the new number of each."""
    found: list[Group] = []
    kept: dict[int, int] = {}
    for old, group in enumerate(space.groups):
        if old not in streams and group.structure is None:
            kept[old] = len(found)
            found.append(replace(group, first=int(number[group.first])))
    return found, kept


def _ties(space: SearchSpace, streams: set[int], kept: Mapping[int, int]) -> tuple[Tie, ...]:
    found = []
    for tie in space.ties:
        if not streams.isdisjoint(tie.groups):
            if not streams.issuperset(tie.groups):
                name = next(space.groups[one].name for one in tie.groups if one not in streams)
                raise PlanError(
                    f"The sizes of {name!r} and of a stream depend on one another, so that no mask can be learnt for "
                    "what branches write and read. Choose by scores: niwaki.score(space, ...)."
                )
            continue
        found.append(replace(tie, groups=tuple(kept[one] for one in tie.groups)))
    return tuple(found)


def _dim(place: TensorDim, number: IntArray, own: tuple[IntArray, Role] | None) -> TensorDim:
    """A dimension with the new numbers of its units, or with channels of its own."""
    if own is not None:
        return replace(place, units=own[0][:, None], role=own[1])
    return replace(place, units=number[place.units])


def _costs(writers: Writers, number: IntArray, total: int, own: Mapping[tuple[str, int], IntArray]) -> CostModel:
    """Costs with the channels ``own`` of writers and readers, by tensor and dimension, in place of those of their
    streams, which all stay."""
    space, model = writers.space, writers.space.cost_model
    rows = _CountRows(model.counts, number, total)
    axis_of = {key: rows.add(channels[:, None]) for key, channels in own.items()}
    touched, beside = {tensor for tensor, _ in own}, dict[tuple[str, int], list[IntArray]]()
    for place in space.dims:
        if place.tensor in touched and (place.tensor, place.dim) not in own:
            beside.setdefault((place.tensor, place.dim), []).append(number[place.units])
    others = {key: rows.add(np.concatenate(units, axis=1)) for key, units in beside.items()}
    counts = rows.counts()
    last = counts.num_axes
    parameters = dict(named_parameters(space.model))
    itemsize = {name: one.itemsize for name, one in (*parameters.items(), *named_buffers(space.model))}
    shapes = {shape.name: shape.shape for shape in space.shapes}
    params, memory = (
        _GrowingTerms(model.params, model.counts.num_axes, last),
        _GrowingTerms(model.memory, model.counts.num_axes, last),
    )
    macs = _GrowingTerms(model.macs, model.counts.num_axes, last)
    for tensor in dict.fromkeys(tensor for tensor, _ in own):
        shape = shapes[tensor]
        narrow = [axis_of[tensor, dim] for dim in range(len(shape)) if (tensor, dim) in own]
        wide = float(np.prod([shape[dim] for dim in range(len(shape)) if (tensor, dim) in own]))
        varying = [others[tensor, dim] for dim in range(len(shape)) if (tensor, dim) in others]
        fixed = float(np.prod([shape[dim] for dim in range(len(shape)) if {(tensor, dim)}.isdisjoint({*own, *others})]))
        for terms, each in ((params, float(tensor in parameters)), (memory, float(itemsize[tensor]))):
            if each:
                terms.add(-each * fixed * wide, varying)
                terms.add(each * fixed, [*varying, *narrow])
        for term in model.macs_of.get(tensor, ()):
            macs.multiply(term, 1 / wide, narrow)
    return CostModel(counts, params.terms(), macs.terms(), memory.terms(), macs_of=model.macs_of)


class _CountRows:
    """The rows of counts with other numbers of units (``number``; those that always stay are ``total``), and of axes
    that are added."""

    def __init__(self, old: Counts, number: IntArray, total: int) -> None:
        length = old.runs.end - old.runs.first
        shift = old.runs.first - np.append(0, length.cumsum())[:-1]
        runs = np.arange(length.sum()) + np.repeat(shift, length)
        padded = np.full((len(runs), max(old.units.shape[1], 1)), total)
        padded[:, 0] = number[runs]
        self._units = [number[old.units].reshape(len(old.units), -1), padded]
        self._times = [old.times, np.repeat(old.runs.times, length)]
        self._axis = [old.axis, np.repeat(old.runs.axis, length)]
        self._axes, self._total = old.num_axes, total

    def add(self, units: IntArray) -> int:
        """Add an axis with a position for each row of ``units`` [n, K]; its number."""
        self._units.append(units)
        self._times.append(np.ones(len(units)))
        self._axis.append(np.full(len(units), self._axes))
        self._axes += 1
        return self._axes - 1

    def counts(self) -> Counts:
        """All of them."""
        wide = max(units.shape[1] for units in self._units)
        units = np.full((sum(map(len, self._units)), wide), self._total)
        first = 0
        for some in self._units:
            units[first : first + len(some), : some.shape[1]] = some
            first += len(some)
        order = np.argsort(axis := np.concatenate(self._axis), kind="stable")
        return Counts.of(self._total, self._axes, units[order], np.concatenate(self._times)[order], axis[order])


class _GrowingTerms:
    """A sum of terms that gets more of them. ``old``: the sentinel of its axes; ``new``: that of the result."""

    def __init__(self, terms: Terms, old: int, new: int) -> None:
        self._constant: list[float] = terms.constant.tolist()
        self._axes = [[int(axis) for axis in row if axis < old] for row in terms.axes]
        self._new = new

    def add(self, constant: float, axes: list[int]) -> None:
        """Add a constant times the counts of some axes."""
        self._constant.append(constant)
        self._axes.append(list(axes))

    def multiply(self, term: int, factor: float, axes: list[int]) -> None:
        """Multiply a term by a factor and the counts of more axes."""
        self._constant[term] *= factor
        self._axes[term] += axes

    def terms(self) -> Terms:
        """The sum."""
        wide = max(map(len, self._axes), default=0)
        axes = np.full((len(self._axes), max(wide, 1)), self._new)
        for number, row in enumerate(self._axes):
            axes[number, : len(row)] = row
        constant: FloatArray = np.array(self._constant, dtype=np.float64)
        return Terms(constant, axes)
