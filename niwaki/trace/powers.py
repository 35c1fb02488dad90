"""A ``float`` that changes with sizes of tensors as a product of their powers, such as ``sqrt(2 / fan_in)``.

Where it multiplies a weight, a cut can repair the weight (`niwaki.solve.rescaling`), and the sizes may change. The
sizes are frozen when they leave the integers; ``frozen`` lists the records that such a use would cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from niwaki.core.numbers import Count, Expression, Literal, factors_of


@dataclass(frozen=True, slots=True)
class Power:
    """A float that is ``value`` in the dense network: a constant times the product of ``factors``, each a size and its
    power. ``frozen``: the numbers, among the frozen ones of a run, of the sizes it was made of."""

    value: float
    factors: tuple[tuple[Count, float], ...]
    frozen: frozenset[int]


class PowerFloat(float):
    """A float with its `Power`. Arithmetic other than multiplication, division and powers gives plain floats."""

    power: Power
    trace: object

    def __new__(cls, power: Power, trace: object) -> PowerFloat:
        self = super().__new__(cls, power.value)
        self.power = power
        self.trace = trace
        return self

    # The class that code sees as ``__class__``; `type` gives the real one.
    __class__ = property(lambda self: float)

    def __reduce__(self) -> tuple[Any, ...]:
        return (float, (float.__float__(self),))

    def __mul__(self, other: Any) -> Any:
        return self._with(float.__mul__(self, other), other, 1.0, 1.0)

    def __rmul__(self, other: Any) -> Any:
        return self._with(float.__rmul__(self, other), other, 1.0, 1.0)

    def __truediv__(self, other: Any) -> Any:
        return self._with(float.__truediv__(self, other), other, 1.0, -1.0)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with(float.__rtruediv__(self, other), other, -1.0, 1.0)

    def __pow__(self, other: Any, modulus: None = None) -> Any:
        value = float.__pow__(self, other)
        plain = type(other) in (int, float)
        return self._raised(value, float(other)) if plain and type(value) is float else value

    def _raised(self, value: float, exponent: float) -> PowerFloat:
        factors = tuple((count, power * exponent) for count, power in self.power.factors)
        return PowerFloat(Power(value, factors, self.power.frozen), self.trace)

    def _with(self, value: Any, other: Any, own: float, others: float) -> Any:
        """The product of powers of this and another number, ``value``."""
        factors = [(count, power * own) for count, power in self.power.factors]
        frozen = self.power.frozen
        if type(other) is PowerFloat and other.trace is self.trace:
            factors += [(count, power * others) for count, power in other.power.factors]
            frozen |= other.power.frozen
        elif type(other) not in (int, float):
            return value
        return PowerFloat(Power(value, tuple(factors), frozen), self.trace) if type(value) is float else value


def power_of(value: float, expression: Expression, exponent: float, frozen: int, trace: object) -> float:
    """``value`` as a constant times ``expression ** exponent``; a plain float where the expression is not a product of
    sizes."""
    factors = factors_of(expression)
    counts = tuple((factor, exponent) for factor in factors or () if isinstance(factor, Count))
    if not counts or not all(isinstance(factor, (Count, Literal)) for factor in factors or ()):
        return value
    return PowerFloat(Power(value, counts, frozenset({frozen})), trace)


@contextmanager
def roots_followed(root_of_size: Callable[[Any], float | None]) -> Iterator[None]:
    """Inside, `math.sqrt` of such a float, or of a number that ``root_of_size`` has a root of, is such a float too. (As
    a C function it would read the bare value.)"""
    plain = math.sqrt

    def sqrt(number: Any, /) -> float:
        if type(number) is PowerFloat:
            return number._raised(plain(number), 0.5)
        found = root_of_size(number)
        return plain(number) if found is None else found

    math.sqrt = sqrt
    try:
        yield
    finally:
        math.sqrt = plain
