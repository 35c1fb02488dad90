"""Refine two factorisations of one dimension to their common factors.

768 positions are 12 x 64 to one view and 24 x 32 to another: together they are 12 x 2 x 32, of which the 64 are the
last two and the 24 the first two. That works where the strides of all factors nest, each dividing the next (64, 32, 1).
12 x 64 and 16 x 48 do not nest (48 does not divide 64): what they have in common, 4 x 192, can be removed, and the
192 have no common factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from niwaki.core.counts import IntArray
from niwaki.rules.axis import product_rows
from niwaki.rules.constraints import Constraints

_MOST_PARTS = 64  # blocks of rows that share no id; with more of them, the rows are not a product
_CONFLICT = "it is a product in two ways that have no common factors"
_MOST_TIMES = 8  # refinements of one equation; more would not end


def connected_rows(table: IntArray) -> Iterator[IntArray]:
    """Split the rows of a table of ids (0 is padding) into blocks that share no id; yield their ascending row
    numbers."""
    row, column = np.nonzero(table)
    _, ids = np.unique(table[row, column], return_inverse=True)
    size = len(table) + int(ids.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(row)), (row, ids + len(table))), shape=(size, size))
    blocks = connected_components(graph, directed=False)[1][: len(table)]
    if len(np.unique(blocks)) > _MOST_PARTS:
        yield np.arange(len(table))
        return
    for block in np.unique(blocks):
        yield np.flatnonzero(blocks == block)


class Refining:
    """Collects in ``found`` the equations between common factors, which may get new ids."""

    def __init__(self, constraints: Constraints, ids: int) -> None:
        self._constraints = constraints
        self.ids = ids  # all ids so far
        self._times: dict[tuple[int, bytes, bytes], int] = {}
        self.found: list[tuple[IntArray, IntArray, int]] = []

    def refine(self, a: IntArray, b: IntArray, why: int) -> int | None:
        """Write both sides of an equation [n, K] as products of common factors. Return None, or the reason number if
        they have no common factors."""
        equation = (why, a[0].tobytes(), b[0].tobytes())
        self._times[equation] = self._times.get(equation, 0) + 1
        columns = [column for column in (*a.T, *b.T) if column.any()]
        sizes = common_sizes(columns)
        spans = None if sizes is None else [_span(column, sizes) for column in columns]
        if sizes is None or spans is None or None in spans or self._times[equation] > _MOST_TIMES:
            return self._constraints.reason(_CONFLICT, self._constraints.reasons[why].location)
        factors: dict[int, IntArray] = {}
        for column, span in zip(columns, spans, strict=True):
            if span is not None and len(span) == 1:
                factors.setdefault(span[0], _corner(column, sizes, span))
        for number, size in enumerate(sizes):
            if number not in factors:
                factors[number] = np.arange(self.ids, self.ids + size, dtype=np.int64)
                self.ids += size
        for column, span in zip(columns, spans, strict=True):
            if span:
                chosen = [sizes[number] for number in span]
                rows = product_rows([factors[number] for number in span], chosen, range(len(span)))
                self.found.append((_corner(column, sizes, span)[:, None], rows, why))
        return None


def common_sizes(columns: Sequence[IntArray]) -> tuple[int, ...] | None:
    """The sizes of the coarsest row-major product in which every column is a run of factors; None if strides do not
    nest."""
    n = len(columns[0])
    bounds = {1, n}
    for column in columns:
        changes = np.flatnonzero(column[1:] != column[:-1]) + 1
        stride = int(np.gcd.reduce(changes, initial=n))
        bounds |= {stride, next(t for t in _multiples(stride, n) if (column.reshape(-1, t) == column[:t]).all())}
    ordered = sorted(bounds, reverse=True)
    if any(outer % inner for outer, inner in pairwise(ordered)):
        return None
    return tuple(outer // inner for outer, inner in pairwise(ordered))


def _multiples(stride: int, n: int) -> Iterator[int]:
    """The multiples of ``stride`` that divide ``n``, ascending."""
    return (stride * m for m in range(1, n // stride + 1) if n % (stride * m) == 0)


def _span(column: IntArray, sizes: Sequence[int]) -> tuple[int, ...] | None:
    """The factors that a column depends on; None if several of their positions have the same id."""
    block = column.reshape(sizes)
    span = tuple(j for j in range(len(sizes)) if bool((block != block.take([0], axis=j)).any()))
    if not span or len(np.unique(column)) != math.prod(sizes[j] for j in span) or not column.all():
        return None
    return span


def _corner(column: IntArray, sizes: Sequence[int], span: Sequence[int]) -> IntArray:
    """Drop the repetitions of a column."""
    index = tuple(slice(None) if j in span else 0 for j in range(len(sizes)))
    corner: IntArray = column.reshape(sizes)[index].reshape(-1)
    return corner
