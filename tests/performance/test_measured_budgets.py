"""Budgets that are measured on cut networks, equal widths across layers, and what is said of steps that are coarse."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from handmade import MLP, ConvNet, conv_space, mlp_space
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import niwaki
from niwaki.choosing import choose
from niwaki.core.space import BoolArray, SearchSpace, Tie
from niwaki.criteria import Scores, score
from niwaki.errors import BudgetError, UnknownName
from niwaki.methods import DHSPG, HESSO, Schedule
from niwaki.performance import meters as measuring
from niwaki.performance.fit import fit_latency
from niwaki.report import peak_activations
from niwaki.selection import select, uniform
from niwaki.selection.budget import Budget


class Simulated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A clock that operators drive: no test of latency may depend on how busy the machine is."""

    seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        layer = {torch.ops.aten.linear.default: 0, torch.ops.aten.addmm.default: 1}.get(func)
        inner = 0 if layer is None else args[layer].shape[1]
        self.seconds += 1e-6 + 1e-9 * inner * (result.numel() if inner else 0)
        return result


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    clock = Simulated()  # type: ignore[no-untyped-call]
    monkeypatch.setattr("niwaki.performance.measure._CLOCKS", {"wall": lambda: clock.seconds})
    monkeypatch.setattr("niwaki.performance.operators._now", lambda: clock.seconds * 1e9)
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)
    with clock:
        yield


def even(space: SearchSpace) -> Scores:
    return Scores(1 + np.random.default_rng(0).uniform(size=space.num_units), "even")


def sizes(space: SearchSpace, keep: BoolArray) -> list[int]:
    return [int(keep[group.numbers].sum()) for group in space.groups]


def test_peak_of_a_chain_a_branch_and_a_view() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a = x * 2  # 400 bytes
            b = a + 1  # 800 alive
            del a
            c = b.view(10, 10).relu()  # b and c
            return (c + b.view(10, 10)).sum(0)  # b, c, their sum and its sums: 1240 alive

    net, x = Net(), torch.zeros(100)
    net.train()
    assert peak_activations(net, lambda: net(x), [x]) == 1240
    assert net.training
    inplace = nn.Sequential(nn.Linear(100, 50), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(50, 1))
    batch = torch.zeros(4, 100)
    assert peak_activations(inplace, lambda: inplace(batch), [batch]) == 4 * (4 * 50 + 4)


def test_the_mode_is_restored_after_an_error() -> None:
    net = nn.Linear(2, 2).train()
    with pytest.raises(RuntimeError):
        peak_activations(net, lambda: net(torch.zeros(3)), [])
    assert net.training


@pytest.mark.parametrize("limit", [0.3, 0.6, 40_000])
def test_activation_memory_is_met_from_below(limit: float) -> None:
    torch.manual_seed(0)
    model, x = ConvNet(16, 24), torch.randn(4, 1, 8, 8)
    space = niwaki.search_space(model, x)
    plan = choose(space, even(space), Budget(activations=limit), example_inputs=x)
    small = niwaki.cut(model, plan).eval()
    kept, dense = (peak_activations(net, lambda net=net: net(x), [x]) for net in (small, model))
    allowed = limit if limit > 1 else limit * dense
    assert kept <= allowed
    assert plan.provenance["measured"] == {"activations": {"kept": kept, "dense": dense}}
    assert plan.provenance["budget"]["activations"] == limit
    more = choose(
        space, even(space), Budget(macs=(space.cost(plan).macs + 0.06 * space.cost().macs) / space.cost().macs)
    )
    bigger = niwaki.cut(model, more).eval()
    assert kept >= 0.99 * allowed or peak_activations(bigger, lambda: bigger(x), [x]) > allowed


def test_activations_together_with_other_limits() -> None:
    model, x = ConvNet(16, 24), torch.randn(4, 1, 8, 8)
    space = niwaki.search_space(model, x)
    plan = choose(space, even(space), Budget(activations=0.9, macs=0.4, params=0.5, round_to=4), example_inputs=x)
    cost = space.cost(plan)
    assert cost.macs <= 0.4 * space.cost().macs and cost.params <= 0.5 * space.cost().params
    assert all(
        kept % 4 == 0 or kept == g.units for g, kept in zip(space.groups, map(len, plan.kept.values()), strict=True)
    )
    assert (
        plan.provenance["measured"]["activations"]["kept"] <= 0.9 * plan.provenance["measured"]["activations"]["dense"]
    )


