"""Which value lies where in memory.

Some ways to wrap a tensor pass torch's dispatcher by: `Tensor.as_subclass`, `nn.Parameter`, dlpack. No operator gives
the wrapped tensor, but it has the memory of one that an operator gave.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

_Form = tuple[torch.Size, tuple[int, ...], torch.dtype]
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})  # other classes may have no address, and not only fake tensors


class Memory:
    """The values of a trace by the place where they were computed.

    A weak reference to each block of memory is kept, so that no later block can be taken for it. It does not keep what
    lies in the block.
    """

    def __init__(self) -> None:
        self._in_blocks: dict[tuple[int, int, _Form], int] = {}
        self._at_addresses: dict[tuple[int, _Form], tuple[int, int]] = {}  # with the block
        self._blocks: dict[int, Any] = {}

    def note(self, tensor: torch.Tensor, number: int) -> None:
        """Value ``number`` is where ``tensor`` is."""
        if not _has_block(tensor):
            return
        storage = tensor.untyped_storage()
        block, form = storage._cdata, _form(tensor)
        if block not in self._blocks:
            self._blocks[block] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self._in_blocks[block, int(tensor.storage_offset()), form] = number
        if type(tensor) in _PLAIN:
            self._at_addresses[tensor.data_ptr(), form] = number, block

    def number_of(self, tensor: torch.Tensor) -> int | None:
        """The last value that was where ``tensor`` is, with the same shape, strides and type; None if none was."""
        if not _has_block(tensor):
            return None
        block, form = tensor.untyped_storage()._cdata, _form(tensor)
        if block in self._blocks:
            return self._in_blocks.get((block, int(tensor.storage_offset()), form))
        if type(tensor) not in _PLAIN:
            return None
        # Another block over the same memory, such as dlpack makes: then the first one is still there.
        address = tensor.data_ptr()
        number, block = self._at_addresses.get((address, form), (0, 0))
        alive = address and block and torch.UntypedStorage._new_with_weak_ptr(block) is not None
        return number if alive else None


def _form(tensor: torch.Tensor) -> _Form:
    return tensor.shape, tensor.stride(), tensor.dtype


def _has_block(tensor: torch.Tensor) -> bool:
    """Whether a tensor has memory of its own; a sparse one has not."""
    return tensor.layout is torch.strided and torch._C._has_storage(tensor)
