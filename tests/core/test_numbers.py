"""Numbers in Python: expressions, their inversion, and integers that remember."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.core.counts import Counts
from niwaki.core.numbers import OPERATORS, Attribute, Combination, Count, Expression, Literal, evaluate, invert, leaves
from niwaki.trace.tracked import TrackedInt, expression_of, frozen_sink

WIDTH = Attribute("block", "width", (), 12)
NONE = np.zeros(0)


@given(st.sampled_from(sorted(OPERATORS)), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(1, 60))
def test_an_inverse_solves_the_equation(symbol: str, old: int, other: int, on_left: bool, target: int) -> None:
    attribute = Attribute("", "n", (), old)
    pair: tuple[Expression, Expression] = (attribute, Literal(other)) if on_left else (Literal(other), attribute)
    expression = Combination(symbol, *pair, OPERATORS[symbol](pair[0].value, pair[1].value))
    solved = invert(expression, attribute, target, {}, NONE)
    if solved is not None and solved != 0:
        assert evaluate(expression, {attribute: solved}, NONE) == target


def test_no_inverse_is_none() -> None:
    product = Combination("*", WIDTH, Literal(5), 60)
    assert invert(product, WIDTH, 61, {}, NONE) is None
    assert invert(Combination("*", WIDTH, WIDTH, 144), WIDTH, 100, {}, NONE) is None


def test_division_by_zero_has_no_value() -> None:
    assert evaluate(Combination("//", Literal(3), WIDTH, 0), {WIDTH: 0}, NONE) is None


@given(st.integers(-20, 20), st.integers(1, 20))
def test_tracked_integers_are_integers(a: int, b: int) -> None:
    tracked = TrackedInt(a, Attribute("", "a", (), a))
    for symbol in ("+", "-", "*", "//", "%"):
        operation = OPERATORS[symbol]
        assert operation(tracked, b) == operation(a, b)
        result = operation(tracked, b)
        assert expression_of(result) == Combination(symbol, tracked.expression, Literal(b), operation(a, b))
        if a:
            assert operation(b, tracked) == operation(b, a)
    assert tracked / b == a / b
    assert -tracked == -a
    assert tracked + 0.5 == a + 0.5
    assert hash(tracked) == hash(a)
    assert type(copy.deepcopy(tracked)) is int


@pytest.mark.parametrize(
    "leave", [lambda n: n / 2, lambda n: n**-0.5, lambda n: float(n), lambda n: n * 1.5, lambda n: 2**n]
)
def test_leaving_the_integers_is_reported(leave: object) -> None:
    seen: list[Expression] = []
    token = frozen_sink.set(seen.append)
    try:
        leave(TrackedInt(4, WIDTH))
    finally:
        frozen_sink.reset(token)
    assert seen == [WIDTH]


@given(st.integers(0, 40), st.integers(1, 9))
def test_more_of_what_integers_do(a: int, b: int) -> None:
    n = TrackedInt(a, Attribute("", "n", (), a))
    followed = [
        (n**3, a**3),
        (n << b, a << b),
        (n >> b, a >> b),
        (~n, ~a),
        (-(-n // b), -(-a // b)),
        (abs(n), a),
        (abs(n - b), abs(a - b)),
        (round(n), a),
        (math.ceil(n), a),
        (math.floor(n), a),
        (math.trunc(n), a),
        (divmod(n, b)[1], a % b),
        (divmod(b, n + 1)[0], b // (a + 1)),
        (sum([n, n, b]), 2 * a + b),
        (math.prod([n, b]), a * b),
    ]
    for ours, plain in followed:
        assert ours == plain
        assert any(isinstance(leaf, Attribute) for leaf in leaves(expression_of(ours)))
    for ours, plain in ((n & b, a & b), (b | n, a | b), (n ^ b, a ^ b), (1 << n, 1 << a), (round(n, -1), round(a, -1))):
        assert (ours, type(ours)) == (plain, int)


@pytest.mark.parametrize(
    ("use", "reported"),
    [
        (lambda n: [0] * n, "width"),
        (lambda n: n * (0, 1), "width"),
        (lambda n: n & 3, "width"),
        (lambda n: 64 >> n, "width"),
        (lambda n: "odd" if n % 2 else "even", "((width % 2) != 0)"),
        (lambda n: abs(n - 3), "((width - 3) >= 0)"),
        (lambda n: min(n, 3), "(width > 3)"),
        (lambda n: n in (4, 12), "(width == 4)"),
    ],
)
def test_uses_that_must_come_out_the_same_are_reported(use: Callable[[int], object], reported: str) -> None:
    seen: list[Expression] = []
    token = frozen_sink.set(seen.append)
    try:
        assert use(TrackedInt(12, Attribute("", "width", (), 12))) == use(12)
    finally:
        frozen_sink.reset(token)
    assert str(seen[0]) == reported


def test_expressions_print_as_written() -> None:
    assert str(Combination("//", Count(0, 768), WIDTH, 64)) == "(size(768) // block.width)"
    assert str(Attribute("norm", "normalized_shape", (0,), 8)) == "norm.normalized_shape[0]"


@given(st.integers(0, 10**6))
def test_slopes_are_derivatives_of_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, units, axes = 12, 5, 3
    counts = Counts(
        units, axes, rng.integers(0, units + 1, (rows, 2)), rng.integers(1, 4, rows) * 1.0, rng.integers(0, axes, rows)
    )
    # A unit twice in one row would be squared; the solver never makes such rows.
    twice = counts.units[:, 0] == counts.units[:, 1]
    counts.units[twice, 1] = units
    gates = rng.uniform(0.2, 0.8, units)
    axis, unit, value = counts.slopes(gates)
    slope = np.zeros((axes, units))
    np.add.at(slope, (axis, unit), value)
    for u in range(units):
        step = np.zeros(units)
        step[u] = 1e-6
        assert np.allclose((counts(gates + step) - counts(gates - step)) / 2e-6, slope[:, u], atol=1e-6)
