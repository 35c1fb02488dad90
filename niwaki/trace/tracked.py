"""Tracked numbers: integers and floats that carry the expression by which Python code computed them from sizes."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Container
from contextvars import ContextVar
from functools import lru_cache, reduce
from typing import Any

import torch

from niwaki.core.libraries import EINOPS, TORCH, is_of
from niwaki.core.metadata import EPSILONS
from niwaki.core.numbers import OPERATORS, Combination, Expression, Literal
from niwaki.core.repairs import Scalar
from niwaki.trace.extent import Place
from niwaki.trace.powers import PowerFloat, power_of

# Called with an expression that has left the integers; returns the number of that record. Set while a trace runs.
frozen_sink: ContextVar[Callable[[Expression], int] | None] = ContextVar("frozen_sink", default=None)


# The trace that runs now. A number from an earlier trace, kept for example in a cache of the user, counts as a plain
# number.
current_trace: ContextVar[object] = ContextVar("current_trace", default=None)


class TrackedInt(int):
    """An integer with an expression. Arithmetic on it is recorded; operations that are not recorded give a plain
    number, which counts as a literal later and pins the dimensions it meets."""

    expression: Expression
    trace: object

    def __new__(cls, value: int, expression: Expression) -> TrackedInt:
        self = super().__new__(cls, value)
        self.expression = expression
        self.trace = current_trace.get()
        return self

    # What code is told that asks for it; `type` tells the truth.
    __class__ = property(lambda self: int)

    def __reduce__(self) -> tuple[Any, ...]:
        return (int, (int.__index__(self),))

    def __neg__(self) -> int:
        negative: int = _combine("*", self, -1)
        return negative

    def __pos__(self) -> int:
        return self

    def __float__(self) -> float:
        freeze(self)
        return int.__float__(self)

    def __truediv__(self, other: Any) -> Any:
        return _leave(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _leave(operator.truediv, other, self)

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        if modulus is None and type(other) is int and 1 <= other <= _LARGEST_POWER:
            return reduce(operator.mul, [self] * other)
        return _leave(pow, self, other) if modulus is None else NotImplemented

    def __rpow__(self, other: Any, modulus: Any = None) -> Any:
        return _leave(pow, other, self) if modulus is None else NotImplemented

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __lshift__(self, other: Any) -> Any:
        return self * 2**other if type(other) is int and other >= 0 else _leave(operator.lshift, self, other)

    def __rshift__(self, other: Any) -> Any:
        return self // 2**other if type(other) is int and other >= 0 else _leave(operator.rshift, self, other)

    def __invert__(self) -> int:
        return -self - 1

    def __abs__(self) -> int:
        positive = _stays(self, ">=", 0)
        return self if positive else -self

    def __bool__(self) -> bool:
        # An attribute or a dimension is never zero after a cut, but a remainder may be.
        return _stays(self, "!=", 0) if isinstance(expression_of(self), Combination) else int.__bool__(self)

    def __round__(self, digits: Any = None) -> int:
        if digits is None or digits >= 0:
            return self
        freeze(self)
        return round(plain(self), digits)

    def __trunc__(self) -> int:
        return self

    def __floor__(self) -> int:
        return self

    def __ceil__(self) -> int:
        return self

    def __hash__(self) -> int:
        # einops caches sizes by the numbers it is called with, and skips the cache for numbers without a hash.
        if is_of(sys._getframe(1).f_code, EINOPS):
            raise TypeError("unhashable type: a tracked integer is a symbol")
        return int.__hash__(self)


def expression_of(number: int) -> Expression:
    """The expression of a tracked integer; any other integer is a literal."""
    if isinstance(number, TrackedInt) and number.trace is current_trace.get():
        return number.expression
    return _literal(plain(number))


@lru_cache(maxsize=4096)
def _literal(number: int) -> Literal:
    return Literal(number)


def plain(number: int) -> int:
    """An ordinary ``int`` of the same value."""
    return int.__index__(number)


def _leave(operation: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Arithmetic with an untracked result. (A float on the left, as in ``0.5 * n``, never gets here: the float reads
    the integer's bare value. The dry run compares such numbers where they reach an operator.)"""
    if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
        return NotImplemented
    sized = [number for number in (left, right) if isinstance(number, TrackedInt)]
    frozen = [freeze(number) for number in sized]
    value, exponent = operation(_plain(left), _plain(right)), _exponent(operation, left, right)
    if len(sized) > 1 or exponent is None or frozen[0] is None or type(value) is not float:
        return value
    return power_of(value, expression_of(sized[0]), exponent, frozen[0], current_trace.get())


def _exponent(operation: Callable[[Any, Any], Any], left: Any, right: Any) -> float | None:
    """The exponent of a tracked number in the result of ``operation`` with another number; None if it is not a
    power."""
    if type(left) is PowerFloat or type(right) is PowerFloat:
        return None
    if operation is pow:
        return float(right) if isinstance(left, TrackedInt) else None
    if operation is operator.truediv:
        return 1.0 if isinstance(left, TrackedInt) else -1.0
    return 1.0 if operation is operator.mul else None


def root_of(number: Any) -> float | None:
    """The square root of a tracked integer; None for anything else."""
    return _leave(pow, number, 0.5) if isinstance(number, TrackedInt) else None


def _plain(number: float) -> float:
    return plain(number) if isinstance(number, TrackedInt) else number


