"""Latency budgets price units by the time of operators, on devices where MACs mislead."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki import choosing
from niwaki.core.space import SearchSpace
from niwaki.errors import BudgetError
from niwaki.performance import fit as seeking
from niwaki.performance.meters import Limit
from niwaki.performance.operators import Timed, operators
from niwaki.performance.predict import Unpredictable, predicted, priced, reading
from niwaki.report.latency_profile import kept_saliency

LAYER = ("aten.t.default", "aten.addmm.default", "aten.relu.default")


def network(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(i, o), nn.ReLU()) for i, o in pairwise(widths)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Device:
    """Nanoseconds per multiply-accumulate, one rate for each layer, in steps of so many outputs, and per operator."""

    rates: Sequence[float]
    vector: int = 1
    overhead: float = 100.0
    offset: float = 1.0  # what the clock of the whole network makes of the operators' time

    def timed(self, net: nn.Module) -> Timed:
        times: list[float] = []
        for layer, rate in zip(net.children(), self.rates, strict=True):
            linear = next(layer.children())
            assert isinstance(linear, nn.Linear)
            lanes = -(-linear.out_features // self.vector) * self.vector
            times += [self.overhead, self.overhead + rate * linear.in_features * lanes, self.overhead + lanes]
        return LAYER * len(self.rates), tuple(times)

    def microseconds(self, net: nn.Module) -> float:
        return sum(self.timed(net)[1]) / 1e3

    def meter(self, space: SearchSpace, limit: float | int, **how: object) -> Limit:
        def read(small: nn.Module) -> tuple[float, float]:
            now, dense = self.microseconds(small), self.microseconds(space.model)
            return dense - (dense - now) * self.offset, dense

        timed = lambda small: (self.timed(small), self.timed(space.model))  # noqa: E731
        return replace(Limit(limit, 0.05, "microseconds", read, timed), **how)


def on(device: Device, patch: pytest.MonkeyPatch, **how: object) -> None:
    patch.setattr(
        choosing,
        "meters",
        lambda space, limits, _: {measure: device.meter(space, limit, **how) for measure, limit in limits.items()},
    )


WIDTHS = (16, 64, 96, 96, 64, 8)
SLOW_AND_SMALL = Device((40.0, 0.5, 0.5, 0.5, 0.5))  # the first layer has 5 % of the MACs and most of the time


def test_a_latency_budget_is_faster_than_the_macs_budget_at_no_less_saliency(monkeypatch: pytest.MonkeyPatch) -> None:
    net, device = network(*WIDTHS), SLOW_AND_SMALL
    space = niwaki.search_space(net, torch.randn(2, 16))
    scores = niwaki.score(space, "magnitude")
    by_macs = niwaki.choose(space, scores, niwaki.Budget(macs=0.5))
    dense, then = device.microseconds(net), device.microseconds(niwaki.cut(net, by_macs))
    on(device, monkeypatch)
    plan = niwaki.choose(space, scores, niwaki.Budget(latency=0.8 * then / dense), example_inputs=0)
    assert device.microseconds(niwaki.cut(net, plan)) <= 0.8 * then
    assert kept_saliency(space, scores, plan) > kept_saliency(space, scores, by_macs)
    first = space.groups[0].name
    assert len(plan.kept[first]) < 0.6 * len(by_macs.kept[first])  # the slow units leave, the fast ones stay
    assert space.cost(plan).macs > space.cost(by_macs).macs
    assert str(plan.provenance["priced"]).startswith("Units were priced by the time that operators take, in ")
    monkeypatch.setattr(seeking, "_by_operators", _unpredictable)  # priced by MACs, the same budget keeps less
    told = niwaki.choose(space, scores, niwaki.Budget(latency=0.8 * then / dense), example_inputs=0)
    assert kept_saliency(space, scores, told) < 0.9 * kept_saliency(space, scores, plan)


def _unpredictable(*_: object) -> None:
    raise Unpredictable("this is a test")


def test_the_log_tells_of_each_network_that_is_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    net = network(*WIDTHS)
    space = niwaki.search_space(net, torch.randn(2, 16))
    on(SLOW_AND_SMALL, monkeypatch)
    with caplog.at_level(logging.INFO, "niwaki"):
        plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(latency=0.5), example_inputs=0)
    told = plan.provenance["measured"]["latency"]
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) >= 2 and all(text.startswith("A network was cut and measured: ") for text in texts)
    assert any(f"{told['kept'] / told['dense']:.1%} of the latency, " in text for text in texts)


@pytest.mark.parametrize("limit", [0.35, 0.9, 40])
@pytest.mark.parametrize("offset", [1.0, 0.7, 1.6])
def test_budgets_are_met_from_below_within_five_percent(
    limit: float, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the network as a whole saves more or less than its operators, or lanes stay empty."""
    device = replace(SLOW_AND_SMALL, offset=offset, vector=2)
    net = network(*WIDTHS)
    space = niwaki.search_space(net, torch.randn(2, 16))
    on(device, monkeypatch)
    budget = niwaki.Budget(latency=limit, macs=0.98)
    plans = [niwaki.choose(space, niwaki.score(space, "magnitude"), budget, example_inputs=0) for _ in range(2)]
    told = plans[0].provenance["measured"]["latency"]
    allowed = limit if isinstance(limit, int) else limit * told["dense"]
    assert 0.95 * allowed <= told["kept"] <= allowed
    assert told == {**told, "kept": device.meter(space, limit).read(niwaki.cut(net, plans[0]))[0]}
    assert "by the time that operators take" in plans[0].provenance["priced"]
    assert space.cost(plans[0]).macs <= 0.98 * space.cost().macs
    assert plans[0].to_json() == plans[1].to_json()  # the same readings, the same plan


