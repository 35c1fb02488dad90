"""Axes: the ids of each position of a dimension; a position is removed when any of its ids is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from niwaki.core.counts import IntArray
from niwaki.core.describe import spans


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """The positions of one dimension, with their ids.

    ``ids`` [n, K]: a position is removed when any of its K ids is; id 0 is never removed and pads the rows. The columns
    are the factors of a product, outer ones first: a flattened (head, dim) has a head column and a dim column. An axis
    without columns is fixed. ``why`` is the number of the reason that fixed it.
    """

    ids: IntArray
    why: int = 0

    @property
    def size(self) -> int:
        """Number of positions."""
        return len(self.ids)

    @property
    def free(self) -> bool:
        """Whether this axis alone allows any position to be removed."""
        return bool(self.ids.shape[1] > 0)

    def __str__(self) -> str:
        return " * ".join(spans(column) for column in self.ids.T) if self.free else f"{self.size} fixed"

    def take(self, rows: IntArray | slice) -> Axis:
        """The positions ``rows``, in that order."""
        return Axis(self.ids[rows], self.why)

    def same_as(self, other: Axis) -> bool:
        """Whether both have equal ids, so that equating them changes nothing."""
        ours, theirs = self.ids, other.ids
        if ours is theirs:
            return True
        if ours.shape != theirs.shape or (ours.size and ours.item(0) != theirs.item(0)):
            return False
        return bool((ours == theirs).all())


def fixed(size: int, why: int = 0) -> Axis:
    """An axis of which no position can be removed."""
    return Axis(np.zeros((size, 0), dtype=np.int64), why)


def concatenate(axes: Sequence[Axis]) -> Axis:
    """The positions of all ``axes`` in one axis, in order."""
    rows = np.zeros((sum(axis.size for axis in axes), max(axis.ids.shape[1] for axis in axes)), dtype=np.int64)
    start = 0
    for axis in axes:
        rows[start : start + axis.size, : axis.ids.shape[1]] = axis.ids
        start += axis.size
    return Axis(rows, next((axis.why for axis in axes if not axis.free), axes[0].why))


def merge(axes: Sequence[Axis]) -> Axis:
    """The row-major product: a position of the product is removed when its position in any factor is."""
    sizes = [axis.size for axis in axes]
    columns = []
    for i, axis in enumerate(axes):
        outer, inner = math.prod(sizes[:i]), math.prod(sizes[i + 1 :])
        if axis.free:
            columns.append(np.tile(np.repeat(axis.ids, inner, axis=0), (outer, 1)))
    if not columns:
        return fixed(math.prod(sizes), axes[0].why)
    return Axis(np.concatenate(columns, axis=1), axes[0].why)


@dataclass(frozen=True, slots=True, eq=False)
class Parting:
    """An axis parted into a row-major product of ``sizes``.

    ``columns[j]``: the columns that depend on factor j alone. ``mixed``: the columns that depend on several factors,
    each with the factors it depends on; these need new ids.
    """

    columns: tuple[list[IntArray], ...]
    mixed: tuple[tuple[IntArray, tuple[int, ...]], ...]


def part(axis: Axis, sizes: Sequence[int]) -> Parting:
    """Assign the columns of ``axis`` to the factors that they depend on."""
    columns: tuple[list[IntArray], ...] = tuple([] for _ in sizes)
    mixed = []
    for column in axis.ids.T:
        block = column.reshape(sizes)
        varies = [j for j, size in enumerate(sizes) if size > 1 and bool((block != block.take([0], axis=j)).any())]
        if len(varies) == 1:
            corner = tuple(slice(None) if j == varies[0] else 0 for j in range(len(sizes)))
            columns[varies[0]].append(block[corner])
        elif varies:
            mixed.append((column, tuple(varies)))
        elif column[0] != 0:
            mixed.append((column, tuple(j for j, size in enumerate(sizes) if size > 1)))
    return Parting(columns, tuple(mixed))


def product_rows(columns: Sequence[IntArray], sizes: Sequence[int], which: Sequence[int]) -> IntArray:
    """Columns [n, len(which)] of a row-major product of ``sizes``, for the factors ``which``."""
    rows = []
    for column, j in zip(columns, which, strict=True):
        shape = [1] * len(sizes)
        shape[j] = sizes[j]
        rows.append(np.broadcast_to(column.reshape(shape), sizes).reshape(-1))
    return np.stack(rows, axis=1)
