"""Measure activation memory: the most bytes of computed tensors that are alive at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from niwaki.core.modes import eval_mode
from niwaki.trace.eager import eagerly


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operators allocate, until they are freed."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.most = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in given}
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                self._count(tensor.untyped_storage())
        self.most = max(self.most, self.alive)
        return out

    def _count(self, memory: torch.UntypedStorage) -> None:
        number, size = id(memory), memory.nbytes()
        if memory.data_ptr() in self._known or number in self._seen:
            return

        def gone(_: object) -> None:
            self.alive -= size
            del self._seen[number]

        self._seen[number] = weakref.ref(memory, gone)
        self.alive += size


@eagerly()
def peak_activations(network: torch.nn.Module, run: Callable[[], object], inputs: Iterable[Tensor] = ()) -> int:
    """The most bytes of computed tensors alive at once while ``run`` calls ``network``, in eval mode without gradients.

    Parameters, buffers and ``inputs`` do not count; memory that an operator uses and frees inside itself does not
    either. The mode is restored.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 100), torch.nn.ReLU(inplace=True), torch.nn.Linear(100, 2))
    >>> x = torch.zeros(1, 4)
    >>> peak_activations(net, lambda: net(x), [x])  # 100 and 2 numbers of 4 bytes
    408
    """
    held = [*network.parameters(), *network.buffers(), *inputs]
    with eval_mode(network), torch.no_grad(), _Ledger(held) as ledger:
        run()
    most: int = ledger.most
    return most
