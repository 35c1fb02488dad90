"""``search_space``: what it promises about the model, its inputs, its patterns and its reasons."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from careless import Careless, assert_same, everything
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

import niwaki
from niwaki.errors import TraceError, UnknownName
from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import RULES


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def reasons(space: niwaki.SearchSpace, tensor: str, dim: int) -> str:
    """The reasons for which positions of one dimension are pinned."""
    return "; ".join(
        f"{pin.reason} at {pin.location}" for pin in space.pins if (pin.parameter, pin.dim) == (tensor, dim)
    )


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = Careless(fails).train()
    model.drop.eval()
    model.layer.weight.grad = torch.ones(4, 3)
    inputs = torch.randn(5, 3)
    before = everything(model)
    if fails:
        with pytest.raises(TraceError, match="RuntimeError: on purpose"):
            niwaki.search_space(model, inputs)
    else:
        niwaki.search_space(model, inputs)
    assert_same(before, everything(model))


def test_attributes_that_are_computed_are_not_read() -> None:
    """A parametrized weight is computed when it is read; spectral norm then takes a step of its power iteration."""
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 6)), nn.ReLU(), nn.Linear(6, 2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    space = niwaki.search_space(model, torch.randn(5, 3))
    space.plan(np.arange(space.num_units) > 1)
    assert_same(before, model.state_dict())


def test_the_space_refers_to_the_model_and_owns_no_weights() -> None:
    model = small()
    space = niwaki.search_space(model, torch.randn(2, 3))
    assert space.model is model
    assert [(group.name, group.units) for group in space.groups] == [("0", 6), ("2", 5)]
    held = [value for value in vars_of(space) if isinstance(value, Tensor)]
    assert not held


def vars_of(space: niwaki.SearchSpace) -> list[Any]:
    return [getattr(space, name) for name in type(space).__slots__ if name != "model"]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.a(x)
        return self.c(torch.relu(h if y is None else h + self.b(y)))


def test_inputs_tensor_tuple_dict_and_list() -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    alone = niwaki.search_space(Two(), x)
    assert "no forward pass reached this parameter" in reasons(alone, "b.weight", 0)
    assert sum(group.units for group in alone.groups) == 6
    for inputs in ((x, y), {"x": x, "y": y}, [x, (x, y)], [x, {"x": x, "y": y}]):
        space = niwaki.search_space(Two(), inputs)
        assert not reasons(space, "b.weight", 0)
        (group,) = space.groups
        assert {piece.tensor for piece in group.slices} == {"a.weight", "a.bias", "b.weight", "b.bias", "c.weight"}


def test_wrong_inputs_say_what_is_expected() -> None:
    with pytest.raises(TraceError, match="unexpected keyword argument 'z'.*a dict for keywords"):
        niwaki.search_space(Two(), {"z": torch.randn(2, 3)})


LOADER = DataLoader(TensorDataset(torch.randn(8, 3), torch.zeros(8, dtype=torch.long)), batch_size=4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 3), np.float32), r"Its argument 0 is a NumPy array: pass a tensor, torch.from_numpy\(array\)"),
        (LOADER, r"example_inputs is a DataLoader, which yields batches .* such as next\(iter\(loader\)\)\[0\]"),
        (iter(LOADER), r"yields batches and is not one. .* such as next\(batches\)\[0\]"),
        ((batch for batch in LOADER), "example_inputs is a generator, which yields batches"),
        (next(iter(LOADER)), r"example_inputs is a list, which means 2 calls, and this is number 1. .* batch\[0\]"),
        (tuple(next(iter(LOADER))), "example_inputs is a tuple of two. Does it hold labels"),
    ],
    ids=["array", "loader", "iterator", "generator", "batch", "pair"],
)
def test_inputs_that_are_no_inputs_say_what_to_pass(inputs: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        niwaki.search_space(small(), inputs)
    assert "\n" not in str(caught.value) and "Tracked" not in str(caught.value)


def test_a_scripted_model_is_refused() -> None:
    with pytest.raises(TraceError, match="TorchScript .* Pass the module that it was scripted or traced from"):
        niwaki.search_space(torch.jit.script(small()), torch.randn(2, 3))  # type: ignore[no-untyped-call]


def test_offloaded_weights_are_recognised() -> None:
    model = accelerate.cpu_offload(small(), execution_device="cpu")
    with pytest.raises(TraceError, match="Its weights are offloaded: 6 parameters, first '0.weight', .*remove_hook"):
        niwaki.search_space(model, torch.randn(2, 3))


class Tables(nn.Module):
    """Adds tensors that are neither parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
        self.mean, self.tables, self.listed = torch.randn(6), {"one": torch.randn(6)}, [torch.randn(6)]
        self.which = "mean"

    def forward(self, x: Tensor) -> Tensor:
        table = {"mean": self.mean, "tables": self.tables["one"], "listed": self.listed[0]}[self.which]
        return self.b(torch.relu(self.a(x) - table))


