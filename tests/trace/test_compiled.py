"""A compiled network is looked at as the Python code that it was compiled from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import niwaki
from niwaki.core.names import plain_name
from niwaki.core.plan import TensorShape, structure_hash


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> Iterator[None]:
    """torch compiles the code of a class, such as `nn.Sequential`, a few times in a process and then gives up on it."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


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


def everything_named(space: niwaki.SearchSpace, plan: niwaki.Plan) -> str:
    """All text in which a wrapper's name could stand."""
    return "\n".join([repr(space), str(space), *map(str, space.pins), *map(str, space.groups), plan.to_json()])


def test_names_are_those_of_the_plain_network(compiled: tuple[nn.Module, Compiler]) -> None:
    space, plan = magnitudes(compiled[0])
    plain_space, plain_plan = magnitudes(network())
    assert "_orig_mod" not in everything_named(space, plan)
    assert [group.name for group in space.groups] == [group.name for group in plain_space.groups]
    assert (plan.structure, plan.tensors, plan.shapes) == (plain_plan.structure, plain_plan.tensors, plain_plan.shapes)
    assert niwaki.search_space(compiled[0], images(), ignored=["0"]).num_units == 0


def test_a_plan_fits_the_network_compiled_or_not(compiled: tuple[nn.Module, Compiler]) -> None:
    model, x = compiled[0].eval(), images()
    plain = network().eval()
    from_compiled, from_plain = magnitudes(model)[1], magnitudes(plain)[1]
    expected = niwaki.cut(plain, from_plain)(x)
    for net, plan in ((plain, from_compiled), (model, from_plain), (model, from_compiled)):
        assert torch.allclose(niwaki.cut(net, plan)(x), expected, atol=1e-6)
        assert niwaki.check(net, plan, x).holds
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    niwaki.shrink(model, from_plain, optimizer)
    assert torch.allclose(model(x), expected, atol=1e-6)


@pytest.mark.parametrize("how", [in_place, wrapped, inside])
def test_files_of_a_compiled_network_load_into_the_plain_one_and_back(how: Any, tmp_path: Path) -> None:
    x = images()
    model = how(network(), Compiler()).eval()
    small = niwaki.cut(model, magnitudes(model)[1])
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3)
    small(x).sum().backward()
    optimizer.step()
    niwaki.save(small, tmp_path, optimizer=optimizer)
    assert b"_orig_mod" not in (tmp_path / "plan.json").read_bytes()
    assert b"_orig_mod" not in (tmp_path / "model.safetensors").read_bytes()
    for fresh in (network(), how(network(), Compiler())):
        again = niwaki.load(fresh.eval(), tmp_path)
        assert torch.equal(again(x), small(x))
        other = torch.optim.AdamW(again.parameters(), lr=1e-3)
        niwaki.load_optimizer(other, again, tmp_path)
        assert [value["step"] for value in other.state.values()] == [1.0] * len(other.state) and other.state


def test_plans_that_were_saved_with_the_names_of_wrappers_are_read() -> None:
    """Of format 2."""
    text = (Path(__file__).parents[1] / "files/plan-2/cnn/plan.json").read_text()
    plan, data = niwaki.Plan.from_json(text), json.loads(text)
    for name, units in list(data["groups"].items()):
        data["groups"][f"_orig_mod.{name}"] = units
        del data["groups"][name]
    data["tensors"] = {f"_orig_mod.{name}": dims for name, dims in data["tensors"].items()}
    data["shapes"] = [[f"_orig_mod.{name}", shape] for name, shape in data["shapes"]]
    data["attributes"] = [[f"_orig_mod.{module}", *rest] for module, *rest in data["attributes"]]
    data["structure"] = structure_hash([TensorShape(name, tuple(shape)) for name, shape in data["shapes"]])
    read = niwaki.Plan.from_json(json.dumps(data))
    assert read.to_json() == plan.to_json()
    data["shapes"][0][1][0] += 1
    with pytest.raises(niwaki.NiwakiError, match="contradicts its own structure hash"):
        niwaki.Plan.from_json(json.dumps(data))


def test_the_plan_of_a_compiled_training_cuts_the_plain_network(
    compiled: tuple[nn.Module, Compiler],
) -> None:
    model, x = compiled[0], images()
    space = niwaki.search_space(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    method = niwaki.HESSO(space, optimizer, niwaki.Budget(units=0.5), niwaki.Schedule(start=1, until=5, periods=2))
    for _ in range(6):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    plain = network()
    plain.load_state_dict({plain_name(name): value for name, value in model.state_dict().items()})
    plan = method.plan()
    assert torch.allclose(niwaki.cut(plain.eval(), plan)(x), model.eval()(x), atol=1e-5)