def test_latency_within_five_percent_by_any_clock() -> None:
    """Measured by a clock that knows the network's parameters; a shared limit in microseconds or as a share."""
    space = mlp_space(MLP(32, 96, 80))

    def read(small: nn.Module) -> tuple[float, float]:
        count = [sum(parameter.numel() for parameter in net.parameters()) for net in (small, space.model)]
        return 10.0 + count[0] / 100, 10.0 + count[1] / 100

    dense = read(space.model)[1]
    for limit in (0.5, 0.8, round(0.6 * dense)):
        for limits in ({}, {"units": 0.9 * space.num_units}):
            meter = measuring.Limit(limit, 0.05, "microseconds", read)

            def selected(under: Mapping[str, float], space: SearchSpace) -> BoolArray:
                return select(space, even(space).values, under) if under else np.ones(space.num_units, dtype=bool)

            found, how = fit_latency(space, {"latency": meter}, selected(limits, space), limits, selected)
            allowed = limit if isinstance(limit, int) else limit * dense
            assert 0.95 * allowed <= found.told["latency"]["kept"] <= allowed
            assert found.told["latency"]["dense"] == dense
            assert found.told["latency"]["kept"] == read(niwaki.cut(space.model, space.plan(found.keep)))[0]
            assert how == "Units were priced by their MACs, since no operators are timed."


def test_nothing_is_cut_where_everything_fits() -> None:
    model, x = MLP(), torch.randn(2, 6)
    space = mlp_space(model)
    plan = choose(space, even(space), Budget(activations=1.0, latency=10**9), example_inputs=x)
    assert not plan.tensors and set(plan.provenance["measured"]) == {"activations", "latency"}


def test_the_model_is_left_as_it_was() -> None:
    class Counting(MLP):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls, self.last = self.calls + 1, torch.rand(1)
            return super().forward(x)

    model, x = Counting(16, 40, 30).train(), torch.randn(2, 16)
    before, state = dict(model.__dict__), torch.get_rng_state()
    space = mlp_space(model)
    choose(space, even(space), Budget(activations=0.5), example_inputs=x)
    assert (
        model.__dict__ == before and model.calls == 0 and model.training and torch.equal(torch.get_rng_state(), state)
    )


@pytest.mark.parametrize(
    ("traced", "priced"),
    [
        (True, "Units were priced by the time that operators take"),
        (False, "Units were priced by their MACs"),
    ],
    ids=["operators", "macs"],
)
def test_networks_are_cut_run_and_timed(traced: bool, priced: str, simulated: None) -> None:
    """By a device that takes a nanosecond for a multiply-accumulate, and a microsecond for every operator."""
    model, x = MLP(64, 96, 80), torch.randn(4, 64)
    space = niwaki.search_space(model, x) if traced else mlp_space(model)
    assert (space.cost_model.work is not None) is traced
    plan = choose(space, even(space), Budget(latency=0.6), example_inputs=x)
    told = plan.provenance["measured"]["latency"]
    assert told["dense"] == pytest.approx(5 + 4 * (64 * 96 + 96 * 80 + 80 * 3) / 1000)  # three layers, two activations
    assert 0.95 * 0.6 * told["dense"] <= told["kept"] <= 0.6 * told["dense"]
    assert plan.provenance["priced"].startswith(priced)
    niwaki.Plan.from_json(plan.to_json())


