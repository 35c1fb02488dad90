"""Units and groups: the independent components that are left, and which of them are alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from niwaki.core.counts import IntArray
from niwaki.core.space import BoolArray
from niwaki.rules.axis import Axis
from niwaki.solve.equations import Components, solve
from niwaki.solve.facts import Facts
from niwaki.trace.graph import Graph, Origin, Value

_INNER = "it is the inner factor of a product whose outer factor (a head, a group) can be removed whole"
_ALONE = "it is the only unit of its kind"
_UNSEEN = "no forward pass reached this parameter; give an example call that does"


@dataclass(frozen=True, slots=True, eq=False)
class Spot:
    """One dimension of one parameter or buffer, with the components of its positions."""

    value: Value
    dim: int
    ids: IntArray
    rows: IntArray
    produces: bool
    driven: bool


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Groups whose units can only leave together: ``steps[i]`` of group ``groups[i]`` at a time, ``most`` times."""

    groups: tuple[int, ...]
    steps: tuple[int, ...]
    most: int


class Units:
    """What can still be removed. Pinning more never breaks an equation, so it needs no new solution."""

    def __init__(self, graph: Graph, facts: Facts, inner: bool = False) -> None:
        self.graph, self.facts = graph, facts
        self._pin_unseen()
        self.solution: Components = solve(facts)
        self._pinned = np.zeros(facts.ids, dtype=bool)  # components
        self._pinned[0] = True
        self._inexact = self._mark_inexact()
        self._late = np.full(facts.ids, -1)  # component -> reason, for what was pinned after solving
        self._finer: tuple[IntArray, IntArray] = (np.zeros((0, 1), dtype=np.int64), np.zeros(0, dtype=np.int64))
        self.spots = self._find_spots()
        self.rhythms: tuple[Rhythm, ...] = ()
        if not inner:
            self._hold_inner()
        self.regroup()

    def _pin_unseen(self) -> None:
        unseen = {value.number for value in self.graph.unseen()}
        why = self.facts.reason(_UNSEEN, None)
        for (number, _), (first, size) in self.facts.places.items():
            if number in unseen:
                self.facts.pinned.append((np.arange(first, first + size), why))

    def _mark_inexact(self) -> IntArray:
        """For each component the reason for which removing it is inexact, or -1; the first reason counts."""
        marks = np.full(self.facts.ids, -1)
        for ids, why in reversed(self.facts.inexact):
            marks[self.solution.canonical(ids[:, None])] = why
        return marks

    def inexact(self, group: int) -> int | None:
        """The reason for which the units of a group can leave only inexactly; None if they leave exactly."""
        why = int(self._inexact[self._units[self._starts[group]]])
        return None if why < 0 else why

    def _find_spots(self) -> list[Spot]:
        facts = self.facts
        marks = {}
        for name, arrays in (("reads", facts.reads), ("drives", facts.drives), ("makes", facts.makes)):
            mark = np.zeros(facts.ids, dtype=bool)
            if arrays:
                mark[np.concatenate(arrays)] = True
            marks[name] = mark
        spots = []
        for (number, dim), (first, size) in facts.places.items():
            ids = np.arange(first, first + size)
            own = slice(first, first + size)
            produces = bool(not marks["reads"][own].any() or marks["makes"][own].any())
            driven = produces or bool(marks["drives"][own].any())
            rows = self.solution.canonical(ids[:, None])
            spots.append(Spot(self.graph.values[number], dim, ids, rows, produces, driven))
        return spots

    def active(self, rows: IntArray) -> IntArray:
        """Rows of components without those that are pinned."""
        return np.where(self._pinned[rows], 0, rows)

    def of(self, ids: IntArray) -> IntArray:
        """The unit numbers [n, K] of rows of ids; ``len(self)`` is none."""
        return self._number[self.active(self.solution.canonical(ids))]

    def of_components(self, rows: IntArray) -> IntArray:
        """The unit numbers of rows of components."""
        return self._number[self.active(rows)]

    def __len__(self) -> int:
        return len(self._units)

    @property
    def starts(self) -> IntArray:
        """The first unit of each group, and the number of units: [groups + 1]."""
        return self._starts

    def reasons(self, spot: Spot) -> IntArray:
        """The numbers of the reasons for which positions are pinned (meaningless where they are not)."""
        reasons = self.solution.seed[spot.ids]
        for column in spot.rows.T[::-1]:
            reasons = np.where(self._late[column] >= 0, self._late[column], reasons)
        return reasons

    def pin(self, components: IntArray, why: int) -> bool:
        """Pin components; `regroup` must follow. Returns whether any of them was free."""
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

    def pin_all(self, why: int) -> None:
        """Give up on every unit."""
        self.pin(self._units, why)
        self.regroup()

    def distinguish(self, rows: IntArray, place: IntArray) -> None:
        """Units that occur differently often on some axes (rows of components, and the axis of each) are not alike."""
        self._finer = rows, place
        self.regroup()

    def random_keep(self, rng: np.random.Generator, least: int = 1, share: float = 1.0) -> BoolArray:
        """A random mask of units that keeps at least one of every group, or ``least`` where there are more, at most
        ``share`` of it, and respects the rhythms."""
        sizes = np.diff(self._starts)
        low = np.minimum(least, sizes - 1)
        kept = rng.integers(low, np.maximum(low, (sizes * share).astype(np.int64)) + 1)
        for rhythm in self.rhythms:
            times = int(rng.integers(int(rhythm.most * (1 - share)), rhythm.most + 1))
            for group, step in zip(rhythm.groups, rhythm.steps, strict=True):
                kept[group] = sizes[group] - times * step
        return self._keep(kept, rng)

    def contrasts(self, rng: np.random.Generator) -> Iterator[BoolArray]:
        """A few masks among which, for any two groups that are in no rhythm, there is one that leaves the first its
        least and the second whole: small groups would escape a purely random choice now and then."""
        sizes, least = np.diff(self._starts), self._least()
        mover = np.arange(len(sizes))
        for rhythm in self.rhythms:
            mover[list(rhythm.groups)] = rhythm.groups[0]
        for bit in range(max(1, len(sizes).bit_length())):
            small = (mover >> bit) & 1 == 1
            yield self._keep(np.where(small, least, sizes), rng)
            yield self._keep(np.where(small, sizes, least), rng)

    def _least(self) -> IntArray:
        sizes = np.diff(self._starts)
        kept: IntArray = np.ones_like(sizes)
        for rhythm in self.rhythms:
            groups = np.array(rhythm.groups)
            kept[groups] = sizes[groups] - rhythm.most * np.array(rhythm.steps)
        return kept

    def _keep(self, kept: IntArray, rng: np.random.Generator) -> BoolArray:
        keep = np.zeros(len(self), dtype=bool)
        for start, size, number in zip(self._starts, np.diff(self._starts), kept, strict=False):
            keep[start + rng.permutation(size)[:number]] = True
        return keep

    def survivors(self, axis: Axis, keep: BoolArray) -> BoolArray:
        """Which positions of an axis survive a mask of units."""
        return np.asarray(np.append(keep, True)[self.of(axis.ids)].all(axis=1), dtype=bool)

    def left(self, axis: Axis, keep: BoolArray) -> int:
        """How many positions of an axis survive a mask of units."""
        return int(self.survivors(axis, keep).sum()) if axis.free else axis.size

    def _hold_inner(self) -> None:
        """Where a position depends on several components, the outermost stays a unit."""
        why = self.facts.reason(_INNER, None)
        for spot in self.spots:
            rows = self.active(spot.rows)
            several = rows[(rows != 0).sum(axis=1) > 1]
            if len(several):
                later = (several != 0).cumsum(axis=1) > 1
                self.pin(several[later & (several != 0)], why)

    def regroup(self) -> None:
        """Number the units again: components with the same multiset of places form a group, in the order of their
        first place; a unit that is alone in its group cannot be removed and is pinned."""
        self.rhythms = ()
        while True:
            self._group()
            sizes = np.diff(self._starts)
            alone = self._units[self._starts[:-1][sizes == 1]]
            if not len(alone):
                return
            self.pin(alone, self.facts.reason(_ALONE, None))

    def _group(self) -> None:
        components, places = [], []
        produced = np.zeros(self.facts.ids, dtype=bool)
        for number, spot in enumerate(self.spots):
            flat = self.active(spot.rows).reshape(-1)
            flat = flat[flat != 0]
            components.append(flat)
            places.append(np.full(len(flat), number))
            if spot.value.origin is Origin.PARAMETER:
                produced[flat] = True
        finer_rows, finer_place = self._finer
        flat = self.active(finer_rows)
        components.append(flat[flat != 0])
        places.append(np.repeat(finer_place, (flat != 0).sum(axis=1)) + len(self.spots))
        inexact = np.flatnonzero(
            self._inexact >= 0
        )  # as if they had a place of their own: no group mixes the two kinds
        components.append(inexact)
        places.append(np.full(len(inexact), len(self.spots) + int(finer_place.max(initial=-1)) + 1))
        component, place = np.concatenate(components), np.concatenate(places)
        known = produced[component]
        component, place = component[known], place[known]
        units, index = np.unique(component, return_inverse=True)
        last = int(place.max(initial=0)) + 1
        weights = np.random.default_rng(0).integers(1, 2**62, size=last, dtype=np.int64)
        signature = np.zeros(len(units), dtype=np.int64)
        np.add.at(signature, index, weights[place])  # wraps around: a hash of the multiset
        first = np.full(len(units), last)
        np.minimum.at(first, index, place)
        order = np.lexsort((units, signature, first))
        units, signature, first = units[order], signature[order], first[order]
        new = np.append(True, (signature[1:] != signature[:-1]) | (first[1:] != first[:-1]))
        starts = np.flatnonzero(new) if len(units) else np.zeros(0, dtype=np.int64)
        self._units = units
        self._starts = np.append(starts, len(units)).astype(np.int64)
        self._number = np.full(self.facts.ids, len(units), dtype=np.int64)
        self._number[units] = np.arange(len(units))
