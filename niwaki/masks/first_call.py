"""What a model is called with inside of a block, so that it can be called with the same again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from niwaki.trace.structures import tensors_in


@dataclass(frozen=True, slots=True, eq=False)
class ModelCall:
    """Arguments of a model, and the precision on ``device`` in which it ran with them."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    device: str
    autocast: bool
    dtype: torch.dtype

    def __call__(self, model: nn.Module) -> Any:
        """What ``model`` returns for them."""
        with torch.autocast(self.device, self.dtype, self.autocast):
            return model(*self.args, **self.kwargs)


@final
class FirstCall:
    """``call``: the first call of ``model`` inside of `watched`; None if it has not been called."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.call: ModelCall | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look, inside."""
        eager: Callable[..., Any] = torch.compiler.disable  # so that a compiled model calls the hook, too
        handle = self._model.register_forward_pre_hook(eager(self._saw), with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _saw(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.call is None:
            device = next(one.device.type for one in model.parameters())
            on, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
            self.call = ModelCall(args, dict(kwargs), device, on, dtype)


def mean_square(output: Any) -> Tensor:
    """One number for what a model returns: the mean of the squares of the finite numbers of each tensor, added up.

    >>> float(mean_square({"logits": torch.tensor([1.0, 2.0]), "loss": torch.tensor(0.5), "hidden": None}))
    2.75
    """
    found = [one.detach().abs().double() for one in tensors_in(output) if one.is_floating_point() or one.is_complex()]
    squares = [one.nan_to_num(0, 0, 0).square().mean().cpu() for one in found if one.numel()]
    return torch.stack(squares).sum() if squares else torch.tensor(0.0)
