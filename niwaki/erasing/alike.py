"""Which dimensions have the same positions, one for one: they are of one size after any cut."""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from typing import final

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from niwaki.core.counts import IntArray
from niwaki.rules.axis import Axis
from niwaki.rules.constraints import Constraints

Run = tuple[int, int, int]  # the number of a part, the first position in it, how many in order
Key = tuple[tuple[Run, ...], ...]
_RUNS = 64  # what is more mixed than that is looked at as if it were of nothing else


@final
class Alike:
    """Dimensions that equations tie to one another position by position, unlike those of which one is a part of the
    other, as in a concatenation."""

    def __init__(self, constraints: Constraints) -> None:
        self._constraints = constraints
        self._keys: dict[int, tuple[IntArray, Key]] = {}  # by the identity of an array, which must not be freed then
        self._cut: dict[int, tuple[IntArray, tuple[tuple[Run, ...], ...]]] = {}

    def key(self, axis: Axis) -> Key:
        """The same for two axes that have the same positions, one for one."""
        known = self._keys.get(id(axis.ids))
        if known is None:
            key = tuple(self._known(runs, self._parts) for runs in self._columns(axis.ids))
            known = self._keys[id(axis.ids)] = axis.ids, key
        return known[1]

    def stays(self, axis: Axis) -> bool:
        """Whether an axis is pinned: none of its positions can go."""
        if not axis.free:
            return True
        parts = {run[0] for runs in self.key(axis) for run in runs}
        return all(self.key(axis)) and parts <= self._pinned

    def outer(self, axis: Axis) -> tuple[Key, int, Key] | None:
        """Of what is the product of two factors, position by position, the key of the outer one, how many positions it
        has, and the key of the inner one; None for anything else."""
        for plain, product in self._products.get(int(axis.ids[0, 0]) if axis.ids.size else 0, ()):
            if np.array_equal(plain, axis.ids):
                times = int((product[:, 0] == product[0, 0]).sum())
                one, other = product[::times, 0], product[:times, 1]
                whole = np.stack([np.repeat(one, times), np.tile(other, len(one))], axis=1)
                if np.array_equal(whole, product):
                    return self._key_of(one), len(one), self._key_of(other)
        return None

    def _key_of(self, ids: IntArray) -> Key:
        return tuple(self._known(runs, self._parts) for runs in self._columns(ids.reshape(-1, 1)))

    @cached_property
    def _products(self) -> dict[int, list[tuple[IntArray, IntArray]]]:
        """What is tied to products of two factors, with these, by its first id."""
        found: dict[int, list[tuple[IntArray, IntArray]]] = {}
        for left, right, _ in self._constraints.equal:
            for plain, product in ((left, right), (right, left)):
                if plain.shape[1:] == (1,) and product.shape == (len(plain), 2) and len(plain):
                    found.setdefault(int(plain[0, 0]), []).append((plain, product))
        return found

    @cached_property
    def _pinned(self) -> frozenset[int]:
        """The parts of which every position is pinned."""
        columns = (runs for ids, _ in self._constraints.pinned for runs in self._columns(ids.reshape(-1, 1)))
        return frozenset(int(self._parts[runs[0][0]]) for runs in columns if self._whole(runs))

    def in_a_row(self, key: Key) -> tuple[Key, ...]:
        """What has the positions of this ``key`` one after another, as in a concatenation; nothing if that is one."""
        if len(key) != 1 or not key[0]:
            return ()
        runs = key[0] if len(key[0]) > 1 else self._made_of.get(key[0][0][0], ())
        return tuple(((run,),) for run in runs)

    @cached_property
    def _made_of(self) -> dict[int, tuple[Run, ...]]:
        """The runs of parts that a part is, all in a row."""
        return {int(self._parts[block]): runs for runs, block in self._rows.items() if len(runs) > 1}

    def _known(self, runs: tuple[Run, ...], parts: IntArray) -> tuple[Run, ...]:
        """``runs`` of blocks as runs of parts; one run, if there is a block that is all of them in a row."""
        named = _of_parts(runs, parts)
        whole = self._rows.get(named)
        return named if whole is None else ((int(parts[whole]), 0, len(self._constraints.blocks[whole - 1])),)

    @cached_property
    def _starts(self) -> IntArray:
        return np.array([block[0] for block in self._constraints.blocks], np.int64)

    @cached_property
    def _sorted(self) -> list[int]:
        return self._starts.tolist()  # type: ignore[no-any-return]

    @cached_property
    def _rows(self) -> dict[tuple[Run, ...], int]:
        """What is tied to a whole block, as runs of parts: the block."""
        return self._solved[1]

    @cached_property
    def _parts(self) -> IntArray:
        """For each block, numbered from 1, the part: all blocks that are tied to it one for one."""
        return self._solved[0]

    @cached_property
    def _solved(self) -> tuple[IntArray, dict[tuple[Run, ...], int]]:
        edges: list[tuple[int, int]] = []
        rows: list[tuple[tuple[Run, ...], int]] = []
        for left, right, _ in self._constraints.equal:
            if left.shape != right.shape:
                continue
            for one, other in zip(self._columns(left), self._columns(right), strict=True):
                if self._whole(one) and self._whole(other):
                    edges.append((one[0][0], other[0][0]))
                elif self._whole(one) and other:
                    rows.append((other, one[0][0]))
                elif self._whole(other) and one:
                    rows.append((one, other[0][0]))
        while True:
            parts = self._joined(edges)
            known: dict[tuple[Run, ...], int] = {}
            more = []
            for runs, block in rows:
                first = known.setdefault(_of_parts(runs, parts), block)
                if parts[first] != parts[block]:
                    more.append((first, block))
            if not more:
                return parts, known
            edges += more

    def _joined(self, edges: list[tuple[int, int]]) -> IntArray:
        size = len(self._starts) + 1
        ones, others = np.array(edges, np.int64).reshape(-1, 2).T
        joined = coo_array((np.ones(len(ones), bool), (ones, others)), shape=(size, size))
        _, found = connected_components(joined, directed=False)
        return np.asarray(found, np.int64)

    def _columns(self, ids: IntArray) -> tuple[tuple[Run, ...], ...]:
        """Each column of ids as runs; many equations have the same arrays."""
        known = self._cut.get(id(ids))
        if known is None:
            known = self._cut[id(ids)] = ids, tuple(map(self._runs, ids.T))
        return known[1]

    def _runs(self, column: IntArray) -> tuple[Run, ...]:
        """A column of ids as runs of blocks; none if it is more mixed than that, or has positions that always stay."""
        if not column.size or not column.min():
            return ()
        begin, end = int(column[0]), int(column[-1])
        if end - begin + 1 == len(column) and bool((column[1:] - column[:-1] == 1).all()):
            number = bisect_right(self._sorted, begin)
            if bisect_right(self._sorted, end) == number:
                return ((number, begin - self._sorted[number - 1], len(column)),)
        block = np.searchsorted(self._starts, column, side="right")
        starts = np.append(0, np.flatnonzero((np.diff(block) != 0) | (np.diff(column) != 1)) + 1)
        if len(starts) > _RUNS:
            return ()
        lengths = np.diff(np.append(starts, len(column)))
        first = column[starts] - self._starts[block[starts] - 1]
        return tuple(zip(block[starts].tolist(), first.tolist(), lengths.tolist(), strict=True))

    def _whole(self, runs: tuple[Run, ...]) -> bool:
        """Whether they are all of a block, in order."""
        return len(runs) == 1 and runs[0][1:] == (0, len(self._constraints.blocks[runs[0][0] - 1]))


def _of_parts(runs: tuple[Run, ...], parts: IntArray) -> tuple[Run, ...]:
    return tuple((int(parts[block]), first, length) for block, first, length in runs)
