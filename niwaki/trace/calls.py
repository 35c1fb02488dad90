"""Record the torch functions that Python code calls, and the whole numbers it passes them.

Below autograd an operator sees plain integers. This mode lies above autograd: it notes the tracked integers among the
arguments of each call, and returns tracked integers when code reads a shape.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from niwaki.core.numbers import Count, Expression
from niwaki.core.repairs import Scalar
from niwaki.trace.gradients import asked_by
from niwaki.trace.graph import PythonCall
from niwaki.trace.powers import Power, PowerFloat
from niwaki.trace.tracked import TrackedFloat, TrackedInt, agrees, current_trace, expression_of, freeze, plain

_GUARDS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
_NO_NUMBERS = frozenset({torch.Tensor, torch.nn.Parameter, bool, float, str, type(None), torch.dtype, torch.device})


class Numbering(Protocol):
    """Gives every tensor of a run its value number."""

    def number_of(self, tensor: torch.Tensor) -> int:
        """The value number of ``tensor``."""

    def reads(self, function: Callable[..., Any], tensor: torch.Tensor) -> None:
        """Note that a torch function reads the memory of ``tensor`` without an operator."""

    def repoints(self, tensor: torch.Tensor, other: torch.Tensor) -> None:
        """Note that ``tensor`` gets the memory of ``other``."""

    def asks_for_gradients(self) -> None:
        """Note that a network's code asks whether gradients are recorded."""

    def tracks_sizes(self) -> bool:
        """Whether the code that runs now gets tracked sizes."""

    def drops(self, tensor: torch.Tensor) -> None:
        """Note a dropout, which returns ``tensor`` itself in eval mode and another tensor in train mode."""


