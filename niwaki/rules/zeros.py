"""Register when operators make zeros of zeros whatever else they are given, and when they divide by nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from torch._ops import OpOverload

from niwaki.rules.registry import RULES, Rule

R = TypeVar("R", bound=Rule)


@dataclass(frozen=True, slots=True)
class Product:
    """All of the result is zero where one of the arguments ``factors`` is, and the argument ``plus`` as well."""

    factors: tuple[str, ...]
    plus: str | None


@dataclass(frozen=True, slots=True)
class Quotient:
    """The result has no value where the argument ``divisor`` is zero; ``negative``: only if this number is."""

    divisor: str
    negative: str | None


@dataclass(frozen=True, slots=True)
class Lift:
    """The result is not zero where the first argument is zero; ``number``: only if this is a number and not zero."""

    number: str | None


PRODUCTS: dict[OpOverload, Product] = {}
QUOTIENTS: dict[OpOverload, Quotient] = {}
LIFTS: dict[OpOverload, Lift] = {}
MIXTURES: set[OpOverload] = set()


def product(*factors: str, plus: str | None = None, of: Iterable[OpOverload] = ()) -> Callable[[R], R]:
    """Declare that the operators ``of`` a rule (by default all that it is registered for) multiply their inputs: see
    `Product`. Of others it is assumed that they make zeros where all that they are given is zero."""

    def register(function: R) -> R:
        PRODUCTS.update(dict.fromkeys(_operators(function, of), Product(factors, plus)))
        return function

    return register


def mixture(*, of: Iterable[OpOverload] = ()) -> Callable[[R], R]:
    """Declare that some entries of a result are of one argument, some of another. Not needed where the operator writes
    to an argument."""

    def register(function: R) -> R:
        MIXTURES.update(_operators(function, of))
        return function

    return register


def quotient(divisor: str, negative: str | None = None, *, of: Iterable[OpOverload] = ()) -> Callable[[R], R]:
    """Declare that operators have no value where an argument is zero: see `Quotient`."""

    def register(function: R) -> R:
        QUOTIENTS.update(dict.fromkeys(_operators(function, of), Quotient(divisor, negative)))
        return function

    return register


def lift(number: str | None = None, *, of: Iterable[OpOverload] = ()) -> Callable[[R], R]:
    """Declare that operators make something else of zero: see `Lift`."""

    def register(function: R) -> R:
        LIFTS.update(dict.fromkeys(_operators(function, of), Lift(number)))
        return function

    return register


def _operators(function: Rule, of: Iterable[OpOverload]) -> list[OpOverload]:
    return list(of) or [operator for operator, known in RULES.items() if known is function]
