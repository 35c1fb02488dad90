"""An ``int`` that remembers how it was made, so that a cut knows what it has to become."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from niwaki.core.numbers import OPERATORS, Combination, Expression, Literal

# Called with an expression that has left the integers; set while a trace runs.
frozen_sink: ContextVar[Callable[[Expression], None] | None] = ContextVar("frozen_sink", default=None)


class TrackedInt(int):
    """An integer with an expression. Arithmetic on it is recorded; whatever is not recorded gives a plain number,
    which counts as a literal later and pins what it touches."""

    expression: Expression

    def __new__(cls, value: int, expression: Expression) -> TrackedInt:
        self = super().__new__(cls, value)
        self.expression = expression
        return self

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
        return _leave(self, int.__truediv__(self, _plain(other)), other)

    def __rtruediv__(self, other: Any) -> Any:
        return _leave(self, int.__rtruediv__(self, _plain(other)), other)

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        return _leave(self, int.__pow__(self, _plain(other), modulus), other)

    def __rpow__(self, other: Any, modulus: Any = None) -> Any:
        return _leave(self, int.__rpow__(self, _plain(other), modulus), other)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other


def expression_of(number: int) -> Expression:
    """The expression of a tracked integer; any other integer is a literal."""
    return number.expression if isinstance(number, TrackedInt) else Literal(int(number))


def plain(number: int) -> int:
    """An ordinary ``int`` of the same value."""
    return int.__index__(number)


def _plain(other: Any) -> Any:
    return plain(other) if isinstance(other, TrackedInt) else other


def _leave(number: TrackedInt, result: Any, other: Any = None) -> Any:
    if result is not NotImplemented:
        freeze(number)
        if isinstance(other, TrackedInt):
            freeze(other)
    return result


def freeze(number: int) -> None:
    """Report that a number has become part of the computed function."""
    sink = frozen_sink.get()
    if sink is not None and isinstance(number, TrackedInt):
        sink(number.expression)


def _combine(symbol: str, left: Any, right: Any) -> Any:
    if not isinstance(left, int) or not isinstance(right, int):
        return NotImplemented
    value = OPERATORS[symbol](plain(left), plain(right))
    left_expression, right_expression = expression_of(left), expression_of(right)
    if isinstance(left_expression, Literal) and isinstance(right_expression, Literal):
        return value
    return TrackedInt(value, Combination(symbol, left_expression, right_expression, value))


def _forward(symbol: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        result = _combine(symbol, self, other)
        if result is NotImplemented and isinstance(other, float):
            freeze(self)
            return _FLOAT[symbol](float(plain(self)), other)
        return result

    return method


def _reflected(symbol: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        result = _combine(symbol, other, self)
        if result is NotImplemented and isinstance(other, float):
            freeze(self)
            return _FLOAT[symbol](other, float(plain(self)))
        return result

    return method


_FLOAT: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}
for _name, _symbol in (("add", "+"), ("sub", "-"), ("mul", "*"), ("floordiv", "//"), ("mod", "%")):
    setattr(TrackedInt, f"__{_name}__", _forward(_symbol))
    setattr(TrackedInt, f"__r{_name}__", _reflected(_symbol))