def freeze(number: int) -> int | None:
    """Record that a number became part of the computed function; returns the number of that record."""
    sink = frozen_sink.get()
    return None if sink is None else sink(expression_of(number))


def agrees(left: int, right: int) -> None:
    """Record two equal numbers that must be equal after a cut too."""
    sink, a, b = frozen_sink.get(), expression_of(left), expression_of(right)
    if sink is not None and a != b and plain(left) == plain(right):
        sink(Combination("-", a, b, 0))


def _combine(symbol: str, left: Any, right: Any) -> Any:
    if not isinstance(left, int) or not isinstance(right, int):
        return NotImplemented
    value = OPERATORS[symbol](plain(left), plain(right))
    left_expression, right_expression = expression_of(left), expression_of(right)
    if isinstance(left_expression, Literal) and isinstance(right_expression, Literal):
        return value
    return TrackedInt(value, Combination(symbol, left_expression, right_expression, value))


def _stays(left: TrackedInt, symbol: str, right: int) -> bool:
    """The outcome of a comparison that must be the same after a cut."""
    outcome = bool(OPERATORS[symbol](plain(left), right))
    sink = frozen_sink.get()
    if sink is not None:
        sink(Combination(symbol, expression_of(left), Literal(right), int(outcome)))
    return outcome


def _repeats(symbol: str, number: Any, other: Any) -> None:
    """Record the number of repetitions of a sequence: its length becomes part of the computed function."""
    if symbol == "*" and isinstance(other, (list, tuple, str, bytes)):
        freeze(number)


def _forward(symbol: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if isinstance(other, float):
            return _leave(OPERATORS[symbol], self, other)
        _repeats(symbol, self, other)
        return _combine(symbol, self, other)

    return method


def _reflected(symbol: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        _repeats(symbol, self, other)
        return _combine(symbol, other, self)

    return method


def _out(operation: Callable[[Any, Any], Any], reflected: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        return _leave(operation, other, self) if reflected else _leave(operation, self, other)

    return method


def _compared(symbol: str) -> Callable[[Any, Any], Any]:
    method = getattr(int, _COMPARISONS[symbol])

    def compare(self: Any, other: Any) -> Any:
        outcome = method(self, other)
        if outcome is not NotImplemented and frozen_sink.get() is not None:
            _decided(symbol, self, other, bool(outcome))
        return outcome

    return compare


def _decided(symbol: str, left: TrackedInt, right: int, outcome: bool) -> None:
    """Record a comparison in the model's code: it may have decided what was computed next, so its outcome must be the
    same after a cut. For two equal numbers their difference must be zero, which a change of an attribute can satisfy.
    Comparisons in torch's code are checks, which raise errors by themselves."""
    if is_of(sys._getframe(2).f_code, TORCH):
        return
    a, b = expression_of(left), expression_of(right)
    if symbol in ("==", "!=") and outcome == (symbol == "=="):
        expression: Expression = Combination("-", a, b, 0)
    else:
        expression = Combination(symbol, a, b, int(outcome))
    sink = frozen_sink.get()
    if sink is not None and a != b:
        sink(expression)


_LARGEST_POWER = 4


_COMPARISONS = {"==": "__eq__", "!=": "__ne__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}


for _symbol, _name in _COMPARISONS.items():
    setattr(TrackedInt, _name, _compared(_symbol))


for _name, _operation in (("and", operator.and_), ("or", operator.or_), ("xor", operator.xor)):
    setattr(TrackedInt, f"__{_name}__", _out(_operation))
    setattr(TrackedInt, f"__r{_name}__", _out(_operation))  # these commute


for _name, _operation in (("rlshift", operator.lshift), ("rrshift", operator.rshift)):
    setattr(TrackedInt, f"__{_name}__", _out(_operation, reflected=True))


for _name, _symbol in (("add", "+"), ("sub", "-"), ("mul", "*"), ("floordiv", "//"), ("mod", "%")):
    setattr(TrackedInt, f"__{_name}__", _forward(_symbol))
    setattr(TrackedInt, f"__r{_name}__", _reflected(_symbol))


class TrackedFloat(float):
    """A float attribute of a module. Arithmetic gives plain floats, which no repair can reach."""

    scalar: Scalar
    trace: object

    def __new__(cls, scalar: Scalar) -> TrackedFloat:
        self = super().__new__(cls, scalar.value)
        self.scalar = scalar
        self.trace = current_trace.get()
        return self

    # What code is told that asks for it; `type` tells the truth.
    __class__ = property(lambda self: float)

    def __reduce__(self) -> tuple[Any, ...]:
        return (float, (float.__float__(self),))


def track_floats(path: str, module: torch.nn.Module, plain: Container[Place]) -> list[str]:
    """Replace the float attributes of a module, and an epsilon that is None, by tracked floats, except the ``plain``
    ones. Returns the names of the replaced ones."""
    made = []
    for name, value in list(module.__dict__.items()):
        if type(value) is float and (path, name, ()) not in plain:
            module.__dict__[name] = TrackedFloat(Scalar(path, name, value))
            made.append(name)
    for kind, name in EPSILONS.items():
        if isinstance(module, kind) and module.__dict__.get(name, 0.0) is None and (path, name, ()) not in plain:
            dtype = next((p.dtype for p in module.parameters(recurse=False)), torch.get_default_dtype())
            module.__dict__[name] = TrackedFloat(Scalar(path, name, torch.finfo(dtype).eps, epsilon=True))
            made.append(name)
    return made
