"""Run code that asks for float32 in float64, so that its round-off hides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def doubled() -> Iterator[None]:
    """Inside, float32 requested by name is float64: ``x.float()``, ``x.to(torch.float32)``, ``softmax(dtype=...)``.
    Complex numbers are doubled likewise.

    Many norms and softmaxes compute in float32 whatever their input is. In a float64 network that causes round-off of
    1e-7, and operators refuse float32 constants beside float64. Existing tensors keep their type.

    Example:
        >>> import torch
        >>> with doubled():
        ...     torch.ones(2, dtype=torch.float64).float().dtype
        torch.float64
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Doubled():
            yield
    finally:
        torch.set_default_dtype(before)


class _Doubled(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        elif func in _GROUPED and args[0].dtype is torch.float64 and args[1].ndim == 3:
            func = _grouped
        if func is not torch.Tensor.view:  # which would read the same bytes as another type
            args = tuple(_double(argument) for argument in args)
            kwargs = {name: _double(argument) for name, argument in kwargs.items()}
        return func(*args, **kwargs)


_GROUPED = tuple(
    operator
    for operator in (getattr(torch, "_grouped_mm", None), getattr(torch.nn.functional, "grouped_mm", None))
    if operator is not None
)


def _grouped(rows: torch.Tensor, weights: torch.Tensor, offs: torch.Tensor, **_: Any) -> torch.Tensor:
    """A grouped product in float64, which torch lacks: the rows up to each offset times their own weight."""
    ends = [0, *offs.tolist()]
    parts = [rows[first:last] @ weight for first, last, weight in zip(ends, ends[1:], weights, strict=False)]
    return torch.cat([*parts, rows.new_zeros(len(rows) - ends[-1], weights.shape[-1])])


def _double(argument: Any) -> Any:
    return _WIDER.get(argument, argument) if isinstance(argument, torch.dtype) else argument


_WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}
