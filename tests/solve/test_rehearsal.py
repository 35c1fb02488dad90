"""What slips past the tracker of whole numbers is caught when the cut is rehearsed, and pinned with its line."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from itertools import count

import numpy as np
import pytest
import torch
from exactness import deviations
from torch import Tensor, nn

import niwaki
from niwaki.testing.models import random_plan


class Escaping(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.width = how, 8
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).view(len(x), self.width)
        if self.how == "float on the left":
            y = y * (1.0 / self.width)
        elif self.how == "branch":
            y = y.relu() if self.width == 8 else y.tanh()
        elif self.how == "check" and y.shape[1] != 8:
            raise ValueError("expected eight")
        elif self.how == "int of float":
            y = y * int(0.5 * y.shape[1])
        elif self.how == "constant tensor":
            y = y * torch.tensor(2.0 * y.shape[1])
        elif self.how == "fill value":
            y = y * torch.full((1,), len(y[0]))
        elif self.how == "only in training":
            y = y * (2.0 * y.shape[1]) if self.training else y
        elif self.how == "fewer and fewer":
            for _ in range(12 - self.width):
                y = y.sin()
        elif self.how == "loop":
            for _ in range(self.width // 4):
                y = y * 2
        return self.third(self.second(y).relu())


ESCAPES = [
    "float on the left",
    "branch",
    "check",
    "int of float",
    "loop",
    "constant tensor",
    "fill value",
    "only in training",
    "fewer and fewer",
]


@pytest.mark.parametrize("how", ESCAPES)
def test_escaped_numbers_are_pinned(how: str) -> None:
    torch.manual_seed(0)
    net, x = Escaping(how), torch.randn(2, 4)
    space = niwaki.search_space(net, x)
    names = [group.name for group in space.groups]
    assert names == ["second"] or (how == "fewer and fewer" and not names)  # what follows the loop is blamed first
    pin = next(pin for pin in space.pins if pin.parameter == "first.weight" and pin.dim == 0)
    assert pin.count == 8
    if how == "fewer and fewer":
        return
    expected = "which cannot follow a cut" if how in ("branch", "check") else "after a cut, aten."
    assert expected in pin.reason
    assert pin.location is not None
    assert pin.location.file == __file__
    for seed in range(3):
        assert deviations(net, random_plan(space, np.random.default_rng(seed)), x)["eval"] <= 1e-10


def test_without_an_escape_both_widths_are_free() -> None:
    assert len(niwaki.search_space(Escaping("not at all"), torch.randn(2, 4)).groups) == 2


class Projected(nn.Module):
    """Residual code that asks whether widths agree: after a cut they may agree by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(5, 6), nn.Linear(6, 12)
        self.project, self.out = nn.Linear(6, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        y = self.wide(x).relu()
        return self.out(y + (self.project(x) if x.shape[1] != y.shape[1] else x))


def test_a_comparison_must_come_out_the_same() -> None:
    space = niwaki.search_space(Projected(), torch.randn(3, 5))
    assert not space.groups
    assert any("!=" in pin.reason and pin.location is not None for pin in space.pins)


class Remembering(nn.Module):
    """A table is computed in the first run, and in no other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    @cache  # noqa: B019 - as some networks do
    def table(self, length: int) -> Tensor:
        return torch.arange(length).sin().tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()) + self.table(len(x))[:, None]


def test_a_table_that_an_earlier_run_left_in_a_cache_is_no_mishap() -> None:
    net, x = Remembering(), torch.randn(5, 4)
    net(x)
    assert [group.units for group in niwaki.search_space(net, x).groups] == [8]


@torch.library.custom_op("niwaki_test::above_average", mutates_args=())
def above_average(scores: Tensor) -> Tensor:
    """Positions that depend on values, found by an operator that niwaki knows nothing of."""
    return (scores > scores.mean()).nonzero()[:, 0]


class Detecting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.score = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return self.second(y)[above_average(self.score(y)[:, 0])]


def test_positions_that_another_library_finds_are_those_of_the_traced_run() -> None:
    torch.manual_seed(0)
    net, x = Detecting(), torch.randn(9, 4)
    assert [group.units for group in niwaki.search_space(net, x).groups] == [8]


class Result:
    """An object that niwaki has never seen."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores


@pytest.mark.parametrize("wrap", [Result, lambda y: {"nested": [Result(y)]}, lambda y: {y}])
def test_outputs_inside_objects_are_outputs(wrap: Callable[[Tensor], object]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> object:
            return wrap(self.second(self.first(x)))

    assert [group.units for group in niwaki.search_space(Net(), torch.randn(2, 4)).groups] == [6]


def test_a_model_without_an_output_is_refused() -> None:
    class Net(nn.Linear):
        def forward(self, x: Tensor) -> None:
            self.result = super().forward(x)

    with pytest.raises(niwaki.NiwakiError, match="returned no tensor that niwaki can find"):
        niwaki.search_space(Net(4, 3), torch.randn(2, 4))


class BehindANorm(nn.Module):
    """A number that escapes behind a norm without an epsilon, and two groups beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.RMSNorm(6)
        self.second, self.third = nn.Linear(6, 5), nn.Linear(5, 3)
        self.beside = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        return self.third(self.second(y * torch.tensor(2.0 * y.shape[1])).relu()) + self.beside(x)


def test_a_norm_without_an_epsilon_whose_width_was_pinned() -> None:
    """The rehearsal after the one that failed finds None where it looks for the epsilon."""
    space = niwaki.search_space(BehindANorm(), torch.randn(5, 4))
    assert {group.name for group in space.groups} == {"second", "beside.0"} and not space.notes
    assert any(pin.parameter == "first.weight" and "after a cut" in pin.reason for pin in space.pins)


class Exhausted(nn.Module):
    """Runs so often and then no more, whichever copy of it is called. What counts is nothing that can be put back."""

    passes = count()
    most = 1000

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        if next(Exhausted.passes) >= Exhausted.most:
            raise ValueError("exhausted")
        return self.body(x)


def test_everything_is_pinned_where_nothing_can_be_blamed() -> None:
    """Not even the copy, as the model itself does not run any more either."""
    niwaki.search_space(Exhausted(), torch.randn(5, 4), rehearse=False)
    Exhausted.most = 2 * next(Exhausted.passes) + 1
    space = niwaki.search_space(Exhausted(), torch.randn(5, 4))
    assert not space.groups
    told = r"could not tell what to pin, so everything is pinned: aten\.\S+ at \S+:\d+ \(in 'body\.0'\) .*exhausted"
    assert any(re.search(told, note) for note in space.notes), space.notes


class OneHead(nn.Module):
    """With one head left, what attention gives is a view in the memory format of channels last, and torch gives the
    pooled image other strides than before."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.qkv, self.out, self.head = nn.Conv2d(4, 24, 1), nn.Conv2d(8, 4, 1), nn.Linear(4, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        count, _, height, width = x.shape
        q, k, v = (
            t.reshape(count * self.heads, -1, height * width).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=1)
        )
        y = (q @ k.transpose(1, 2)).softmax(-1) @ v
        y = y.view(count, self.heads, height * width, -1).permute(0, 1, 3, 2).reshape(count, -1, height, width)
        return self.head(self.pool(self.out(y)).flatten(1))


def test_other_strides_are_no_other_computation() -> None:
    space = niwaki.search_space(OneHead(), torch.randn(2, 4, 3, 3))
    assert [group.units for group in space.groups if "qkv" in group.name] == [2], space


class Multiples(nn.Module):
    """Runs as long as its inner width is a multiple of something, which it reads in a way that nothing follows."""

    def __init__(self, width: int, of: int) -> None:
        super().__init__()
        self.of, self.up, self.down = of, nn.Linear(8, width), nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        if int(repr(y.shape[-1])) % self.of:
            raise ValueError(f"{y.shape[-1]} is not a multiple of {self.of}")
        return x + self.down(y)


@pytest.mark.parametrize("layers", [[(18, 3)], [(9, 3)], [(30, 5), (18, 3)], [(20, 5), (24, 4)], [(24, 8), (36, 6)]])
def test_multiples_do_not_hold_by_chance(layers: list[tuple[int, int]]) -> None:
    net = nn.Sequential(*(Multiples(width, of) for width, of in layers), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))
    x = torch.randn(3, 8)
    space = niwaki.search_space(net, x)
    assert space.num_units == 12 + sum(width for width, of in layers if of in (4, 8)), space.pins
    rng = np.random.default_rng(0)
    for _ in range(8):
        assert niwaki.cut(net, random_plan(space, rng))(x).shape == (3, 2)
