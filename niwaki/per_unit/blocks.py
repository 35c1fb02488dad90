"""Sums over rows, a block of rows at a time, so that what lies between them stays in a processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.counts import IntArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.core.tensor_dims import TensorDim
from niwaki.per_unit.direction import Direction
from niwaki.per_unit.index import as_real, unit_parameters
from niwaki.per_unit.sums import DIRECTION_SUMS, GRADIENT_SUMS, row_sums, squares, totals

_BLOCK = 2**19  # entries: smaller blocks cost more calls than they save


WHOLE = slice(None)


def blocks(x: Tensor) -> list[slice]:
    """The rows of ``x`` that are worked on together, some positions of its first dimension after others. On an
    accelerator, where calls cost more than memory, that is the whole tensor."""
    if x.numel() <= _BLOCK or x.device.type != "cpu":
        return [WHOLE]
    rows = x.shape[0]
    length = max(1, _BLOCK * rows // x.numel())
    return [slice(first, min(first + length, rows)) for first in range(0, rows, length)]


def memory_for(x: Tensor, spans: Sequence[slice]) -> Tensor:
    """Memory for any of the blocks ``spans`` of ``x``, which lie in it as they do in ``x``."""
    return torch.empty_like(x[spans[0]])


def together(made: Sequence[dict[str, list[Tensor]]], dims: Sequence[int]) -> dict[str, list[Tensor]]:
    """The sums of all blocks, for each of ``dims``: in a row along the dimension of the blocks, else added."""
    if len(made) == 1:
        return made[0]
    sums = {}
    for name in made[0]:
        parts = zip(dims, zip(*(block[name] for block in made), strict=True), strict=True)
        sums[name] = [torch.cat(part) if dim == 0 else torch.stack(part).sum(0) for dim, part in parts]
    return sums


def blocked_sums(
    x: Tensor, gradient: Tensor | None, direction: Direction | None, dims: Sequence[int], reads: Collection[str]
) -> dict[str, list[Tensor]]:
    """`row_sums` where the direction is a recipe. Only memory for one block is needed."""
    spans = blocks(x)
    multiplies = not (GRADIENT_SUMS | DIRECTION_SUMS).isdisjoint(reads)
    scratch = memory_for(x, spans) if multiplies else x
    made: list[dict[str, list[Tensor]]] = []
    for rows in spans:
        block = x[rows]
        memory = scratch[: block.shape[0]]
        own = None if gradient is None else gradient[rows]
        way = None if direction is None else direction.at(rows, memory)
        made.append(row_sums(block, own, way, dims, reads, memory if multiplies else None))
    sums = together(made, dims)
    if direction is not None:
        for name, power in (("aligned", 1), ("direction_square", 2)):
            if name in sums:
                sums[name] = [part * direction.scale**power for part in sums[name]]
    return sums


_MOST = 0.9  # rows are picked out of a tensor where at most this share of them is concerned


_OF_BOTH = frozenset({"inner", "along", "way"})  # sums over the rows of x and y together


@dataclass(slots=True, eq=False)
class RowBlock:
    """What is worked on together: many vectors in a row, one tensor, or some rows of one tensor along one dimension.

    ``units`` lists, for each of the driven dimensions ``dims``, the units of each of its positions, [n, K]; a position
    with all that lies behind it is a row, and ``spans`` are its rows among those of all blocks. ``rows``: the positions
    picked out. ``x`` lives from `remember` to `apply` (its memory longer); the weights after the step are read a part
    at a time, since memory for a copy of them all costs more than reading them twice. The ``weights`` are the
    parameters themselves, whose ``data`` others may replace between two steps (averages that are swapped in and out).
    """

    weights: list[Tensor]
    dims: tuple[int, ...]
    units: list[IntArray]
    group: int
    rows: Tensor | None = None
    spans: list[slice] = field(default_factory=list)
    x: Tensor | None = None

    @property
    def copied(self) -> bool:
        """Whether `read` gives a copy of the weights; it gives themselves otherwise."""
        return len(self.weights) > 1 or self.rows is not None

    def parts(self) -> list[slice]:
        """Of the first dimension: what is read and written at once."""
        if len(self.weights) > 1:
            return [WHOLE]
        (weight,) = self.weights
        if self.rows is None or self.dims[0] != 0:
            return blocks(weight)
        return blocks(weight[: len(self.rows)])

    def read(self, part: slice = WHOLE) -> Tensor:
        """The weights as the one tensor that is worked on, or a part of it."""
        if len(self.weights) > 1:
            return torch.cat(self.weights)
        (weight,) = self.weights
        if self.rows is None:
            return weight[part]
        if self.dims[0] == 0:
            return weight.index_select(0, self.rows[part])
        return weight[part].index_select(self.dims[0], self.rows)

    def write(self, value: Tensor, part: slice) -> None:
        """The way back."""
        if len(self.weights) > 1:
            torch._foreach_copy_(self.weights, list(torch.split(value, [len(weight) for weight in self.weights])))
        elif self.rows is not None and self.dims[0] == 0:
            self.weights[0].index_copy_(0, self.rows[part], value)
        elif self.rows is not None:
            self.weights[0][part].index_copy_(self.dims[0], self.rows, value)

    def spread(self, values: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The ``values`` of all rows as a tensor that broadcasts to the block; where two dimensions meet, joined."""
        whole = None
        for dim, span in zip(self.dims, self.spans, strict=True):
            shape = [1] * self.weights[0].dim()
            shape[dim] = -1
            part = values[span].to(self.weights[0].device).view(shape)
            whole = part if whole is None else join(whole, part)
        assert whole is not None
        return whole


