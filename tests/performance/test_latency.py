"""Latency: who runs when, what counts, what is told, and that the networks come out as they went in."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.errors import MethodError, TraceError
from niwaki.performance.measure import evaluating, interleaved
from niwaki.report import Latencies, Latency

CPU = torch.device("cpu")


class Clock:
    """Stands still but for what the networks spend."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Spending(nn.Module):
    """Takes the seconds that it is told to, one pass after the other; the last one again and again."""

    def __init__(self, clock: Clock, seconds: list[float], log: list[str], name: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.spend: Callable[[], None] = self._spend
        self.facts: dict[str, Any] = {}
        self.clock, self.seconds, self.log, self.name = clock, seconds, log, name

    def _spend(self) -> None:
        self.clock.now += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.log.append(self.name)
        self.spend()
        result: Tensor = self.norm(x)
        return result


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("niwaki.performance.measure._CLOCKS", {"wall": made, "cpu": made})
    return made


def test_networks_take_turns_after_a_warm_up(clock: Clock) -> None:
    log: list[str] = []

    def run(name: str, seconds: float) -> Callable[[], None]:
        def once() -> None:
            log.append(name)
            clock.now += seconds

        return once

    times = interleaved({"a": run("a", 1e-3), "b": run("b", 2e-3)}, CPU, 0, 3)
    assert "".join(log) == "aaabbb" + "ab" + "ba" + "ab"
    assert times["a"] == pytest.approx([1000] * 3) and times["b"] == pytest.approx([2000] * 3)


def test_medians_quartiles_and_ratios_round_by_round(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second network always takes half of what the first takes beside it, though the machine slows down tenfold."""
    monkeypatch.setattr("niwaki.performance.measure.preserved", lambda *_: nullcontext())
    log: list[str] = []
    slow = [1e-3 * 10 ** (round / 8) for round in range(9)]
    dense = Spending(clock, [9.0] * 4 + slow, log, "dense")
    small = Spending(clock, [9.0] * 4 + [one / 2 for one in slow], log, "small")
    found = niwaki.latency({"dense": dense, "small": small}, torch.zeros(4, 2), seconds=0, rounds=9)
    assert isinstance(found, Latencies)
    one, ratio = found.networks["dense"], found.ratios["small"]
    assert one.median_us == pytest.approx(1e6 * slow[4]) and one.rounds == 9
    assert one.lower_us < one.median_us < one.upper_us
    assert ratio.median == pytest.approx(0.5) and ratio.upper - ratio.lower < 1e-9
    assert "small" in str(found) and "0.500 (0.500 to 0.500) of dense" in str(found)


def test_what_is_printed_explains_itself(clock: Clock) -> None:
    net = Spending(clock, [1.5e-3], [], "net").double()
    found = niwaki.latency(net, torch.zeros(4, 2, dtype=torch.float64), seconds=0, rounds=8, threads=1)
    assert str(found) == (
        "1,500 microseconds per forward pass (half of 8 rounds: 1,500 to 1,500), inputs 4x2, float64, cpu, 1 thread, "
        "eval mode"
    )
    assert "computing time instead of wall time" in str(
        niwaki.latency(net, {"x": torch.zeros(4, 2, dtype=torch.float64)}, seconds=0, clock="cpu")
    )


def test_networks_are_left_as_they_were(clock: Clock) -> None:
    net = Spending(clock, [1e-3], [], "net").train()
    net.norm.eval()
    net.weight = nn.Parameter(torch.ones(1))
    state, threads = torch.get_rng_state(), torch.get_num_threads()

    def spend() -> None:
        net.facts["called"], net.weight.grad = torch.rand(1), torch.ones(1)

    net.spend = spend
    niwaki.latency(net, torch.zeros(4, 2), seconds=0, threads=2)
    assert net.training and not net.norm.training and not net.facts and net.weight.grad is None
    assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == threads
    net.spend = lambda: (_ for _ in ()).throw(RuntimeError("no"))
    with pytest.raises(TraceError, match="'model' does not run on these inputs: RuntimeError: no. Pass inputs that"):
        niwaki.latency(net, torch.zeros(4, 2), threads=2)
    assert net.training and not net.norm.training and torch.get_num_threads() == threads


def test_modes_come_back_one_by_one() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    net[1].eval()
    with pytest.raises(RuntimeError), evaluating([net]):
        assert not net.training and torch.is_inference_mode_enabled()
        net(torch.zeros(3))
    assert net.training and not net[1].training and not torch.is_inference_mode_enabled()


def test_accelerators_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: log.append(str(device)))
    interleaved({"a": lambda: log.append("a")}, torch.device("cuda:1"), 0, 2)
    assert log == ["a"] * 3 + ["cuda:1", "a", "cuda:1"] * 2


def test_programs_and_clocks_that_run() -> None:
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(2, 8)
    program = torch.export.export(net, (x,))
    begin = time.perf_counter()
    found = niwaki.latency({"net": net, "program": program}, x, seconds=0.2)
    assert time.perf_counter() - begin > 0.2
    assert found.networks["net"].rounds == found.networks["program"].rounds >= 15
    assert all(one.median_us > 0 for one in found.networks.values())
    single = niwaki.latency(program, x, seconds=0, clock="cpu")
    assert isinstance(single, Latency) and single.rounds == 15 and single.shapes == ((2, 8),)


def test_what_cannot_be_measured_is_told() -> None:
    net, x = nn.Linear(2, 2), torch.zeros(1, 2)
    with pytest.raises(MethodError, match="There is no network to measure: give one, or several by name"):
        niwaki.latency({}, x)
    with pytest.raises(MethodError, match="'a' is a function, which cannot be measured: give a torch.nn.Module"):
        niwaki.latency({"a": lambda x: x}, x)  # type: ignore[dict-item]
    with pytest.raises(TraceError, match="'model' is on the meta device, where it has no latency"):
        niwaki.latency(net.to("meta"), x)
    net = nn.Linear(2, 2)
    with pytest.raises(MethodError, match="rounds=1 must be a whole number, 2 or more"):
        niwaki.latency(net, x, rounds=1)
    with pytest.raises(MethodError, match="threads=0 must be a whole number, 1 or more, or None"):
        niwaki.latency(net, x, threads=0)
    with pytest.raises(MethodError, match="clock='moon' must be 'wall' or 'cpu'"):
        niwaki.latency(net, x, clock="moon")  # type: ignore[call-overload]


def test_inputs_that_a_network_writes_to_are_left_as_they_were() -> None:
    class Adding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1)

    x = torch.zeros(3)
    niwaki.latency(Adding(), x, seconds=0, rounds=2)
    assert not x.any()


class Forces(nn.Module):
    """Its output is a gradient, which inference mode cannot give."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return -torch.autograd.grad(self.energy(x).sum(), x)[0]


def test_networks_that_differentiate_are_measured_without_inference_mode() -> None:
    net, x = Forces(), torch.randn(3, 4)
    found = niwaki.latency({"net": net, "plain": nn.Linear(4, 4)}, x, seconds=0, rounds=2)
    assert list(found.networks) == ["net", "plain"] and all(p.grad is None for p in net.parameters())
    with pytest.raises(TraceError, match="'net' does not run on these inputs: RuntimeError: mat1 and mat2"):
        niwaki.latency({"net": net}, torch.randn(3, 5), seconds=0, rounds=2)
