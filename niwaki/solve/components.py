"""Solve the equations between ids: the ids of one connected component can only be removed together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from niwaki.core.counts import IntArray
from niwaki.core.space import BoolArray
from niwaki.rules.constraints import Constraints
from niwaki.solve.describe import describe_components
from niwaki.solve.factorise import Refining, connected_rows

ShortArray = NDArray[np.int32]


_WIDE = 8  # columns; such equations are slow to solve, and others often say the same


@dataclass(slots=True, eq=False)
class _Solved:
    """The solution for ids that each stand for many: ``canonical(ids)`` gives the components that they depend on.

    ``seed[id]`` is the number of the reason for which a pinned id is pinned.
    """

    component: IntArray  # [N] id -> component, 0 is pinned
    product: IntArray  # [N, W] component -> components it is the product of
    defined: BoolArray  # [N] whether a component is a product
    seed: IntArray  # [N] id -> reason

    def canonical(self, ids: IntArray | ShortArray) -> IntArray:
        """Replace rows [n, K] of ids by rows [n, K'] of independent components, outer factors first, 0 padded."""
        rows = self.component[ids]
        while (is_product := self.defined[rows]).any():
            expanded = np.where(is_product[..., None], self.product[rows], 0)
            rows = np.concatenate([np.where(is_product, 0, rows)[..., None], expanded], axis=2)
            rows = _compact(rows.reshape(len(ids), rows.shape[1] * rows.shape[2]))
        return _compact(rows)

    def says(self, left: IntArray, right: IntArray) -> bool:
        """Whether both sides are the same single component in every row, so that the equation can be dropped."""
        if not (left.shape[1] and right.shape[1]):
            return False
        ours, theirs = self.component[left], self.component[right]
        name = ours.max(axis=1)
        if not np.array_equal(name, theirs.max(axis=1)):
            return False
        return all(bool(((side == 0) | (side == name[:, None])).all()) for side in (ours, theirs))


class Components:
    """The independent components that positions depend on, at most ``size`` of them."""

    def __init__(self, blocks: Blocks, short: ShortArray, solved: _Solved) -> None:
        self.size = len(solved.component)
        self._blocks, self._short, self._solved = blocks, short, solved
        self._rows: dict[int, IntArray] = {}

    def canonical(self, ids: IntArray) -> IntArray:
        """Replace rows [n, K] of ids by rows [n, K'] of components, outer factors first, 0 padded. Tied blocks get the
        same array of rows."""
        number = self._blocks.number(ids)
        if number is None:
            return self._solved.canonical(self._short[ids])
        first = int(self._short[ids.flat[0]])
        rows = self._rows.get(first)
        if rows is None or len(rows) != len(ids):
            rows = self._rows[first] = self._solved.canonical(self._short[ids.reshape(-1, 1)])
        return rows

    def __str__(self) -> str:
        return describe_components(self._solved.canonical(self._short[:, None]))

    def name(self, ids: IntArray) -> object:
        """A key that implies equal rows, and is cheaper to find. Copies of an array may get another key: they are
        solved once more, with the same result."""
        return id(ids) if self._blocks.number(ids) is None else (int(self._short[ids.flat[0]]), len(ids))

    def reasons(self, ids: IntArray) -> IntArray:
        """The reason number of each pinned id; meaningless for others."""
        return self._solved.seed[self._short[ids]]


def _compact(rows: IntArray) -> IntArray:
    """Drop repetitions in each row, move the rest to the left in its order, and drop empty columns."""
    rows = rows[:, (rows != 0).any(axis=0)]
    if rows.shape[1] < 2:
        return rows
    for left in range(rows.shape[1]):
        for right in range(left + 1, rows.shape[1]):
            rows[:, right] = np.where(rows[:, right] == rows[:, left], 0, rows[:, right])
    real = rows != 0
    if bool((real[:, 1:] > real[:, :-1]).any()):
        rows = np.take_along_axis(rows, np.argsort(~real, axis=1, kind="stable"), axis=1)
        real = rows != 0
    return rows[:, real.any(axis=0)]


class _Edges:
    """Pairs of ids that are equal, each with a reason; an edge to id 0 pins."""

    def __init__(self) -> None:
        self._from: list[IntArray] = []
        self._to: list[IntArray] = []
        self._why: list[IntArray] = []
        self.count = 0

    def add(self, left: IntArray, right: IntArray, why: int | IntArray) -> None:
        self._from.append(left)
        self._to.append(right)
        self._why.append(why if isinstance(why, np.ndarray) else np.full(len(left), why))
        self.count += len(left)

    def arrays(self) -> tuple[IntArray, IntArray, IntArray]:
        if not self._from:
            return (np.zeros(0, dtype=np.int64),) * 3
        return np.concatenate(self._from), np.concatenate(self._to), np.concatenate(self._why)


def solve(constraints: Constraints, structures: bool = False) -> Components:
    """Find the least restrictive solution that these steps reach; restricting it further is always allowed.

    ``structures``: whether structures may vanish. Without, all is solved as if nothing was said of them.
    """
    blocks = Blocks(constraints)
    equal = list(
        {(id(left), id(right)): (left, right, why) for left, right, why in reversed(constraints.equal)}.values()
    )
    equal.reverse()  # of several with the same arrays, the first; copies cost time, no more
    joined, parts = [], []
    known: dict[int, int] = {}  # rows -> the first block that is equal to them
    for left, right, why in equal:
        one, other = blocks.number(left), blocks.number(right)
        if structures and one is None and other is not None:
            one = known.setdefault(id(left), other)
            one = None if one == other else one  # so the others are tied to the first, which saves time
        if one is None or other is None:
            parts.append((left, right, why))
        elif one != other:
            joined.append((one + 1, other + 1, why))
    single = []
    for ids, why in constraints.pinned:
        one = blocks.number(ids)
        if one is None:
            single.append((ids, why))
        else:
            joined.append((0, one + 1, why))
    whole = _Edges()
    whole.add(*np.array(joined, dtype=np.int64).reshape(-1, 3).T)
    short, edges = _shortened(blocks, whole, constraints.ids)
    absent = None if structures or not constraints.absent else np.zeros(constraints.ids, dtype=bool)
    if absent is not None:
        absent[list(constraints.absent.values())] = True
        short[absent] = 0
    for ids, why in single:
        ids = short[ids[ids != 0]].astype(np.int64)
        ids = ids if absent is None else ids[ids != 0]
        edges.add(np.zeros_like(ids), ids, why)
    products = []
    for left, right, why in parts:
        if absent is not None:
            left, right = _without(absent, left), _without(absent, right)
        left, right = short[left].astype(np.int64), short[right].astype(np.int64)
        if left.shape[1] == right.shape[1] == 1:
            differ = left[:, 0] != right[:, 0]
            edges.add(left[differ, 0], right[differ, 0], why)
        else:
            products.append((left, right, why))
    refining = Refining(constraints, int(short.max(initial=0)) + 1)
    while True:
        solution = _components(edges, refining.ids)
        before = edges.count
        products = [product for product in products if not solution.says(*product[:2])]
        wide = []
        for left, right, why in products:
            if max(left.shape[1], right.shape[1]) > _WIDE:
                wide.append((left, right, why))
            else:
                _reconcile(solution, edges, left, right, why, refining)
        for left, right, why in wide if edges.count == before and not refining.found else ():
            _reconcile(solution, edges, left, right, why, refining)
        if edges.count == before and not refining.found:
            return Components(blocks, short, solution)
        # In front, so that they are known when the equations that they come from are met again.
        products = [*refining.found, *products]
        refining.found = []


def _without(absent: BoolArray, rows: IntArray) -> IntArray:
    """The columns of ``rows`` that hold anything but ids that are ``absent``, at least the first."""
    if rows.shape[1] == 1:
        return rows
    gone = absent[rows]
    only = gone.any(axis=0) & (gone | (rows == 0)).all(axis=0)
    only[:1] = False
    return rows[:, ~only] if only.any() else rows


def _shortened(blocks: Blocks, whole: _Edges, ids: int) -> tuple[ShortArray, _Edges]:
    """Give all ids of tied blocks one representative, and collect the edges that pin the representatives of pinned
    blocks, one id for each reason."""
    solved = _components(whole, len(blocks.all) + 1)
    short = np.zeros(ids, dtype=np.int32)
    edges = _Edges()
    first: dict[int, int] = {}
    by_reason: dict[int, int] = {}
    used = 1
    for number, block in enumerate(blocks.all, start=1):
        own = short[block[0] : block[0] + len(block)]
        component, why = int(solved.component[number]), int(solved.seed[number])
        if component == 0:
            if why not in by_reason:
                by_reason[why] = used
                edges.add(np.array([0]), np.array([used]), why)
                used += 1
            own[:] = by_reason[why]
        else:
            if component not in first:
                first[component] = used
                used += len(block)
            own[:] = np.arange(first[component], first[component] + len(block))
    return short, edges


def _components(edges: _Edges, count: int) -> _Solved:
    left, right, why = edges.arrays()
    graph = coo_array((np.ones(len(left)), (left, right)), shape=(count, count)).tocsr()
    _, labels = connected_components(graph, directed=False)
    # Name each component by its smallest id, so that the pinned one, which holds id 0, is 0.
    smallest = np.full(labels.max() + 1, count, dtype=np.int64)
    smallest[labels[::-1]] = np.arange(count)[::-1]  # the last one written wins
    component = smallest[labels]
    _, parent = breadth_first_order(graph, 0, directed=False)
    parent = np.where(parent < 0, 0, parent).astype(np.int64)
    root = np.where(parent == 0, np.arange(count), parent)
    while (root[root] != root).any():
        root = root[root]
    reason = np.zeros(count, dtype=np.int64)
    pins = np.flatnonzero((left == 0) | (right == 0))[::-1]
    reason[left[pins] + right[pins]] = why[pins]
    return _Solved(component, np.zeros((count, 1), dtype=np.int64), np.zeros(count, dtype=bool), reason[root])


def _reconcile(solution: _Solved, edges: _Edges, left: IntArray, right: IntArray, why: int, refining: Refining) -> None:
    """Derive joins, pins and definitions from one product equation."""
    while True:
        a, b = solution.canonical(left), solution.canonical(right)
        _cancel(a, b)
        in_a, in_b = (a != 0).sum(axis=1), (b != 0).sum(axis=1)
        for rows, size, other in ((a, in_b, right), (b, in_a, left)):
            empty = np.flatnonzero((size == 0) & (rows != 0).any(axis=1))
            known = np.where(solution.component[other[empty]] == 0, solution.seed[other[empty]], 0).max(axis=1)
            for column in rows[empty].T:
                real = column != 0
                edges.add(np.zeros(int(real.sum()), int), column[real], np.where(known > 0, known, why)[real])
        single = (in_a == 1) & (in_b == 1)
        edges.add(a[single].sum(axis=1), b[single].sum(axis=1), why)
        if not (_define(solution, a, b, in_a, in_b) or _define(solution, b, a, in_b, in_a)):
            break
    several = (in_a > 1) & (in_b > 1)
    if several.any():
        _match(edges, a[several], b[several], why, refining)


def _cancel(a: IntArray, b: IntArray) -> None:
    """Drop what occurs on both sides of a row."""
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            both = (a[:, i] == b[:, j]) & (a[:, i] != 0)
            a[both, i] = 0
            b[both, j] = 0


def _define(solution: _Solved, a: IntArray, b: IntArray, in_a: IntArray, in_b: IntArray) -> bool:
    """Define each component that is alone on the side of ``a`` as the product in its first such row."""
    rows = np.flatnonzero((in_a == 1) & (in_b > 1))
    if not len(rows):
        return False
    names, first = np.unique(a[rows].sum(axis=1), return_index=True)
    products = b[rows[first]]
    # A component that another definition of this round uses must wait for the next round.
    ready = ~np.isin(names, products)
    if not ready.any():
        ready[0] = True
    names, products = names[ready], products[ready]
    if products.shape[1] > solution.product.shape[1]:
        wider = products.shape[1] - solution.product.shape[1]
        solution.product = np.pad(solution.product, ((0, 0), (0, wider)))
    solution.product[names] = 0
    solution.product[names, : products.shape[1]] = products
    solution.defined[names] = True
    return True


def _match(edges: _Edges, a: IntArray, b: IntArray, why: int, refining: Refining) -> None:
    """Solve rows with several components on both sides.

    Components that are equal to the same are joined, then columns that correspond one to one. If no column does, both
    sides are refined to their common factors; if they have none, everything is pinned.
    """
    if _repeats(edges, a, b, why) or _repeats(edges, b, a, why):
        return
    pairs = _pairs(a, b)
    for i, j in pairs:
        edges.add(a[:, i], b[:, j], why)
    if not pairs:
        for rows in connected_rows(np.concatenate([a, b], axis=1)):
            conflict = refining.refine(a[rows], b[rows], why)
            if conflict is not None:
                ids = np.unique(np.concatenate([a[rows].reshape(-1), b[rows].reshape(-1)]))
                ids = ids[ids != 0]
                edges.add(np.zeros_like(ids), ids, conflict)


def _repeats(edges: _Edges, a: IntArray, b: IntArray, why: int) -> bool:
    """Where rows of ``a`` are equal, those of ``b`` must be too: join the two components in which they differ."""
    _, first, inverse = np.unique(a, axis=0, return_index=True, return_inverse=True)
    one, other = b[first[inverse.reshape(-1)]], b.copy()
    _cancel(one, other)
    single = ((one != 0).sum(axis=1) == 1) & ((other != 0).sum(axis=1) == 1)
    edges.add(one[single].sum(axis=1), other[single].sum(axis=1), why)
    return bool(single.any())


def _pairs(a: IntArray, b: IntArray) -> list[tuple[int, int]]:
    """Find the columns that correspond one to one."""
    found: list[tuple[int, int]] = []
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            if j in {taken for _, taken in found} or not ((a[:, i] != 0) & (b[:, j] != 0)).all():
                continue
            pairs = np.unique(np.stack([a[:, i], b[:, j]], axis=1), axis=0)
            if len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])):
                found.append((i, j))
                break
    return found


class Blocks:
    """Finds the block of ids that an array is equal to."""

    def __init__(self, constraints: Constraints) -> None:
        self.all = [block for block in constraints.blocks if len(block)]
        self._by_memory = {id(block): number for number, block in enumerate(self.all)}
        self._by_first = {int(block[0]): number for number, block in enumerate(self.all)}

    def number(self, ids: IntArray) -> int | None:
        """The number of the block whose ids, in their order, are ``ids`` [n] or [n, 1]; None if no block has them."""
        if not len(ids) or ids.size != len(ids):
            return None
        number = self._by_memory.get(id(ids.base))
        if number is not None:
            return number if ids.size == len(self.all[number]) and ids.flags.c_contiguous else None
        number = self._by_first.get(int(ids.flat[0]))
        if number is None or len(self.all[number]) != ids.size:
            return None
        return number if bool((ids.reshape(-1) == self.all[number]).all()) else None
