"""A compiled network is looked at as the Python code that it was compiled from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import niwaki


class Compiler:
    """A backend that counts what it is asked to compile."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        self.graphs += 1
        return graph.forward


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Flatten(), nn.Linear(8 * 36, 4))


def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def in_place(model: nn.Module, compiler: Compiler) -> nn.Module:
    model.compile(backend=compiler)
    return model


def wrapped(model: nn.Module, compiler: Compiler) -> nn.Module:
    return torch.compile(model, backend=compiler)  # type: ignore[return-value]


def inside(model: nn.Module, compiler: Compiler) -> nn.Module:
    assert isinstance(model, nn.Sequential)
    model[2] = wrapped(model[2], compiler)
    return model


@pytest.fixture(params=[in_place, wrapped, inside])
def compiled(request: pytest.FixtureRequest) -> tuple[nn.Module, Compiler]:
    compile_: Callable[[nn.Module, Compiler], nn.Module] = request.param
    compiler = Compiler()
    return compile_(network(), compiler), compiler


def magnitudes(model: nn.Module) -> tuple[niwaki.SearchSpace, niwaki.Plan]:
    space = niwaki.search_space(model, images())
    return space, niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5))


def test_the_analysis_is_that_of_the_plain_network(compiled: tuple[nn.Module, Compiler]) -> None:
    model, compiler = compiled
    space, plan = magnitudes(model)
    plain, _ = magnitudes(network())
    assert [group.units for group in space.groups] == [group.units for group in plain.groups] == [8]
    assert space.cost() == plain.cost()
    assert niwaki.check(model, plan, images()).holds
    assert compiler.graphs == 0


def test_the_cut_network_runs_compiled_too(compiled: tuple[nn.Module, Compiler]) -> None:
    model, _ = compiled
    model.eval()
    small, other = (niwaki.cut(net, magnitudes(net)[1]) for net in (model, network().eval()))
    torch.testing.assert_close(small(images()), other(images()))
    small.train(), other.train()
    torch.testing.assert_close(small(images()), other(images()))


def test_what_listens_to_modules_and_operators_hears_them(compiled: tuple[nn.Module, Compiler]) -> None:
    """A compiled network passes over hooks that came later."""
    model, compiler = compiled
    model(images())  # compiled from now on, for train mode
    model.eval()(images())
    before, plain = compiler.graphs, network().train()
    plain(images())
    plain.eval()
    (space, plan), (other, same) = magnitudes(model), magnitudes(plain)
    batches = [images()]
    fitted, expected = niwaki.compensate(space, plan, batches), niwaki.compensate(other, same, batches)
    assert [fit.after for fit in fitted.layers.values()] == [fit.after for fit in expected.layers.values()]
    assert len(niwaki.reestimate_norms(model, batches)) == 1
    assert compiler.graphs == before


@pytest.mark.parametrize("criterion", ["activation", "energy"])
def test_activations_are_seen(compiled: tuple[nn.Module, Compiler], criterion: str) -> None:
    model, compiler = compiled
    space, _ = magnitudes(model)
    other, _ = magnitudes(network())

    def loss(net: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = net(batch).square().mean()
        return result

    ours, theirs = (niwaki.score(net, criterion, [images()], loss).values for net in (space, other))
    assert (ours == theirs).all()
    assert compiler.graphs == 0