def test_what_cannot_be_measured_or_met_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = MLP(), torch.randn(2, 6)
    space = mlp_space(model)
    with pytest.raises(BudgetError, match="To measure latency, niwaki must run the network: pass example inputs"):
        choose(space, even(space), Budget(latency=0.5))
    with pytest.raises(
        BudgetError, match=r"activations <= 33 bytes \(.* of .*\) cannot be met: with every group at its le"
    ):
        choose(space, even(space), Budget(activations=33), example_inputs=torch.randn(20, 6))
    program = niwaki.search_space(model, x, as_graph=True)
    with pytest.raises(BudgetError, match="cannot be measured for the space of an exported program"):
        choose(program, even(program), Budget(latency=0.5), example_inputs=x)
    with torch.device("meta"):
        empty = MLP()
    ghost = niwaki.search_space(empty, x)
    with pytest.raises(BudgetError, match="on the meta device, where it has no activations and latency to measure"):
        choose(ghost, even(ghost), Budget(latency=0.5, activations=0.5), example_inputs=x)
    for method in (HESSO, DHSPG):
        with pytest.raises(BudgetError, match=r"latency is measured on networks that are cut, .*Budget\(latency=0.5\)"):
            method(space, torch.optim.SGD(model.parameters(), lr=0.1), Budget(latency=0.5), Schedule(1, 20))
    with pytest.raises(BudgetError, match="compare='layers' must be one of 'group', 'layer', 'isomorphic', 'space'"):
        choose(space, even(space), Budget(macs=0.5), compare="layers")  # type: ignore[arg-type]


def test_least_sizes_name_their_steps() -> None:
    space = conv_space(ConvNet(16, 24))
    with pytest.raises(
        BudgetError, match=r"at its least size \(widths in multiples of 8, at least 9 units per group\) .* remain"
    ):
        choose(space, even(space), Budget(macs=0.05, round_to=8, min_units=9))


def test_coarse_steps_are_told() -> None:
    space = conv_space(ConvNet(16, 24))
    plan = choose(space, even(space), Budget(macs=0.5, round_to=8))
    macs, limit = space.cost(plan).macs, space.cost().macs // 2
    assert macs < 0.99 * limit
    told = plan.provenance["tight"]
    assert told.startswith(
        f"macs is {macs:,}, {1 - macs / limit:.1%} under its limit of {limit:,}. The finest possible step"
    )
    assert "8 more of the units of" in told
    fine = choose(mlp_space(MLP(16, 400, 300)), even(mlp_space(MLP(16, 400, 300))), Budget(macs=0.5))
    assert "tight" not in fine.provenance


class Blocks(nn.Module):
    """Three equal blocks on one stream."""

    def __init__(self, widths: tuple[int, ...] = (20, 20, 20)) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, w), nn.ReLU(), nn.Linear(w, 6)) for w in widths)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


def test_uniform_widths() -> None:
    model, x = Blocks((20, 20, 20, 8)), torch.randn(2, 4)
    free, space = (niwaki.search_space(model, x, layout=layout) for layout in ("free", "uniform"))
    values = even(free).values
    hidden = [number for number, group in enumerate(free.groups) if group.units == 20]
    values[free.groups[hidden[0]].numbers][:15] *= 1e-3  # most of the first block's units are worth little
    assert len({sizes(free, free.keep_of(choose(free, Scores(values, ""), Budget(macs=0.6))))[h] for h in hidden}) > 1
    for budget in (Budget(macs=0.6), Budget(params=0.3), Budget(macs=0.5, round_to=4)):
        keep = space.keep_of(choose(space, Scores(values, ""), budget))
        kept = sizes(space, keep)
        assert len({kept[h] for h in hidden}) == 1 and kept[hidden[0]] < 20
        different = {tuple(np.flatnonzero(keep[space.groups[h].numbers])) for h in hidden}
        assert len(different) == 3  # equally many, each its own
    with pytest.raises(UnknownName, match="no layout 'even'. Choose 'free' or 'uniform' widths"):
        niwaki.search_space(model, x, layout="even")  # type: ignore[call-overload]


def test_methods_keep_widths_uniform() -> None:
    model, x = Blocks(), torch.randn(8, 4)
    space = niwaki.search_space(model, x, layout="uniform")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = HESSO(space, optimizer, Budget(units=0.5), Schedule(1, 12, periods=3))
    for _ in range(12):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    small = niwaki.cut(model, method.plan())
    assert len({block[0].out_features for block in small.blocks}) == 1 < small.blocks[0][0].out_features < 20


class OwnNorm(nn.BatchNorm2d):
    """A layer that is not torch's, as networks often have for all their norms."""


class Attention(nn.Module):
    """No two are isomorphic if one holds a table."""

    def __init__(self, table: bool) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 8), nn.Linear(8, 6)
        self.table = nn.Parameter(torch.randn(8)) if table else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.into(x) if self.table is None else self.into(x) + self.table
        y: Tensor = self.out(hidden.relu())
        return y


