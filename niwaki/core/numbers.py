"""Whole numbers that Python code computes from attributes and shapes, and their values after a cut."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from niwaki.core.counts import FloatArray
from niwaki.core.describe import counted, first_of
from niwaki.core.location import Location
from niwaki.core.paths import Where, describe

AxisT = TypeVar("AxisT")


@dataclass(frozen=True, slots=True)
class Literal:
    """A number whose origin is unknown: written in the source, or computed where niwaki cannot see."""

    value: int

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True, slots=True)
class Attribute:
    """An integer attribute of a module, or one inside a container or object that is its attribute: ``where``."""

    module: str
    name: str
    where: Where
    value: int

    def __str__(self) -> str:
        return describe(self.module, self.name, self.where)


@dataclass(frozen=True, slots=True)
class Count:
    """The number of positions of an axis, which is a (value, dimension) pair in a trace, and an axis number once
    solved."""

    axis: int | tuple[int, int]
    value: int

    def __str__(self) -> str:
        return f"size({self.value})"


@dataclass(frozen=True, slots=True)
class Combination:
    """Two numbers combined by one of the integer operators in `OPERATORS`."""

    symbol: str
    left: Expression
    right: Expression
    value: int

    def __str__(self) -> str:
        return f"({self.left} {self.symbol} {self.right})"


Expression = Literal | Attribute | Count | Combination

OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def factors_of(expression: Expression) -> tuple[Expression, ...] | None:
    """The factors of a product; None for any other expression.

    >>> factors_of(Combination("*", Count(0, 4), Literal(2), 8))
    (Count(axis=0, value=4), Literal(value=2))
    """
    if not isinstance(expression, Combination):
        return (expression,)
    left, right = factors_of(expression.left), factors_of(expression.right)
    return None if expression.symbol != "*" or left is None or right is None else (*left, *right)


def leaves(expression: Expression) -> Iterator[Expression]:
    """Yield the attributes, counts and literals of an expression."""
    if isinstance(expression, Combination):
        yield from leaves(expression.left)
        yield from leaves(expression.right)
    else:
        yield expression


def evaluate(expression: Expression, attributes: Mapping[Attribute, int], counts: FloatArray) -> int | None:
    """The value of a solved expression after a cut; None where it divides by zero."""
    if isinstance(expression, Combination):
        left = evaluate(expression.left, attributes, counts)
        right = evaluate(expression.right, attributes, counts)
        if left is None or right is None or (expression.symbol in ("//", "%") and right == 0):
            return None
        return int(OPERATORS[expression.symbol](left, right))
    if isinstance(expression, Attribute):
        return attributes.get(expression, expression.value)
    if isinstance(expression, Count):
        assert isinstance(expression.axis, int)
        return round(float(counts[expression.axis]))
    return expression.value


def invert(
    expression: Expression, unknown: Attribute, target: int, attributes: Mapping[Attribute, int], counts: FloatArray
) -> int | None:
    """The value of ``unknown`` that makes ``expression`` equal ``target``; None where no whole number does."""
    if expression == unknown:
        return target
    if not isinstance(expression, Combination):
        return None
    on_left = unknown in leaves(expression.left)
    near, far = (expression.left, expression.right) if on_left else (expression.right, expression.left)
    other = evaluate(far, attributes, counts)
    if other is None or unknown in leaves(far):
        return None
    inner = _undo(expression.symbol, other, target, on_left)
    return None if inner is None else invert(near, unknown, inner, attributes, counts)


def _undo(symbol: str, other: int, target: int, on_left: bool) -> int | None:
    """The x for which ``x symbol other`` (on the left) or ``other symbol x`` is ``target``."""
    if symbol == "+":
        return target - other
    if symbol == "-":
        return target + other if on_left else other - target
    if symbol == "*":
        return target // other if other and target % other == 0 else None
    if symbol == "//":
        if on_left:
            return target * other
        return other // target if target and other % target == 0 else None
    return None


@dataclass(frozen=True, slots=True)
class Equation(Generic[AxisT]):
    """``expression`` must equal the number of surviving positions of ``axis``, or must not change (None). ``axis`` is
    an axis number once the equations are solved, and the axis itself before."""

    expression: Expression
    axis: AxisT | None
    what: str
    location: Location

    def target(self: Equation[int], counts: FloatArray) -> int:
        """The value that the expression must have after a cut."""
        return self.expression.value if self.axis is None else round(float(counts[self.axis]))

    def __str__(self) -> str:
        axis = f"axis {self.axis}" if isinstance(self.axis, int) else self.axis
        target = f"stays {self.expression.value}" if axis is None else f"is the size of {axis}"
        return f"{self.expression} {target}: {self.what}, {self.location.brief}"


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """All equations of a search space, and which equation decides which attribute."""

    equations: tuple[Equation[int], ...]
    deciding: Mapping[Attribute, int]

    def __str__(self) -> str:
        decided = [f"  {attribute} follows from equation {index}" for attribute, index in self.deciding.items()]
        lines = [f"{counted(len(self.equations), 'equation')}", *first_of([f"  {it}" for it in self.equations])]
        return "\n".join([*lines, *([counted(len(decided), "attribute"), *first_of(decided)] if decided else [])])

    def axes_of(self, equations: Collection[int]) -> set[int]:
        """The axes that some equations depend on, through attributes too."""
        axes: set[int] = set()
        for index in self.reached(equations):
            equation = self.equations[index]
            counted = (leaf.axis for leaf in leaves(equation.expression) if isinstance(leaf, Count))
            axes.update(axis for axis in (equation.axis, *counted) if isinstance(axis, int))
        return axes

    def reached(self, equations: Collection[int]) -> set[int]:
        """Some equations, those that decide their attributes, those that decide the attributes of these, and so on."""
        seen: set[int] = set()
        waiting = list(equations)
        while waiting:
            index = waiting.pop()
            if index not in seen:
                seen.add(index)
                inside = leaves(self.equations[index].expression)
                attributes = (leaf for leaf in inside if isinstance(leaf, Attribute))
                waiting += [self.deciding[attribute] for attribute in attributes if attribute in self.deciding]
        return seen

    def solve(self, counts: FloatArray) -> tuple[dict[Attribute, int], list[int]]:
        """New values of the attributes for the surviving ``counts``, and the equations that then fail."""
        values: dict[Attribute, int] = {}
        for attribute, index in self.deciding.items():
            equation = self.equations[index]
            solved = invert(equation.expression, attribute, equation.target(counts), values, counts)
            if solved is not None:
                values[attribute] = solved
        failing = [
            index
            for index, equation in enumerate(self.equations)
            if evaluate(equation.expression, values, counts) != equation.target(counts)
        ]
        return values, failing
