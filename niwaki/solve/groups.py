"""Form the groups: components that are not pinned are units, and similar units form a group."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from niwaki.core.counts import IntArray
from niwaki.core.space import BoolArray, Tie
from niwaki.core.tensor_dims import Role
from niwaki.rules.axis import Axis
from niwaki.rules.constraints import Constraints, Mark
from niwaki.solve.components import Components, solve
from niwaki.solve.describe import describe_units
from niwaki.solve.steps import UnitSteps
from niwaki.trace.graph import Graph, Origin, Value

_INNER = "it is the inner factor of a product whose outer factor (a head, a group) can be removed whole"
_BUFFERS = "only buffers make it"
_ALONE = "it is the only unit of its kind"
_UNSEEN = "no forward pass reached this parameter; give an example call that does"


@dataclass(frozen=True, slots=True, eq=False)
class SolvedDim:
    """One dimension of one parameter or buffer: the ids [n] of its positions, and the components ``rows`` [n, K] that
    these lie in. Tied dimensions share the array ``rows``."""

    value: Value
    dim: int
    ids: IntArray
    rows: IntArray
    role: Role

    @property
    def parameter(self) -> bool:
        """Whether the tensor is a parameter, and not a buffer."""
        return self.value.origin is Origin.PARAMETER


class SolvedGroups:
    """The units that can still be removed. Pinning more breaks no equation, so it needs no new solution."""

    def __init__(self, graph: Graph, constraints: Constraints, inner: bool = False) -> None:
        self.graph, self.constraints = graph, constraints
        self._pin_unseen()
        self.solution: Components = solve(constraints)
        self._pinned = np.zeros(self.solution.size, dtype=bool)  # components
        self._pinned[0] = True
        self._inexact = self._mark_inexact()
        self._late = np.full(self.solution.size, -1)  # component -> reason why it was pinned after solving
        none = np.zeros(0, dtype=np.int64)
        self._finer: tuple[IntArray, IntArray, IntArray] = (none[:, None], none, none)
        self.dims = self._find_dims()
        self.ties: tuple[Tie, ...] = ()
        self.steps = UnitSteps(self.solution.size)
        self._pin_made_by_buffers()
        self.regroup()
        if not inner and self._hold_inner():
            self.regroup()

    def __str__(self) -> str:
        return describe_units(self)

    def _pin_unseen(self) -> None:
        unseen = {value.number for value in self.graph.unseen}
        why = self.constraints.reason(_UNSEEN, None)
        for (number, dim), (first, size) in self.constraints.ids_of.items():
            if number in unseen and (number, dim) not in self.constraints.understood:
                self.constraints.pinned.append((np.arange(first, first + size), why))

    def _mark_inexact(self) -> IntArray:
        """For each component, the number of the first reason why removing it is inexact, or -1."""
        marks = np.full(self.solution.size, -1)
        for ids, why in {
            self.solution.name(ids): (ids, why) for ids, why in reversed(self.constraints.inexact)
        }.values():
            marks[self.solution.canonical(ids[:, None])] = why
        return marks

    def inexact(self, group: int) -> int | None:
        """The number of the reason why removing units of a group is inexact; None if it is exact."""
        why = int(self._inexact[self._units[self._starts[group]]])
        return None if why < 0 else why

    def _find_dims(self) -> list[SolvedDim]:
        constraints = self.constraints
        marked = constraints.marked()
        blocks = {int(block[0]): block for block in constraints.blocks if len(block)}
        dims = []
        for (number, dim), (first, size) in constraints.ids_of.items():
            ids = blocks[first] if size else np.zeros(0, dtype=np.int64)
            own = slice(first, first + size)
            role = role_of({mark for mark, of_ids in marked.items() if of_ids[own].any()})
            dims.append(SolvedDim(self.graph.values[number], dim, ids, self.solution.canonical(ids[:, None]), role))
        return dims

    def _pin_made_by_buffers(self) -> None:
        """Pin what only buffers produce: there is nothing to train, and the code may replace a buffer at any time."""
        made = np.zeros((2, self.solution.size), dtype=bool)  # by a parameter, by a buffer
        for dim in self.dims:
            if dim.role.produces:
                made[int(not dim.parameter), dim.rows.reshape(-1)] = True
        self.pin(np.flatnonzero(made[1] & ~made[0]), self.constraints.reason(_BUFFERS, None))

    def active(self, rows: IntArray) -> IntArray:
        """Replace pinned components in rows by 0."""
        return np.where(self._pinned[rows], 0, rows)

    def of(self, ids: IntArray) -> IntArray:
        """The unit numbers [n, K] of rows of ids; ``len(self)`` stands for no unit."""
        return self._number[self.active(self.solution.canonical(ids))]

    def of_components(self, rows: IntArray) -> IntArray:
        """The unit numbers of rows of components."""
        return self._number[self.active(rows)]

    def owners(self, dim: SolvedDim) -> IntArray:
        """The unit numbers [n, K] of the positions of a dimension; tied dimensions get the same array."""
        key = id(dim.rows)
        if key not in self._owners:
            owners = self.of_components(dim.rows)
            self._owners[key] = owners[:, (owners < len(self)).any(axis=0)]
        return self._owners[key]

    def free(self, dim: SolvedDim) -> BoolArray:
        """The positions of a dimension that some unit owns."""
        key = id(dim.rows)
        if key not in self._free:
            self._free[key] = np.asarray((self.owners(dim) < len(self)).any(axis=1), dtype=bool)
        return self._free[key]

    def __len__(self) -> int:
        return len(self._units)

    @property
    def starts(self) -> IntArray:
        """The first unit of each group, and the number of units: [groups + 1]."""
        return self._starts

    def reasons(self, dim: SolvedDim) -> IntArray:
        """The reason number of each pinned position; meaningless for others."""
        reasons = self.solution.reasons(dim.ids)
        for column in dim.rows.T[::-1]:
            reasons = np.where(self._late[column] >= 0, self._late[column], reasons)
        return reasons

    def pin(self, components: IntArray, why: int) -> bool:
        """Pin components; call `regroup` afterwards. Return whether any of them was free."""
        new = np.unique(components[~self._pinned[components]])
        self._pinned[new] = True
        self._late[new] = why
        return bool(len(new))

    def pin_axis(self, axis: Axis, why: int) -> bool:
        """As `pin`, for all units on an axis."""
        if not axis.free:
            return False
        components = self.active(self.solution.canonical(axis.ids)).reshape(-1)
        return self.pin(components[self._number[components] < len(self)], why)

    def on(self, axis: Axis) -> IntArray:
        """The components [n, K] of the positions of an axis, 0 for those that are not units."""
        rows = self.active(self.solution.canonical(axis.ids))
        return np.where(self._number[rows] < len(self), rows, 0)

    def multiples(self) -> IntArray:
        """The number of units [groups] of which each group has to lose a multiple, according to ``steps``."""
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        multiples: IntArray = np.lcm.reduceat(self.steps.multiple[self._units], self._starts[:-1])
        return multiples

    def members(self, group: int) -> IntArray:
        """The components that are the units of a group."""
        return self._units[self._starts[group] : self._starts[group + 1]]

    def pin_all(self, why: int) -> None:
        """Pin every unit."""
        self.pin(self._units, why)
        self.regroup()

    def split_by_count(self, rows: IntArray, place: IntArray, times: IntArray) -> None:
        """Keep units apart that occur differently often on some axes: ``rows`` of components, with the axis ``place``
        and the number of positions ``times`` of each."""
        self._finer = rows, place, times
        self.regroup()

    def survivors(self, axis: Axis, keep: BoolArray) -> BoolArray:
        """Which positions of an axis survive a mask of units."""
        return np.asarray(np.append(keep, True)[self.of(axis.ids)].all(axis=1), dtype=bool)

    def left(self, axis: Axis, keep: BoolArray) -> int:
        """How many positions of an axis survive a mask of units."""
        return int(self.survivors(axis, keep).sum()) if axis.free else axis.size

    def _hold_inner(self) -> bool:
        """Pin the inner units of positions that depend on several units. Return whether any was free.

        An outer factor that is alone in its group was pinned before, so its inner factor can be removed. A product of a
        factor with itself (every pair of channels) has no other inner factor to pin.
        """
        why, found = self.constraints.reason(_INNER, None), False
        for rows in self._distinct_rows():
            rows = self.active(rows)
            several = rows[(rows != 0).sum(axis=1) > 1]
            if len(several):
                later = (several != 0) & ((several != 0).cumsum(axis=1) > 1)
                outermost = several[(several != 0) & ~later]
                found |= self.pin(np.setdiff1d(several[later], outermost), why)
        return found

    def _distinct_rows(self) -> Iterable[IntArray]:
        return {id(dim.rows): dim.rows for dim in self.dims}.values()

    def regroup(self) -> None:
        """Number the units again. Components on the same dimensions, equally often, form a group; groups are in the
        order of their first dimension. A unit that is alone in its group cannot be removed and is pinned."""
        self.ties = ()
        while True:
            self._group()
            sizes = np.diff(self._starts)
            alone = self._units[self._starts[:-1][sizes == 1]]
            if not len(alone):
                return
            self.pin(alone, self.constraints.reason(_ALONE, None))

    def _group(self) -> None:
        """Group units by a hash of the dimensions that they are on: the sum of one random number per dimension."""
        size, draw = self.solution.size, np.random.default_rng(0)
        last = len(self.dims)
        signature, produced = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=bool)
        first = np.full(size, last)
        tied: dict[int, list[int]] = {}
        for number, dim in enumerate(self.dims):
            tied.setdefault(id(dim.rows), []).append(number)
        for rows in self._distinct_rows():
            flat = rows.reshape(-1)
            weight = draw.integers(1, 2**62, dtype=np.int64)
            own = tied[id(rows)]
            np.add.at(signature, flat, weight)  # wraps around
            np.minimum.at(first, flat, own[0])
            if any(self.dims[number].parameter for number in own):
                produced[flat] = True
        rows, place, times = self._finer
        for column in rows.T:
            np.add.at(signature, column, draw.integers(1, 2**62, size=int(place.max(initial=0)) + 1)[place] * times)
        signature[self._inexact >= 0] += draw.integers(1, 2**62)  # no group mixes exact and inexact units
        units = np.flatnonzero(produced & ~self._pinned)
        units = _ordered(units, signature[units], first[units])
        signature, first = signature[units], first[units]
        new = np.append(True, (signature[1:] != signature[:-1]) | (first[1:] != first[:-1]))
        starts = np.flatnonzero(new) if len(units) else np.zeros(0, dtype=np.int64)
        self._units = units
        self._starts = np.append(starts, len(units)).astype(np.int64)
        self._number = np.full(size, len(units), dtype=np.int64)
        self._number[units] = np.arange(len(units))
        self._owners: dict[int, IntArray] = {}
        self._free: dict[int, BoolArray] = {}


def role_of(marks: Collection[Mark]) -> Role:
    """The role of a dimension, given all marks of its positions."""
    if Mark.DIRECTION in marks:
        return Role.DIRECTION
    if Mark.CONSUMED not in marks or Mark.PRODUCED in marks:
        return Role.PRODUCER
    return Role.ZEROED_CONSUMER if Mark.ZEROED_BY_METHOD in marks else Role.CONSUMER


def _ordered(units: IntArray, signature: IntArray, first: IntArray) -> IntArray:
    """Order ascending ``units`` so that similar ones are together: by first dimension, then by the first unit of a
    kind. Runs of similar units are moved as a whole."""
    if not len(units):
        return units
    begin = np.flatnonzero(np.append(True, (signature[1:] != signature[:-1]) | (first[1:] != first[:-1])))
    length = np.diff(np.append(begin, len(units)))
    _, leader, kind = np.unique(
        np.stack([first[begin], signature[begin]], axis=1), axis=0, return_index=True, return_inverse=True
    )
    order = np.lexsort((begin, leader[kind.reshape(-1)], first[begin]))
    begin, length = begin[order], length[order]
    shift = begin - np.append(0, length.cumsum()[:-1])
    ordered: IntArray = units[np.arange(len(units)) + np.repeat(shift, length)]
    return ordered