def test_modules_that_layers_are_in_tell_what_is_alike_and_not_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.norm = nn.Conv2d(3, 8, 1), OwnNorm(8)
            self.one, self.inside, self.two = nn.Conv2d(8, 8, 1), OwnNorm(8), nn.Conv2d(8, 8, 1)
            self.last, self.blocks = nn.Linear(8, 6), nn.Sequential(Attention(True), Attention(False))

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.into(x))
            x = x + self.two(self.inside(self.one(x)).relu())
            y: Tensor = self.blocks(self.last(x.mean((2, 3))))
            return y

    space = niwaki.search_space(Net(), torch.randn(2, 3, 4, 4), layout="uniform")
    assert {group.name: group.units for group in space.groups}.items() >= {"into": 8, "one": 8}.items()
    tied = [{space.groups[group].name for group in tie.groups} for tie in space.ties]
    assert tied == [{"last", "blocks.0.out"}, {"blocks.0.table", "blocks.1.into"}]


def test_ties_of_a_model_hold_on_under_uniform_widths() -> None:
    free = niwaki.search_space(Blocks(), torch.randn(2, 4))
    hidden = [number for number, group in enumerate(free.groups) if group.units == 20]
    stream = next(number for number in range(len(free.groups)) if number not in hidden)
    first, second, third = hidden

    def made(*ties: Tie) -> SearchSpace:
        return uniform(dataclasses.replace(free, ties=ties))

    (tie,) = made(Tie((first, stream), (3, 1), 5)).ties  # three hidden ones with one of the stream
    assert dict(zip(tie.groups, tie.steps, strict=True)) == {first: 3, stream: 1, second: 3, third: 3} and tie.most == 5
    (tie,) = made(Tie((first,), (2,), 9), Tie((second,), (3,), 6)).ties
    assert dict(zip(tie.groups, tie.steps, strict=True)) == {first: 6, second: 6, third: 6} and tie.most == 3
    (tie,) = made(Tie((first, second), (1, 2), 9)).ties  # cannot be equally many, unless none leaves
    assert tie.most == 0
    space = made(Tie((first,), (2,), 9), Tie((stream,), (2,), 2))
    assert {frozenset(tie.groups): tie.most for tie in space.ties} == {frozenset(hidden): 9, frozenset({stream}): 2}
    keep = select(space, even(space).values, {"macs": 0.6 * space.cost().macs})
    kept = sizes(space, keep)
    assert kept[first] == kept[second] == kept[third] and kept[first] % 2 == kept[stream] % 2 == 0


def test_isomorphic_groups_compete() -> None:
    """Scaled as a whole a class is what it was; scaled alone, a group of it gives way to its sisters."""
    space = niwaki.search_space(Blocks(), torch.randn(2, 4))
    hidden = [group for group in space.groups if group.units == 20]
    values = 1 + 0.1 * even(space).values
    whole, alone = values.copy(), values.copy()
    for group in hidden:
        whole[group.numbers] *= 50
    alone[hidden[0].numbers] *= 0.1
    budget = Budget(macs=0.6)
    plans = [choose(space, Scores(v, ""), budget, compare="isomorphic") for v in (values, whole, alone)]
    assert plans[0].kept == plans[1].kept
    kept = [[len(plan.kept[group.name]) for group in hidden] for plan in plans]
    assert min(kept[0]) >= 8 and kept[2][0] <= 4 and min(kept[2][1:]) >= 15
    assert all(space.cost(plan).macs <= 0.6 * space.cost().macs for plan in plans)
    by_group = [choose(space, Scores(v, ""), budget) for v in (values, alone)]
    assert by_group[0].kept == by_group[1].kept


def test_scores_of_the_space_choose_for_a_measured_budget() -> None:
    model, x = ConvNet(16, 24), torch.randn(2, 1, 8, 8)
    space = niwaki.search_space(model, x)
    plan = niwaki.choose(space, score(space, "magnitude"), Budget(activations=0.5), compare="space", example_inputs=x)
    assert niwaki.cut(model, plan)(x).shape == (2, 10)
