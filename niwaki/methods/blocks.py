"""Sums over rows, some rows of a tensor at a time, so that what lies between them stays in a processor's cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from niwaki.criteria.sums import DIRECTION_SUMS, GRADIENT_SUMS, row_sums
from niwaki.methods.direction import Direction

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