def test_predictions_are_those_of_the_device() -> None:
    """From one cut network, for other ones, where the time is what the model says it is."""
    net = network(*WIDTHS)
    space = niwaki.search_space(net, torch.randn(2, 16))
    device = replace(SLOW_AND_SMALL, overhead=2000.0)
    rng = np.random.default_rng(0)
    masks = [rng.uniform(size=space.num_units) < share for share in (0.5, 0.3, 0.7, 0.9)]

    def share(keep: np.ndarray) -> float:  # type: ignore[type-arg]
        return device.microseconds(niwaki.cut(net, space.plan(keep))) / device.microseconds(net)

    first = reading(space, masks[0], device.timed(niwaki.cut(net, space.plan(masks[0]))), device.timed(net))
    model = priced(space, [first])
    for keep in masks:
        assert predicted(model, keep) == pytest.approx(share(keep), abs=0.02)
    naive = priced(space, [reading(space, np.ones_like(masks[0]), device.timed(net), device.timed(net))])
    assert predicted(naive, masks[1]) < share(masks[1]) - 0.1  # an uncut network does not tell what is overhead


def test_what_is_alike_in_time_leaves_by_saliency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where time goes with the MACs, so do prices."""
    net = network(*WIDTHS)
    space = niwaki.search_space(net, torch.randn(2, 16))
    on(Device((1.0,) * 5, overhead=0.0), monkeypatch)
    scores = niwaki.score(space, "magnitude")
    plan = niwaki.choose(space, scores, niwaki.Budget(latency=0.5), example_inputs=0)
    by_macs = niwaki.choose(space, scores, niwaki.Budget(macs=space.cost(plan).macs))
    for name, kept in plan.kept.items():
        assert abs(len(kept) - len(by_macs.kept[name])) <= 3


def other_operators(_: nn.Module) -> tuple[Timed, Timed]:
    return (LAYER[:2], (1.0, 2.0)), (LAYER[:2], (1.0, 2.0))


def renamed(space: SearchSpace, small: nn.Module) -> tuple[Timed, Timed]:
    names, times = SLOW_AND_SMALL.timed(small)
    swapped = tuple({LAYER[1]: LAYER[2], LAYER[2]: LAYER[1]}.get(name, name) for name in names)
    return (swapped, times), (swapped, times)


def failing(_: nn.Module) -> tuple[Timed, Timed]:
    raise RuntimeError("no such kernel")


def stopped(space: SearchSpace, small: nn.Module) -> tuple[Timed, Timed]:
    names, times = SLOW_AND_SMALL.timed(space.model)
    return (names, times), (names, times)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (other_operators, "1 operators ran where the search space was made from 10"),
        (renamed, "10 operators ran where .* from 10, aten.relu.default in the place of aten.addmm.default"),
        (failing, "RuntimeError: no such kernel"),
        (stopped, "[0-9]{7,}.* times as much is saved as they predict"),
    ],
)
def test_where_operators_tell_nothing_macs_do(how: object, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(*WIDTHS)
    space = niwaki.search_space(net, torch.randn(2, 16))
    timed = partial(how, space) if how in (renamed, stopped) else how  # type: ignore[arg-type]
    on(SLOW_AND_SMALL, monkeypatch, timed=timed)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(latency=0.8), example_inputs=0)
    told = plan.provenance["measured"]["latency"]
    assert 0.76 * told["dense"] <= told["kept"] <= 0.8 * told["dense"]
    start = "Units were priced by their MACs, since the times of operators do not predict the latency here: "
    assert re.match(start + why, plan.provenance["priced"]), plan.provenance["priced"]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_budget_below_the_least_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(*WIDTHS)
    space = niwaki.search_space(net, torch.randn(2, 16))
    on(replace(SLOW_AND_SMALL, overhead=5000.0), monkeypatch)
    with pytest.raises(
        BudgetError, match=r"latency <= 13 microseconds .* cannot be met: with every group at its least"
    ):
        niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(latency=0.1), example_inputs=0)


class Varied(nn.Module):
    """Contractions, norms, additions, views, a mean, a product in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).relu_()
        z: Tensor = self.last((y + self.second(y)).flatten(2).mean(-1))
        return z


