"""Sums over rows, some rows of a tensor at a time, so that what lies between them stays in a processor's cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from niwaki.criteria.sums import DIRECTION_SUMS, GRADIENT_SUMS, row_sums
from niwaki.methods.direction import Direction

_BLOCK = 2**19  # entries: smaller blocks cost more calls than they save


def blocked_sums(
    x: Tensor, gradient: Tensor | None, direction: Direction | None, dims: Sequence[int], reads: Collection[str]
) -> dict[str, list[Tensor]]:
    """`row_sums` where the direction is a recipe. Only memory for one block is needed, which on an accelerator, where
    calls cost more than memory, is the whole tensor."""
    entries = x[0].numel() if len(x) else 1
    length = max(1, _BLOCK // max(1, entries), 0 if x.device.type == "cpu" else len(x))
    multiplies = not (GRADIENT_SUMS | DIRECTION_SUMS).isdisjoint(reads)
    scratch = torch.empty_like(x[:length]) if multiplies else x[:length]
    blocks = torch.split(x, length)
    gradients = [None] * len(blocks) if gradient is None else torch.split(gradient, length)
    ways = [None] * len(blocks) if direction is None else direction.split(length, len(blocks))
    made: list[dict[str, list[Tensor]]] = []
    for block, own, way in zip(blocks, gradients, ways, strict=True):
        memory = scratch if len(block) == len(scratch) else scratch[: len(block)]
        made.append(row_sums(block, own, None if way is None else way(memory), dims, reads, memory))
    sums = {name: _together([block[name] for block in made], dims) for name in made[0]}
    if direction is not None:
        for name, power in (("aligned", 1), ("direction_square", 2)):
            if name in sums:
                sums[name] = [part * direction.scale**power for part in sums[name]]
    return sums


def _together(blocks: list[list[Tensor]], dims: Sequence[int]) -> list[Tensor]:
    """The sums for each of ``dims``: those of the blocks in a row along the dimension of the blocks, else added."""
    if len(blocks) == 1:
        return blocks[0]
    parts = zip(*blocks, strict=True)
    return [torch.cat(p) if dim == 0 else torch.stack(p).sum(0) for dim, p in zip(dims, parts, strict=True)]
