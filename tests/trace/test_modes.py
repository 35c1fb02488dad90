"""A run in train mode is left out only where the one in eval mode tells what it would do."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from networks import Image, Tokens, build, networks
from torch import Tensor, nn
from zoo import ZOO

from niwaki.core.space import SearchSpace
from niwaki.solve.build import Builder
from niwaki.solve.propagate import propagate
from niwaki.trace.tracer import example_calls, trace


class _Block(nn.Module):
    """Norm and dropout of torch's own, and ``more`` that may ask for the mode."""

    def __init__(self, more: Callable[[nn.Module, Tensor], Tensor] = lambda _, x: x) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout2d(0.5, inplace=True)
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.drop(self.norm(self.one(x)).relu())
        return self.two(self.more(self, hidden).mean((2, 3)))


class _Derived(nn.BatchNorm2d):
    """Asks through torch's own code."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 0.0


class _Answering(nn.Linear):
    """Has a way of its own to say in which mode it is."""

    @property
    def training(self) -> bool:
        return bool(self.__dict__.get("mode", True))

    @training.setter
    def training(self, value: bool) -> None:
        self.__dict__["mode"] = value


def _set(net: nn.Module, x: Tensor) -> Tensor:
    net.get_submodule("norm").eval()
    return x


def _copied(net: nn.Module, x: Tensor) -> Tensor:
    return x * 2 if copy.copy(net.get_submodule("two")).training else x


_ASKING: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "the module itself": lambda net, x: x * 2 if net.training else x,
    "through a module of torch": lambda net, x: x * 2 if net.get_submodule("norm").training else x,
    "by its name": lambda net, x: x * 2 if getattr(net.get_submodule("drop"), "training") else x,  # noqa: B009
    "only to hand it on": lambda net, x: nn.functional.dropout(x, 0.1, net.training),
    "of a copy": _copied,
    "it is set": _set,
}


def _runs(model: nn.Module) -> list[tuple[bool, bool]]:
    graph = trace(model, example_calls(torch.randn(2, 3, 8, 8)))
    return [(run.training, run.both) for run in graph.runs]


def test_one_run_does_where_only_norms_and_dropout_ask() -> None:
    assert _runs(_Block()) == [(False, True)]
    net = _Block()
    net.norm = _Derived(8)
    assert _runs(net) == [(False, True)]


@pytest.mark.parametrize("asking", _ASKING)
def test_whoever_else_asks_is_run_in_train_mode_too(asking: str) -> None:
    assert _runs(_Block(_ASKING[asking])) == [(False, False), (True, False)]


def test_modules_that_keep_their_mode_elsewhere_are_run_in_train_mode_too() -> None:
    net = _Block()
    net.two = _Answering(8, 2)
    assert _runs(net) == [(False, False), (True, False)]
    net = _Block()
    net.norm = torch.jit.script(nn.BatchNorm2d(8))  # type: ignore[no-untyped-call]
    assert [training for training, _ in _runs(net)] == [False, True]


def _written_behind_dropout(net: nn.Module, x: Tensor) -> Tensor:
    """In eval mode `kept` is written to as well."""
    kept = x * 2
    dropped = net.get_submodule("drop")(kept)
    dropped.relu_()
    return kept + dropped


def test_what_is_written_behind_a_dropout_is_run_in_train_mode_too() -> None:
    net = _Block(_written_behind_dropout)
    for drop in (nn.Dropout(0.5), nn.Dropout2d(0.5)):
        net.drop = drop
        assert _runs(net) == [(False, False), (True, False)]
    net.more = lambda net, x: net.get_submodule("drop")((x * 2).relu_())  # written before
    assert _runs(net) == [(False, True)]


def test_every_call_is_run_in_train_mode_if_one_asks() -> None:
    """The second of two calls goes through a line that asks."""
    net = _Block(lambda net, x: x * 2 if len(x) == 3 and net.training else x)
    graph = trace(net, [((torch.randn(count, 3, 8, 8),), {}) for count in (2, 3)])
    assert [run.training for run in graph.runs] == [False, False, True, True]


def test_modules_are_as_before_whatever_happens() -> None:
    class Failing(_Block):
        def forward(self, x: Tensor) -> Tensor:
            raise OSError("nothing works here")

    for model in (_Block(), Failing()):
        model.train()
        try:
            _runs(model)
        except Exception:  # noqa: BLE001
            assert isinstance(model, Failing)
        assert "training" not in vars(nn.Module)
        assert model.training and all(vars(module)["training"] for module in model.modules())


class _Along(nn.Module):
    """A norm whose batch dimension could lose entries, but for their mean in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.norm, self.last = nn.Parameter(torch.randn(6, 3)), nn.BatchNorm1d(3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.norm(self.x).T)


def _space(model: nn.Module, inputs: object, every: bool) -> SearchSpace:
    graph = trace(model, example_calls(inputs), every=every)
    return Builder(model, graph, propagate(graph)).space()


def test_what_norms_average_over_in_train_mode_is_kept() -> None:
    assert not _space(_Along(), torch.zeros(1), every=False).groups
    text = [str(pin) for pin in _space(_Along(), torch.zeros(1), every=False).pins]
    assert any("x dim 0" in line and "averages over this dimension" in line for line in text), text


def _same(model: nn.Module, inputs: object) -> bool:
    """Whether one run in eval mode and all runs give the same space; returns whether a run was spared."""
    ours, plain = (_space(model, inputs, every) for every in (False, True))
    assert [(group.name, group.units) for group in ours.groups] == [(group.name, group.units) for group in plain.groups]
    assert {(p.parameter, p.dim, p.count) for p in ours.pins} == {(p.parameter, p.dim, p.count) for p in plain.pins}
    assert ours.coverage == plain.coverage
    assert ours.ties == plain.ties
    assert ours.cost() == plain.cost()
    assert ours.least_cost() == plain.least_cost()
    return trace(model, example_calls(inputs)).runs[0].both


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "timm_swin_tiny"])
def test_the_space_is_that_of_all_runs(name: str) -> None:
    assert _same(ZOO[name].build(), ZOO[name].inputs()) is (name != "timm_swin_tiny")


def test_the_spaces_of_random_networks_are_those_of_all_runs() -> None:
    spared = []

    @settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(networks)
    def run(spec: Image | Tokens) -> None:
        spared.append(_same(*build(spec)))

    run()
    assert sum(spared) > len(spared) / 4, f"{sum(spared)} of {len(spared)}"
