"""Undo the writes of a run to tensors that existed before it: each is copied just before the first write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from niwaki.trace.fake import is_fake
from niwaki.trace.operators import traits


class Writes:
    """Copies of memory, by its identity."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._owners = {memory_of(parameter): parameter for parameter in parameters}  # those not yet copied
        self._tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._storages: dict[object, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def expect(self, tensor: torch.Tensor) -> None:
        """``tensor``, which may be a parameter under another name, is about to be written to."""
        parameter = self._owners.pop(memory_of(tensor), None)
        if parameter is not None:
            self._tensors.append((parameter, parameter.detach().clone()))

    def expect_foreign(self, tensor: torch.Tensor) -> None:
        """The same for a tensor that is not the model's, but existed before the run."""
        key = memory_of(tensor)
        if key not in self._storages and not (is_fake(tensor) or tensor.is_meta):
            storage = tensor.untyped_storage()
            self._storages[key] = storage, storage.clone()  # type: ignore[no-untyped-call]

    def undo(self) -> None:
        """Restore all copied memory."""
        with torch.no_grad():
            for tensor, content in self._tensors:
                tensor.copy_(content)
        for storage, bytes_before in self._storages.values():
            storage.copy_(bytes_before)


class UndoneWrites(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes writes to parameters inside the block, and undoes them at its end."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keeps torch from wrapping every operator call in its compiler's switch."""
        return False

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._writes = Writes(parameters)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = traits(func)
        if known.writes:
            for tensor in known.written(args, kwargs):
                self._writes.expect(tensor)
        return func(*args, **kwargs)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._writes.undo()


def memory_of(tensor: Any) -> object:
    """The identity of the memory of a tensor."""
    return tensor.untyped_storage()._cdata if isinstance(tensor, torch.Tensor) else None
