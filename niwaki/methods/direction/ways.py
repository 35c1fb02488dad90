"""Directions as recipes, so that they can be evaluated for some rows of a parameter, or for many vectors at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Part = Tensor | float
EXACT = frozenset({torch.float32, torch.float64})  # no sum of many numbers needs a wider type
Way = Callable[[Sequence[Part], Tensor], Tensor]  # entry by entry; the memory, of the result's shape, may be used


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """d = ``scale`` * ``way``(``parts``).

    A part is a tensor of the parameter's shape, or a number for all of its entries, which may be a tensor without
    dimensions: then nothing waits for the device. The scale is such a number too; that of `joined` vectors may be a
    tensor of their shape.
    """

    way: Way
    parts: tuple[Part, ...] = ()
    scale: Part = 1.0

    def at(self, rows: slice, memory: Tensor) -> Tensor:
        """``way`` of these rows, given memory for it, without the scale. The result may lie in that memory, or be a
        part itself, which is not to be changed."""
        return self.way(
            [part[rows] if isinstance(part, Tensor) and part.dim() else part for part in self.parts], memory
        )

    def whole(self, like: Tensor) -> Tensor:
        """d, of the shape of ``like``."""
        return self.way(self.parts, torch.empty_like(like)) * self.scale


def itself(parts: Sequence[Part], memory: Tensor) -> Tensor:
    """The only part."""
    (part,) = parts
    assert isinstance(part, Tensor)
    return part


def nothing(parts: Sequence[Part], memory: Tensor) -> Tensor:
    """Zero: the optimizer lets the parameter be."""
    return memory.zero_()


def difference(parts: Sequence[Part], memory: Tensor) -> Tensor:
    """The first part less the second."""
    first, second = parts
    return torch.sub(first, second, out=memory)


def joined(directions: Sequence[Direction], vectors: Sequence[Tensor]) -> Direction:
    """The direction of all ``vectors`` in a row, given that of each."""
    if len(directions) == 1:
        return directions[0]
    scale = _joined([direction.scale for direction in directions], vectors)
    if any(direction.way is not directions[0].way for direction in directions):
        each = [d.way(d.parts, torch.empty_like(v)) for d, v in zip(directions, vectors, strict=True)]
        return Direction(itself, (torch.cat(each),), scale)
    columns = zip(*(direction.parts for direction in directions), strict=True)
    return Direction(directions[0].way, tuple(_joined(parts, vectors) for parts in columns), scale)


def _joined(parts: Sequence[Part], vectors: Sequence[Tensor]) -> Part:
    first = parts[0]
    if not any(isinstance(part, Tensor) for part in parts) and all(part == first for part in parts):
        return first
    if all(isinstance(part, Tensor) and part.dim() and part.dtype in EXACT for part in parts):
        return torch.cat(parts)  # type: ignore[arg-type]
    wide = [torch.promote_types(vector.dtype, torch.float32) for vector in vectors]
    return torch.cat(
        [
            torch.as_tensor(part, dtype=dtype, device=vector.device).expand_as(vector)
            for part, dtype, vector in zip(parts, wide, vectors, strict=True)
        ]
    )