@pytest.mark.parametrize("which", ["mean", "tables", "listed"])
def test_a_tensor_that_is_held_by_a_module_is_named_with_the_line_that_meets_it(which: str) -> None:
    model = nn.Sequential(nn.Identity(), Tables())
    model[1].which = which
    said = reasons(niwaki.search_space(model, torch.randn(4, 3)), "1.a.weight", 0)
    assert said.startswith(f"it meets the attribute '1.{which}', a tensor that is neither parameter nor buffer"), said
    assert re.search(r"test_search.py:\d+ \(in '1'\)", said)


def test_every_reason_is_one_line() -> None:
    """Where a cut changes a constant tensor, too, or torch says a page about it."""

    class Page(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if y.stride(0) != 6:
                raise RuntimeError("one line\n" + "more lines\n" * 50)
            return self.b(y + torch.from_numpy(np.arange(6.0, dtype=np.float32) * len(str(y.stride()))))

    space = niwaki.search_space(Page(), torch.randn(4, 3))
    assert space.pins and all(len(pin.reason) < 300 and "\n" not in pin.reason for pin in space.pins)


@pytest.mark.parametrize("pattern", ["0", "0.weight", "0.*", "?.weight"])
def test_ignored_stays(pattern: str) -> None:
    space = niwaki.search_space(small(), torch.randn(2, 3), ignored=[pattern])
    assert "0" not in {group.name for group in space.groups}
    assert f"it is ignored by the pattern '{pattern}'" in reasons(space, "0.weight", 0)


def test_ignored_as_one_string_and_what_matches_nothing() -> None:
    space = niwaki.search_space(small(), torch.randn(2, 3), ignored="2")
    assert [group.name for group in space.groups] == ["0"] or not space.groups
    for odd in (5, [5], None):
        with pytest.raises(UnknownName, match=r"ignored=.* must be a list of names or patterns, such as \['head', "):
            niwaki.search_space(small(), torch.randn(2, 3), ignored=odd)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="'conv' in `ignored` matches no parameter.*named like '0.weight'"):
        niwaki.search_space(small(), torch.randn(2, 3), ignored=["0", "conv"])


class Literal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(3, 8), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        h = h.view(-1, 2, 4)  # the line of the reason
        return self.end(h).sum(1)


