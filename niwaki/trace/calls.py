"""The torch functions that Python code calls, and the whole numbers it passes them.

Below autograd an operator sees plain integers. This mode sits above and notes, for each call, the tracked integers
among its arguments; it also makes shape reads return tracked integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from types import FunctionType
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from niwaki.core.numbers import Count, Expression
from niwaki.trace.floats import scalars
from niwaki.trace.graph import PythonCall
from niwaki.trace.numbers import TrackedInt, expression_of, freeze

# Told to take another tensor's shape, of which operators see only the numbers.
_AS_ANOTHER: dict[Any, Callable[..., Any]] = {
    torch.Tensor.expand_as: torch.Tensor.expand,
    torch.Tensor.reshape_as: torch.Tensor.reshape,
    torch.Tensor.view_as: torch.Tensor.view,
}
_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
_GUARDS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


_READING = {
    getattr(torch.Tensor, name)
    for name in ("numpy", "__array__", "__dlpack__", "untyped_storage", "storage", "data_ptr")
}


class Numbering(Protocol):
    """Gives every tensor of a run its value number."""

    def number_of(self, tensor: torch.Tensor) -> int:
        """The value number of ``tensor``."""

    def reads(self, function: Callable[..., Any], tensor: torch.Tensor) -> None:
        """Told of a torch function that reads the memory of ``tensor`` behind the operators' back."""


class CallMode(TorchFunctionMode):
    """Keeps ``current``, the innermost torch function that Python code called."""

    def __init__(self, numbering: Numbering) -> None:
        super().__init__()
        self.current = PythonCall(None)
        self._numbering = numbering
        self._open: list[Callable[..., Any]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == _SHAPE:
            return self._shape(args[0])
        if func is torch.Tensor.size:
            shape = self._shape(args[0])
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return shape if dim is None else shape[dim]
        if func is torch.Tensor.tolist:
            return self._listed(args[0])
        if func in _READING:
            self._numbering.reads(func, args[0])
        if func is torch.Tensor.numel or func is torch.numel:
            return math.prod(self._shape(args[0]))
        if func in _AS_ANOTHER:
            with self:
                return _AS_ANOTHER[func](args[0], self._shape(args[1] if len(args) > 1 else kwargs["other"]))
        body = _body(func) if isinstance(func, FunctionType) else None
        if body is not None and func not in self._open:  # Tensor.unflatten calls the builtin of its own name
            self._open.append(func)
            try:
                with self:
                    return body(*args, **kwargs)
            finally:
                self._open.pop()
        if func is torch.nn.functional.scaled_dot_product_attention and kwargs.get("scale") is None:
            freeze(self._shape(args[0] if args else kwargs["query"])[-1])  # its scale is computed out of sight
        if func is torch.lstm:  # tells by the sizes of its states whether there is a projection, so they must differ
            hidden, cell = args[2] if isinstance(args[1], torch.Tensor) else args[1]
            if hidden.shape != cell.shape:
                freeze(self._shape(hidden)[-1])
                freeze(self._shape(cell)[-1])
        previous = self.current
        self.current = PythonCall(func, tuple(_numbers((args, kwargs))), tuple(scalars((args, kwargs))))
        try:
            return func(*args, **kwargs)
        finally:
            self.current = previous

    def _listed(self, tensor: torch.Tensor) -> Any:
        """Entry by entry, which operators see; ``tolist`` reads the memory behind their back."""
        self.current = PythonCall(torch.Tensor.tolist)
        with self:
            return [self._listed(part) for part in tensor.unbind()] if tensor.ndim else tensor.item()

    def _shape(self, tensor: torch.Tensor) -> torch.Size:
        value = self._numbering.number_of(tensor)
        return torch.Size([TrackedInt(size, Count((value, dim), size)) for dim, size in enumerate(tuple(tensor.shape))])


def _numbers(argument: Any) -> Iterator[Expression]:
    """Whole numbers among (nested) arguments, in order of writing; bounds of slices included."""
    if isinstance(argument, bool) or argument is None:
        return
    if isinstance(argument, int):
        yield expression_of(argument)
    elif isinstance(argument, (tuple, list)):
        for item in argument:
            yield from _numbers(item)
    elif isinstance(argument, dict):
        for item in argument.values():
            yield from _numbers(item)
    elif isinstance(argument, slice):
        yield from _numbers((argument.start, argument.stop, argument.step))


@cache
def _body(function: FunctionType) -> Callable[..., Any] | None:
    """A torch function that is written in Python, without the guard that would hand it back to this mode.

    Its own calls then reach the mode one by one, with their numbers.
    """
    if not any(name in _GUARDS for name in function.__code__.co_names):
        return None
    unguarded = {**function.__globals__, **dict.fromkeys(_GUARDS, _no_override)}
    body = FunctionType(function.__code__, unguarded, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def _no_override(*_: Any) -> bool:
    return False