class CallMode(TorchFunctionMode):
    """Keeps ``current``, the innermost torch function that Python code called.

    ``resting``: whether an operator runs now, below Python. If scripted code called it, torch has not disabled this
    mode, and calls of the recorder itself would be recorded as the network's.
    """

    def __init__(self, numbering: Numbering) -> None:
        super().__init__()
        self._calls = 0
        self.current = self.another(None)
        self._numbering = numbering
        self._open: list[Callable[..., Any]] = []
        self.resting = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.resting:
            return func(*args, **kwargs)
        answer = _ANSWERED.get(func)
        if answer is not None:
            return answer(self, *args, **kwargs)
        watch = _WATCHED.get(func)
        if watch is not None:
            watch(self, func, args, kwargs)
        if type(func) is FunctionType and func not in self._open:  # Tensor.unflatten calls the builtin of its own name
            body = _body(func)
            if body is not None:
                self._open.append(func)
                try:
                    with self:
                        return body(*args, **kwargs)
                finally:
                    self._open.pop()
        if func in _REPEATS:
            kwargs = self.sized(args, kwargs)
        previous = self.current
        numbers: list[Expression] = []
        floats: list[Scalar] = []
        powers: list[Power] = []
        _given(args, numbers, floats, powers)
        if kwargs:
            _given(kwargs, numbers, floats, powers)
        self.current = self.another(func, tuple(numbers), tuple(floats), tuple(powers))
        try:
            return func(*args, **kwargs)
        finally:
            self.current = previous

    def another(
        self,
        function: Callable[..., Any] | None,
        numbers: tuple[Expression, ...] = (),
        scalars: tuple[Scalar, ...] = (),
        powers: tuple[Power, ...] = (),
    ) -> PythonCall:
        """A call with a number of its own."""
        self._calls += 1
        return PythonCall(self._calls, function, numbers, scalars, powers)

    def counts_of(self, tensor: torch.Tensor) -> torch.Size:
        """The sizes of a tensor, each with the tensor and dimension it belongs to."""
        value = self._numbering.number_of(tensor)
        return torch.Size([TrackedInt(size, Count((value, dim), size)) for dim, size in enumerate(tuple(tensor.shape))])

    def shape_of(self, tensor: torch.Tensor) -> torch.Size:
        """``Tensor.shape``."""
        return torch.Size(self._seen(self.counts_of(tensor)))

    def size_of(self, tensor: torch.Tensor, dim: int | None = None) -> Any:
        """``Tensor.size``."""
        counts = self.counts_of(tensor)
        return torch.Size(self._seen(counts)) if dim is None else self._seen([counts[dim]])[0]

    def entries_of(self, input: torch.Tensor) -> int:
        """``Tensor.numel``."""
        return math.prod(self._seen(self.counts_of(input)))

    def _seen(self, counts: Sequence[int]) -> Sequence[int]:
        """Sizes as Python code gets them. Plain ones are frozen: what the code does with them is not known."""
        if self._numbering.tracks_sizes():
            return counts
        for count in counts:
            freeze(count)
        return [plain(count) for count in counts]

    def listed(self, tensor: torch.Tensor) -> Any:
        """``Tensor.tolist``, read entry by entry, which operators record; torch's own reads the memory without an
        operator."""
        self.current = self.another(torch.Tensor.tolist)
        with self:
            return [self.listed(part) for part in tensor.unbind()] if tensor.ndim else tensor.item()

    def as_another(self, function: Callable[..., Any], tensor: torch.Tensor, other: torch.Tensor) -> Any:
        """``view_as`` and the like: operators get only the numbers of the other tensor's shape."""
        with self:
            return function(tensor, self.counts_of(other))

    def sized(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keywords of ``repeat_interleave`` without ``output_size``: that has to agree with the number of copies,
        and constrains nothing else."""
        given = dict(zip(("input", "repeats", "dim"), args, strict=False)) | kwargs
        total, times, dim = given.get("output_size"), given.get("repeats"), given.get("dim")
        if not isinstance(total, int) or not isinstance(times, int) or not isinstance(dim, int):
            return kwargs
        agrees(total, times * self.counts_of(given["input"])[dim])
        return {name: value for name, value in kwargs.items() if name != "output_size"}

    def reads(self, func: Callable[..., Any], args: Sequence[Any], _: Any) -> None:
        """Memory is read without an operator."""
        self._numbering.reads(func, args[0])

    def repoints(self, _: Any, args: Sequence[Any], __: Any) -> None:
        """``tensor.data = other``, which is not an operator."""
        self._numbering.repoints(args[0], args[1])

    def drops(self, _: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """A result that is the input in one mode only."""
        self._numbering.drops(args[0] if args else kwargs["input"])

    def asks(self, *_: Any) -> None:
        """Code asks whether a tensor has or needs a gradient."""
        if asked_by(sys._getframe(2)):
            self._numbering.asks_for_gradients()

    def attends(self, _: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Attention without ``scale``: torch computes it from a size."""
        if kwargs.get("scale") is None:
            freeze(self.counts_of(args[0] if args else kwargs["query"])[-1])

    def recurs(self, _: Any, args: Sequence[Any], __: Any) -> None:
        """An LSTM sees a projection by the sizes of its states, so a difference between them must remain."""
        hidden, cell = args[2] if isinstance(args[1], torch.Tensor) else args[1]
        if hidden.shape != cell.shape:
            freeze(self.counts_of(hidden)[-1])
            freeze(self.counts_of(cell)[-1])


_ANSWERED: dict[Any, Callable[..., Any]] = {
    torch.Tensor.shape.__get__: CallMode.shape_of,  # type: ignore[attr-defined]
    torch.Tensor.size: CallMode.size_of,
    torch.Tensor.tolist: CallMode.listed,
    torch.Tensor.numel: CallMode.entries_of,
    torch.numel: CallMode.entries_of,
    torch.Tensor.expand_as: lambda mode, *given, **named: mode.as_another(torch.Tensor.expand, *given, **named),
    torch.Tensor.reshape_as: lambda mode, *given, **named: mode.as_another(torch.Tensor.reshape, *given, **named),
    torch.Tensor.view_as: lambda mode, *given, **named: mode.as_another(torch.Tensor.view, *given, **named),
}
_WATCHED: dict[Any, Callable[..., None]] = {
    torch.Tensor.data.__set__: CallMode.repoints,  # type: ignore[attr-defined]
    torch.dropout: CallMode.drops,
    **{getattr(torch.Tensor, name).__get__: CallMode.asks for name in ("requires_grad", "grad_fn", "is_leaf")},
    torch.feature_dropout: CallMode.drops,
    torch.nn.functional.scaled_dot_product_attention: CallMode.attends,
    torch.lstm: CallMode.recurs,
    **{
        getattr(torch.Tensor, name): CallMode.reads
        for name in ("numpy", "__array__", "__dlpack__", "untyped_storage", "storage", "data_ptr")
    },
}


_REPEATS = frozenset({torch.repeat_interleave, torch.Tensor.repeat_interleave})


def _given(argument: Any, numbers: list[Expression], floats: list[Scalar], powers: list[Power]) -> None:
    """Collect the whole numbers among (nested) arguments, in order of writing, bounds of slices included, the float
    attributes, and the floats that change with sizes."""
    kind = type(argument)
    if kind in _NO_NUMBERS:
        return
    if kind is TrackedFloat:
        if argument.trace is current_trace.get():
            floats.append(argument.scalar)
    elif kind is PowerFloat:
        if argument.trace is current_trace.get():
            powers.append(argument.power)
    elif isinstance(argument, int):
        numbers.append(expression_of(argument))
    elif isinstance(argument, (tuple, list)):
        for item in argument:
            _given(item, numbers, floats, powers)
    elif isinstance(argument, dict):
        for item in argument.values():
            _given(item, numbers, floats, powers)
    elif isinstance(argument, slice):
        _given((argument.start, argument.stop, argument.step), numbers, [], [])


@cache
def _body(function: FunctionType) -> Callable[..., Any] | None:
    """A torch function that is written in Python, without the guard that would call this mode again.

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