def line_of(function: Any, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def test_a_literal_is_pinned_with_its_line() -> None:
    space = niwaki.search_space(Literal(), torch.randn(5, 3))
    why = reasons(space, "start.weight", 0)
    assert re.search("a size given to view is written as the number [24]", why)
    assert f"test_search.py:{line_of(Literal.forward, 'the line of the reason')}" in why
    (pin,) = [pin for pin in space.pins if (pin.parameter, pin.dim) == ("start.weight", 0)]
    assert pin.count == 8
    assert str(pin) == f"start.weight dim 0 (8 positions): {why}"


def test_reasons_name_the_operator_and_what_is_met() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.linalg.ldl_factor(self.a(x).T @ self.b(x))[0]
            return self.d(self.c(h).softmax(-1))

    space = niwaki.search_space(Odd(), torch.randn(6, 3))
    assert "niwaki has no rule for the operator aten.linalg_ldl_factor_ex" in reasons(space, "a.weight", 0)
    assert "_softmax.default makes all entries along this dimension depend" in reasons(space, "c.weight", 0)
    assert "an input of the model" in reasons(space, "a.weight", 1)
    assert "an output of the model" in reasons(space, "d.weight", 0)
    assert all("test_search.py" in str(pin.location) for pin in space.pins if "operator" in pin.reason)


def test_unknown_operators_pin_all_they_touch() -> None:
    @torch.library.custom_op("niwaki_tests::mystery", mutates_args=())
    def mystery(x: Tensor) -> Tensor:
        return x * 2

    class Mystery(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(mystery(self.a(x)))

    space = niwaki.search_space(Mystery(), torch.randn(2, 3))
    assert not space.groups
    assert "no rule for the operator niwaki_tests.mystery.default" in reasons(space, "a.weight", 0)
    assert "no rule for the operator niwaki_tests.mystery.default" in reasons(space, "b.weight", 1)


def test_every_pinned_position_has_a_reason_and_every_position_is_free_or_pinned() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    space = niwaki.search_space(model, torch.randn(2, 3, 6, 6))
    for name, parameter in model.named_parameters():
        for dim, size in enumerate(parameter.shape):
            pinned = sum(pin.count for pin in space.pins if (pin.parameter, pin.dim) == (name, dim))
            free = sum(
                len(place.units) for place in space.dims if (place.tensor, place.dim) == (name, dim) and not pinned
            )
            assert pinned + free == size, (name, dim)
    assert all(pin.reason and pin.reason != "nothing constrains it" for pin in space.pins)


def test_a_model_without_train_mode_is_noted() -> None:
    class EvalOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise ValueError("not for training")
            return self.net(x)

    space = niwaki.search_space(EvalOnly(), torch.randn(2, 3))
    assert any("does not run in train mode (ValueError: not for training)" in note for note in space.notes)
    assert len(space.groups) == 2


def test_what_only_train_mode_uses_constrains_too() -> None:
    class Auxiliary(nn.Module):
        """In train mode, a head reads the hidden layer through a softmax."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.aux = nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            h = self.a(x)
            return (self.b(h), self.aux(h.softmax(-1))) if self.training else self.b(h)

    space = niwaki.search_space(Auxiliary(), torch.randn(2, 3))
    assert not space.groups
    assert "_softmax" in reasons(space, "a.weight", 0)


def test_printing_fits_a_screen() -> None:
    model = nn.Sequential(*(layer for _ in range(30) for layer in (nn.Linear(6, 6), nn.ReLU())))
    text = str(niwaki.search_space(model, torch.randn(2, 6)))
    assert len(text.splitlines()) <= 45
    assert "smaller groups" in text and "Pinned:" in text


def _renormalise(net: nn.Linear) -> None:
    net.weight.data = torch.renorm(net.weight.data, 2, 0, 0.1)


def _write_column(net: nn.Linear) -> None:
    with torch.no_grad():
        net.weight[:, 0] = 0


def _write_all(net: nn.Linear) -> None:
    with torch.no_grad():
        torch._foreach_mul_(list(net.parameters()), 0.5)


def _write_out(net: nn.Linear) -> None:
    with torch.no_grad():
        torch.mul(net.weight, 0.5, out=net.weight)


def _remember_sizes(net: nn.Linear) -> None:
    net.seen += 1
    net.cache["sizes"].append(net.weight.shape[0])


@pytest.mark.parametrize("meddle", [_renormalise, _write_column, _write_all, _write_out, _remember_sizes])
def test_what_forward_does_to_the_model_is_undone(meddle: Callable[[nn.Linear], None]) -> None:
    class Net(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 6)
            self.out, self.seen, self.cache = nn.Linear(6, 2), torch.zeros(1), {"sizes": []}

        def forward(self, x: Tensor) -> Tensor:
            meddle(self)
            return self.out(super().forward(x))

    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    pointer = net.weight.data_ptr()
    niwaki.search_space(net, torch.randn(2, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.weight.data_ptr() == pointer
    assert net.seen.item() == 0
    assert net.cache == {"sizes": []}


def test_numbers_kept_from_another_trace_are_plain_numbers() -> None:
    kept: list[int] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.first, self.second = 6, nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            kept.append(self.width)
            return self.second(self.first(x).view(len(x), kept[0]))

    niwaki.search_space(Net(), torch.randn(2, 4))
    space = niwaki.search_space(Net(), torch.randn(2, 4))
    assert not space.groups
    assert any("written as the number 6" in pin.reason for pin in space.pins)


def test_a_model_that_cannot_be_copied_is_refused_with_a_sentence() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    net.lock = threading.Lock()
    with pytest.raises(niwaki.NiwakiError, match="The model cannot be copied, and niwaki cuts a copy"):
        niwaki.search_space(net, torch.randn(2, 4))


def test_inference_mode_changes_nothing() -> None:
    net, x = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), torch.randn(2, 4)
    with torch.inference_mode():
        inside = niwaki.search_space(net, x)
    assert inside.cost() == niwaki.search_space(net, x).cost()
    assert inside.num_units == 6


@pytest.mark.parametrize("kind", [IndexError, RuntimeError])
def test_a_rule_that_fails_pins_what_its_operator_touches(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def broken(call: Call) -> Label:
        raise kind("out of range")

    monkeypatch.setitem(RULES, torch.ops.aten.relu.default, broken)
    space = niwaki.search_space(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4))
    assert not space.groups
    assert f"rule for the operator aten.relu.default fails here ({kind.__name__}: out of range)" in reasons(
        space, "0.weight", 0
    )


def test_two_plain_numbers_are_divided() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            parts = torch.div(6, 4, rounding_mode="trunc")
            result: Tensor = self.down(self.up(x)) * parts
            return result

    assert [group.units for group in niwaki.search_space(Net(), torch.randn(1, 4)).groups] == [8]


def test_an_empty_parameter_costs_nothing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 7, bias=False)
            self.more = nn.Parameter(torch.zeros(0, 7))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.up(x)) @ torch.cat([self.down.weight.T, self.more], 0)

    assert niwaki.search_space(Net(), torch.randn(1, 4)).cost().params == 40 + 56