def test_the_operators_of_a_space_are_those_that_run() -> None:
    net, x = Varied().eval(), torch.randn(2, 3, 6, 6)
    space = niwaki.search_space(net, x)
    work = space.cost_model.work
    assert work is not None
    names, amounts = work.names, work.amounts(space.cost_model.counts(np.ones(space.num_units)))
    told = {name.split(".")[1]: amount for name, amount in zip(names, amounts, strict=True)}
    assert told["native_batch_norm"] == told["relu_"] == told["add"] == told["mean"] == 2 * 8 * 36
    macs = [amount for name, amount in zip(names, amounts, strict=True) if "conv" in name or "addmm" in name]
    assert sum(macs) == space.cost().macs and len(macs) == 3
    half = np.arange(space.num_units) % 2 == 0
    small = niwaki.cut(net, space.plan(half))
    with torch.no_grad():
        timed = operators([partial(small, x), partial(net, x)], torch.device("cpu"), 0.0, 2)
    one = reading(space, half, *timed)
    assert one.left.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.25, 0.5, 0.5, 0.5])
    assert (one.nanoseconds > 0).all() and one.rest > 0


def test_a_measure_that_operators_do_not_tell_can_be_the_tightest(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(*WIDTHS)
    space = niwaki.search_space(net, torch.randn(2, 16))

    def size(small: nn.Module) -> tuple[float, float]:
        return tuple(float(sum(p.numel() for p in one.parameters())) for one in (small, net))  # type: ignore[return-value]

    both = {"latency": SLOW_AND_SMALL.meter(space, 0.9), "activations": Limit(0.5, 0.05, "bytes", size)}
    monkeypatch.setattr(choosing, "meters", lambda *_: both)
    budget = niwaki.Budget(latency=0.9, activations=0.5)
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), budget, example_inputs=0)
    told = plan.provenance["measured"]
    assert told["latency"]["kept"] <= 0.9 * told["latency"]["dense"]
    assert 0.475 * told["activations"]["dense"] <= told["activations"]["kept"] <= 0.5 * told["activations"]["dense"]


def test_operators_wait_for_their_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several, not for whichever is the current one."""
    waited: list[object] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    net, x = network(4, 4), torch.zeros(1, 4)
    with torch.no_grad():
        operators([lambda: net(x)], torch.device("cuda", 1), 0.0, 1)
    assert waited == [torch.device("cuda", 1)] * 6  # before and after each of three
