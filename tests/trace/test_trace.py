"""The record of a run: what is seen, what is remembered about numbers, and that nothing is left behind."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from careless import Careless, assert_same, everything
from torch import Tensor, nn

import niwaki
from niwaki.core.numbers import Attribute, Combination, Count, Literal
from niwaki.errors import TraceError
from niwaki.trace.graph import Graph, Origin
from niwaki.trace.source_lines import _internal
from niwaki.trace.tracer import example_calls, trace

aten = torch.ops.aten


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(fails: bool, training: bool) -> None:
    model = Careless(fails).train(training)
    model.norm.eval()  # a mode of its own
    model.layer.weight.grad = torch.ones(4, 3)
    model.layer.bias.requires_grad_(False)
    inputs = torch.randn(5, 3)
    before = everything(model)
    if fails:
        with pytest.raises(TraceError, match="on purpose"):
            trace(model, example_calls(inputs))
    else:
        trace(model, example_calls(inputs))
    assert_same(before, everything(model))


def test_inputs_are_left_as_they_were() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1)

    x = torch.zeros(2, requires_grad=True)
    trace(InPlace(), example_calls(x))
    assert torch.equal(x.detach(), torch.zeros(2)) and x.grad is None


def test_inputs_positional_keyword_and_several() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    assert example_calls(x) == (((x,), {}),)
    assert example_calls((x, y)) == (((x, y), {}),)
    assert example_calls({"a": x}) == (((), {"a": x}),)
    assert example_calls(OrderedDict(a=x)) == (((), {"a": x}),)
    assert example_calls([x, (x, y), {"a": y}]) == (((x,), {}), ((x, y), {}), ((), {"a": y}))


def nodes(graph: Graph, operator: Any, run: int = 0) -> list[Any]:
    return [node for node in graph.runs[run].nodes if node.operator is operator]


def test_parameters_are_the_arguments_and_places_are_the_users() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * 2

    graph = trace(Net(), example_calls(torch.randn(2, 3)), every=True)
    assert [run.training for run in graph.runs] == [False, True]
    (linear,) = nodes(graph, aten.addmm.default)
    (product,) = nodes(graph, aten.mul.Tensor)
    assert linear.location.module == "inner.0"
    assert linear.location.file.endswith("test_trace.py") and product.location.file == linear.location.file
    assert product.location.module == ""
    names = {graph.values[number].name for node in graph.runs[0].nodes for number in node.inputs()}
    assert {"inner.0.weight", "inner.0.bias", "x"} <= names
    assert graph.values[graph.runs[0].outputs[0]].origin is Origin.COMPUTED


def test_tied_parameters_are_one_value() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    graph = trace(Tied(), example_calls(torch.randn(2, 3)))
    named = [value.name for value in graph.values if value.origin is Origin.PARAMETER]
    assert sorted(named) == ["a.bias", "a.weight", "b.bias"]


class Sizes(nn.Module):
    """Attributes, shapes and literals on their way into a view."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.shape, self.flag = 2, (3, 4), True

    def forward(self, x: Tensor) -> Tensor:
        b, c = x.shape
        y = x.view(b, self.heads, c // self.heads)
        return y.reshape(x.size(0), self.shape[0], self.shape[1]).reshape(-1, 12)


def test_numbers_remember_where_they_came_from() -> None:
    graph = trace(Sizes(), example_calls(torch.randn(5, 12)), modes=(False,))
    first, second, third = nodes(graph, aten.view.default)
    heads = Attribute("", "heads", (), 2)
    rows, columns = Count((0, 0), 5), Count((0, 1), 12)
    assert first.call.numbers == (rows, heads, Combination("//", columns, heads, 6))
    assert second.call.numbers == (rows, Attribute("", "shape", (0,), 3), Attribute("", "shape", (1,), 4))
    assert third.call.numbers == (Literal(-1), Literal(12))


def test_bounds_of_slices_are_numbers() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = 3

        def forward(self, x: Tensor) -> Tensor:
            return x[:, self.n : -self.n]

    graph = trace(Sliced(), example_calls(torch.randn(2, 9)), modes=(False,))
    n = Attribute("", "n", (), 3)
    (sliced,) = nodes(graph, aten.slice.Tensor)
    assert sliced.call.numbers == (n, Combination("*", n, Literal(-1), -3))


def test_numbers_that_enter_values_are_frozen() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.size, self.width = 4, 3

        def forward(self, x: Tensor) -> Tensor:
            return x * self.size**-0.5 + float(self.width) + x.shape[1] / 2

    (run,) = trace(Scaled(), example_calls(torch.randn(2, 6)), modes=(False,)).runs
    frozen = [str(item.expression) for item in run.frozen]
    assert frozen == ["size", "width", "size(6)"]
    assert all(item.location.file.endswith("test_trace.py") for item in run.frozen)


def test_an_error_in_forward_names_itself_and_how_far_it_came() -> None:
    with pytest.raises(TraceError, match="does not run on the example inputs: RuntimeError: .*shapes cannot") as caught:
        trace(nn.Sequential(nn.ReLU(), nn.Linear(3, 4)), example_calls(torch.randn(2, 5)))
    assert "a tensor or tuple for positional arguments, a dict for keywords" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_error_in_train_mode_only_is_recorded() -> None:
    class EvalOnly(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise ValueError("not for training")
            return x * 2

    evaluated, trained = trace(EvalOnly(), example_calls(torch.randn(2))).runs
    assert evaluated.error is None and isinstance(trained.error, ValueError)


def test_packages_whose_names_begin_like_that_of_torch_are_the_users() -> None:
    here = str(Path(torch.__file__).parent)
    assert _internal(f"{here}/nn/modules/linear.py")
    assert not _internal(f"{here}vision/models/resnet.py")


@torch.jit.script
def scripted_clamp(x: Tensor, most: float) -> Tensor:
    return (x / most).tanh() * most


@torch.jit.script
def scripted_rows(x: Tensor, rows: int) -> Tensor:
    return x.view(x.size(0) * rows, x.size(1) // rows).relu()


class Scripted(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.first, self.last, self.rows = nn.Linear(4, 8), nn.Linear(8 // max(rows, 1), 2), rows

    def forward(self, x: Tensor) -> Tensor:
        y = scripted_clamp(self.first(x), 5.0)
        return self.last(scripted_rows(y, self.rows) if self.rows else y)


def test_scripted_functions_are_followed() -> None:
    """Their operators come without a torch function that was called."""
    model, x = Scripted(0), torch.randn(3, 4)
    space = niwaki.search_space(model, x)
    assert [group.units for group in space.groups] == [8], space
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
    assert niwaki.check(model, plan, x).holds


@torch.jit.script
def scripted_literal(x: Tensor) -> Tensor:
    return x.view(x.size(0) * 2, 4).relu()


def test_sizes_in_scripted_functions() -> None:
    """Code that asks for sizes follows by itself; a number written in it is found when the cut is rehearsed."""
    model, x = Scripted(2), torch.randn(3, 4)
    space = niwaki.search_space(model, x)
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
    assert space.num_units == 4 and niwaki.check(model, plan, x).holds
    fixed = nn.Sequential(nn.Linear(4, 8), Lambda(scripted_literal), nn.Linear(4, 2))
    assert niwaki.search_space(fixed, x).num_units == 0


class Lambda(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def test_nested_tensors_are_refused() -> None:
    nested = Lambda(lambda x: torch.nested.as_nested_tensor([x[:1], x], layout=torch.jagged).relu())
    with pytest.raises(TraceError, match="a nested tensor is made, whose rows have sizes of their own"):
        niwaki.search_space(nn.Sequential(nn.Linear(4, 8), nested), torch.randn(3, 4))
