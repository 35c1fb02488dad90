"""What the engine's objects print: all of a small network, the first lines of a large one."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import niwaki
from niwaki.core.describe import spans
from niwaki.rules.axis import Axis, fixed, merge
from niwaki.rules.label import Label, Scale
from niwaki.solve.axis_table import Tables
from niwaki.solve.components import solve
from niwaki.solve.groups import SolvedGroups
from niwaki.solve.propagate import propagate
from niwaki.solve.sizes import solve_sizes
from niwaki.trace.tracer import example_calls, trace

MOST_LINES = 60


class Heads(nn.Module):
    """A residual branch with a product in it: (head, position in the head)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.norm = nn.LayerNorm(24)
        self.up, self.down = nn.Linear(24, 32), nn.Linear(32, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.up(self.norm(x)).view(len(x), self.heads, -1).relu()
        return x + self.down(h.flatten(1))


@pytest.mark.parametrize("depth", [1, 40])
@pytest.mark.parametrize("inexact", [False, True])
def test_objects_of_the_engine_fit_a_screen(depth: int, inexact: bool) -> None:
    net = nn.Sequential(nn.Linear(6, 24), *(Heads() for _ in range(depth)), nn.Linear(24, 3), nn.Sigmoid())
    graph = trace(net, example_calls(torch.randn(2, 6)))
    constraints = propagate(graph, allow_inexact=inexact)
    units = SolvedGroups(graph, constraints)
    solved = [graph, constraints, solve(constraints), units, solve_sizes(units, Tables(units))]
    texts = [str(item) for item in solved]
    for text in texts:
        assert len(text.splitlines()) <= MOST_LINES
        assert max(map(len, text.splitlines())) < 200
        assert "array(" not in text
        assert "… " in text or depth == 1
    assert ("inexact" in texts[1]) == inexact
    assert f"test_describe.py:{Heads.forward.__code__.co_firstlineno + 1}" in texts[0]
    assert re.search(r"^  \d+ +view +%\d+\[2,32\] -> %\d+\[2,4,8\] +1 +test_describe", texts[0], re.MULTILINE)


def test_a_network_of_pins_prints_too() -> None:
    net = nn.Sequential(nn.Linear(3, 5))
    constraints = propagate(graph := trace(net, example_calls(torch.randn(2, 3))))
    assert str(solve(constraints)) == "0 components\n  pinned: 1..13"
    assert str(SolvedGroups(graph, constraints)) == "0 units in 0 groups"


def test_an_axis_prints_its_factors() -> None:
    heads, inner = Axis(np.arange(1, 3)[:, None]), Axis(np.array([[7], [8], [9]]))
    assert str(merge([heads, inner])) == "1x3 2x3 * 7..9 7..9"
    assert str(fixed(3)) == "3 fixed"


def test_a_label_says_what_is_known_of_its_entries() -> None:
    four = Axis(np.arange(1, 5)[:, None])
    plain = Label((fixed(2), four), (True, False), weight=False, dtype=torch.float32)
    assert str(plain) == "[2 fixed, 1..4]"
    known = Label(
        (four, four), (True, True), True, torch.int64, scale=(Scale(four, 0.5, 0),), index_of=four, nonnegative=True
    )
    assert str(known) == (
        "[1..4, 1..4]; zero along dim 0, 1; made of parameters; nonnegative; indices on 1..4; "
        "times (size ratio of 1..4) ** 0.5"
    )


def test_a_group_names_what_its_units_are_in() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    assert str(niwaki.search_space(net, torch.randn(1, 1, 3, 3)).groups[0]).splitlines() == [
        "0: 4 units",
        "  0.weight dim 0: 1 position per unit (producer)",
        "  0.bias dim 0: 1 position per unit (producer)",
        "  3.weight dim 1: 4 positions per unit (consumer)",
    ]


@given(st.lists(st.integers(0, 4), max_size=40))
def test_spans_say_every_number(numbers: list[int]) -> None:
    """As far as they are shown, and how many are not."""
    text, _, more = spans(np.array(numbers, dtype=np.int64)).partition("… ")
    said: list[int] = []
    for part in text.split():
        first, by, last = re.fullmatch(r"(\d+)(?:(\.\.|x)(\d+))?", part).groups()  # type: ignore[union-attr]
        said += [int(first)] * int(last) if by == "x" else range(int(first), int(last or first) + 1)
    assert said == numbers[: len(said)]
    assert len(numbers) - len(said) == (int(more.split()[0]) if more else 0)


def test_equal_numbers_stay_together() -> None:
    assert spans(np.array([4, 5, 5, 5])) == "4 5x3"
