"""Which value lies where in memory.

Some ways to wrap a tensor pass torch's dispatcher by: `Tensor.as_subclass`, `nn.Parameter`, dlpack. No operator gives
the wrapped tensor, but it has the memory of one that an operator gave.
"""

from __future__ import annotations

from typing import Any

import torch

_OPERATORS = torch.Tensor.__torch_dispatch__  # what classes have that leave operators to torch
_Place = tuple[int, int, torch.Size, tuple[int, ...], torch.dtype]


class Memory:
    """The values of a trace by the place where they were computed.

    A weak reference to each block of memory is kept, so that no later block can be taken for it. It does not keep what
    lies in the block.
    """

    def __init__(self) -> None:
        self._numbers: dict[_Place, tuple[int, int]] = {}  # with the value whose block it is
        self._blocks: dict[int, Any] = {}  # weak references, as torch hands them out
        self._free: Any = torch.UntypedStorage._free_weak_ref  # still there when Python shuts down

    def __del__(self) -> None:
        for block in self._blocks.values():
            self._free(block)

    def note(self, tensor: torch.Tensor, number: int, root: int) -> None:
        """Value ``number`` is where ``tensor`` is, in the block of value ``root``."""
        place = _place(tensor)
        if place is not None:
            if root not in self._blocks:
                self._blocks[root] = tensor.untyped_storage()._weak_ref()
            self._numbers[place] = number, root

    def number_of(self, tensor: torch.Tensor) -> int | None:
        """The last value that was where ``tensor`` is, with the same shape, strides and type, if its block is still
        there; else None."""
        place = _place(tensor)
        found = None if place is None else self._numbers.get(place)
        if found is None or torch.UntypedStorage._new_with_weak_ptr(self._blocks[found[1]]) is None:
            return None
        return found[0]


def _place(tensor: torch.Tensor) -> _Place | None:
    """Where a tensor is: at an address, or, without one (fake or without entries), so far from the start of a block.
    None if it has no memory of its own, as a sparse one."""
    if tensor.layout is not torch.strided or not torch._C._has_storage(tensor):
        return None
    address = tensor.data_ptr() if type(tensor).__torch_dispatch__ is _OPERATORS else 0
    if address:
        return address, -1, tensor.shape, tensor.stride(), tensor.dtype
    block = tensor.untyped_storage()._cdata
    return block, int(tensor.storage_offset()), tensor.shape, tensor.stride(), tensor.dtype
