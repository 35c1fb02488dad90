"""Find out whether a copy of a model computes with tensors of the original."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from niwaki.core.names import named_buffers, named_parameters
from niwaki.errors import PlanError


class Apart(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the first operator that reads a parameter or buffer of ``model`` while a copy of it runs."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tensors = (*named_parameters(model), *named_buffers(model))
        self._names = {key: name for name, tensor in tensors if (key := _memory(tensor)) is not None}
        self._kept = [tensor for _, tensor in tensors]
        self.found: tuple[str, str] | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.found is None:
            for tensor in _tensors((*args, *kwargs.values())):
                key = _memory(tensor)
                name = None if key is None else self._names.get(key)
                if name is not None:
                    self.found = name, str(func)
                    break
        return func(*args, **kwargs)

    def check(self) -> None:
        """Raise `PlanError` if an operator did."""
        if self.found is not None:
            name, operator = self.found
            raise PlanError(
                f"A copy of the model computes with {name!r} of the model itself (in {operator}), and niwaki cuts a "
                "copy: code of the model, a hook or an object that belongs to it finds the model by a way of its own, "
                "such as a global name, a registry or an attribute of a class. Let it go through the module that it is "
                "called with."
            )


def _tensors(arguments: tuple[Any, ...]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from (item for item in argument if isinstance(item, Tensor))


def _memory(tensor: Tensor) -> int | None:
    """The identity of the memory of a tensor, whatever its name; None if it has no memory."""
    if not torch._C._has_storage(tensor) or tensor.numel() == 0:
        return None
    return int(tensor.untyped_storage()._cdata)