def blocks_of(space: SearchSpace, optimizer: Optimizer, units: BoolArray) -> list[RowBlock]:
    """The driven tensors that hold any of ``units`` [num_units], as blocks."""
    held = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    parameters, concerned = unit_parameters(space), np.append(units, False)
    driven: dict[str, list[TensorDim]] = {}
    for place in space.dims:
        if place.parameter and place.role.zeroed_by_method:
            driven.setdefault(place.tensor, []).append(place)
    blocks: list[RowBlock] = []
    vectors: dict[tuple[torch.device, torch.dtype, int], list[str]] = {}
    for name, places in driven.items():
        weight, group = parameters[name], held[id(parameters[name])]
        which = [concerned[place.units].any(axis=1) for place in places]
        if not any(mask.any() for mask in which):
            continue
        if weight.dim() == 1:
            vectors.setdefault((weight.device, weight.dtype, group), []).append(name)
        elif len(places) == 1 and which[0].mean() <= _MOST:
            rows = torch.from_numpy(np.flatnonzero(which[0])).to(weight.device)
            blocks.append(RowBlock([weight], (places[0].dim,), [places[0].units[which[0]]], group, rows))
        else:
            blocks.append(RowBlock([weight], tuple(p.dim for p in places), [p.units for p in places], group))
    for (_, _, group), names in vectors.items():
        width = max(driven[name][0].units.shape[1] for name in names)
        tables = [wide(driven[name][0].units, width, space.num_units) for name in names]
        blocks.append(RowBlock([parameters[name] for name in names], (0,), [np.concatenate(tables)], group))
    first = 0
    for block in blocks:
        for table in block.units:
            block.spans.append(slice(first, first + len(table)))
            first += len(table)
    return blocks


def wide(table: IntArray, width: int, padding: int) -> IntArray:
    """``table`` [n, K] with ``width`` columns."""
    return np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=padding)


def row_sums_of(block: RowBlock, names: Collection[str], left: float | Tensor) -> dict[str, list[Tensor]]:
    """Sums over the rows of a block, for each of its dimensions: of x^2 (square), y^2 (after), x y (inner) and, with
    w = ``left`` x - y = lr d, of x w (along) and w^2 (way)."""
    made: list[dict[str, list[Tensor]]] = []
    memory: Tensor | None = None
    for part in block.parts():
        y = as_real(block.read(part))
        x = y if block.x is None else as_real(block.x[part])
        sums = {"square": squares(x, block.dims)} if "square" in names else {}
        if "after" in names:
            sums["after"] = squares(y, block.dims)
        if not _OF_BOTH.isdisjoint(names):
            memory = torch.empty_like(y) if memory is None else memory
            scratch = memory[: y.shape[0]]
            if "inner" in names:
                sums["inner"] = totals(torch.mul(x, y, out=scratch), block.dims)
            if "way" in names:
                still = isinstance(left, float) and left == 1
                way = torch.sub(x, y, out=scratch) if still else torch.mul(x, left, out=scratch).sub_(y)
                sums["way"] = squares(way, block.dims)
                sums["along"] = totals(way.mul_(x), block.dims)
        made.append(sums)
    return together(made, block.dims)
