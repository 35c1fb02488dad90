"""Buffers that ``forward`` makes when it needs them: before and after its first pass, at other sizes, saved, loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.errors import PlanError

STORES = ("assign", "register", "setattr", "method", "nested")
MEETS = ("read", "added")


class Positional(nn.Module):
    """A table of positions is made for as many as there are: [1 or more, width]."""

    def __init__(self, store: str, meets: str, persistent: bool = True) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(6, 16), nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
        self.width = 16 if meets == "added" else 3
        self.store, self.meets = store, meets
        self.score = nn.Linear(3, 1)
        self.register_buffer("table", torch.zeros(1, self.width), persistent)

    def made(self, count: int) -> Tensor:
        steps = torch.arange(count, dtype=self.inner.weight.dtype)
        return steps[:, None].sin().repeat(1, self.width)

    def grow(self, count: int) -> None:
        self.table = self.made(count)

    def forward(self, x: Tensor) -> Tensor:
        if self.table.shape[0] != x.shape[1]:
            if self.store == "assign":
                self.table = self.made(x.shape[1])
            elif self.store == "register":
                self.register_buffer("table", self.made(x.shape[1]), "table" not in self._non_persistent_buffers_set)
            elif self.store == "setattr":
                setattr(self, "table", self.made(x.shape[1]))  # noqa: B010
            elif self.store == "method":
                self.grow(x.shape[1])
            else:

                def grow() -> None:
                    self.table = self.made(x.shape[1])

                grow()
        hidden = self.inner(x)
        if self.meets == "added":
            return self.out((hidden + self.table).relu())
        return self.out(hidden.relu()) * self.score(self.table)


def halved(net: nn.Module, x: Tensor) -> niwaki.Plan:
    space = niwaki.search_space(net, x)
    return niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("meets", MEETS)
@pytest.mark.parametrize("store", STORES)
def test_a_cut_runs_at_other_sizes_and_loads(store: str, meets: str, warm: bool, tmp_path: Path) -> None:
    persistent = store in ("assign", "method")
    net, x = Positional(store, meets, persistent).eval(), torch.randn(2, 5, 6)
    if warm:
        net(x)
    space = niwaki.search_space(net, x)
    if warm:  # it is one that is given, and stays as the code would make it
        assert {group.name for group in space.groups} == ({"inner", "out.0"} if meets == "read" else {"out.0"})
    plan = halved(net, x)
    assert niwaki.check(net, plan, x).holds
    small = niwaki.cut(net, plan)
    niwaki.save(small, tmp_path / "before")
    other = small(torch.randn(2, 7, 6))
    assert other.shape == (2, 7, 4)
    niwaki.save(small, tmp_path / "after")
    for name in ("before", "after"):
        again = niwaki.load(Positional(store, meets, persistent).eval(), tmp_path / name)
        torch.testing.assert_close(again(x), small(x))


def test_a_plan_from_before_the_first_pass_fits_after_it_and_the_other_way_round() -> None:
    fresh, used = (Positional("assign", "read").eval() for _ in range(2))
    x = torch.randn(2, 5, 6)
    used.load_state_dict(fresh.state_dict())
    used(x)
    for one, other in ((fresh, used), (used, fresh)):
        plan = halved(one, x)
        torch.testing.assert_close(niwaki.cut(other, plan)(x), niwaki.cut(one, plan)(x))


def test_a_parameter_of_another_shape_is_another_network_still() -> None:
    net, x = Positional("assign", "read").eval(), torch.randn(2, 5, 6)
    plan = halved(net, x)
    net.inner = nn.Linear(6, 17)
    with pytest.raises(PlanError, match="The plan is for another network"):
        niwaki.cut(net, plan)


class Averaging(nn.Module):
    """Keeps an average in a buffer that it replaces in train mode, as norms written by hand do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(6, 16), nn.Linear(16, 4)
        self.register_buffer("mean", torch.zeros(16))

    def reset(self) -> None:
        self.mean = torch.zeros(16)

    def forward(self, x: Tensor) -> Any:
        hidden = self.inner(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        return self.out((hidden - self.mean).relu())


def test_buffers_that_a_run_replaced_before_our_eyes_follow() -> None:
    net, x = Averaging().eval(), torch.randn(3, 6)
    plan = halved(net, x)
    assert niwaki.search_space(net, x).num_units == 16
    small = niwaki.cut(net, plan).train()
    small(x)
    assert small.mean.shape == (8,)


def test_what_only_a_buffer_makes_is_no_unit() -> None:
    """Its code may make it anew from anywhere."""

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(6, 12))
            self.inner, self.out = nn.Linear(12, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.inner((x @ self.table).cos()).relu())

    space = niwaki.search_space(Features(), torch.randn(3, 6))
    assert {group.name for group in space.groups} == {"inner"}
    assert "only buffers make it" in {pin.reason for pin in space.pins if pin.parameter == "inner.weight"}
