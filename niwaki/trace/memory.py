"""Recognise tensors by their memory.

Some ways to wrap a tensor bypass torch's dispatcher: `Tensor.as_subclass`, `nn.Parameter`, dlpack. No operator made the
wrapped tensor, but it has the memory of one that an operator made.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from niwaki.trace.graph import Value

_OPERATORS = torch.Tensor.__torch_dispatch__  # that of classes that leave operators to torch
_Start = int | tuple[int, int]


class Memory:
    """The values of a trace by their address in memory.

    It keeps a weak reference to each block of memory, so that no later block is mistaken for it. That does not keep the
    content of the block alive.
    """

    def __init__(self) -> None:
        self._values: defaultdict[_Start, list[tuple[Value, tuple[int, ...]]]] = defaultdict(list)  # with the strides
        self._blocks: dict[int, Any] = {}  # weak references, as torch hands them out, by the root of the values inside
        self._free: Any = torch.UntypedStorage._free_weak_ref  # still available when Python shuts down

    def __del__(self) -> None:
        for block in self._blocks.values():
            self._free(block)

    def note(self, tensor: torch.Tensor, value: Value) -> None:
        """Remember that ``tensor`` is ``value``."""
        start = _start(tensor)
        if start is not None:
            if value.root not in self._blocks:
                self._blocks[value.root] = tensor.untyped_storage()._weak_ref()
            self._values[start].append((value, tensor.stride()))

    def number_of(self, tensor: torch.Tensor) -> int | None:
        """The last value with the address, shape, strides and type of ``tensor``; None if there is no such value, or
        its block of memory has been freed."""
        start = _start(tensor)
        shape, strides = tuple(tensor.shape), None if start is None else tensor.stride()
        for value, strides_then in reversed(self._values.get(start, ()) if start is not None else ()):
            if strides == strides_then and value.shape == shape and value.dtype == tensor.dtype:
                block = torch.UntypedStorage._new_with_weak_ptr(self._blocks[value.root])
                return None if block is None else value.number
        return None


def _start(tensor: torch.Tensor) -> _Start | None:
    """Where a tensor begins: its address; or its block and the distance from the start if it has no address (it is fake
    or empty). None if it has no memory of its own, like a sparse tensor."""
    if type(tensor).__torch_dispatch__ is _OPERATORS:
        try:
            address = tensor.data_ptr()
        except RuntimeError:
            return None
        if address:
            return address
    if tensor.layout is not torch.strided or not torch._C._has_storage(tensor):
        return None
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset())
