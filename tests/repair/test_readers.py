"""Layers of every kind that read removed units: fitted as plain least squares fit them, or named with the reason."""

from __future__ import annotations

from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import niwaki
from niwaki.core.plan import Plan
from niwaki.repair.compensate import Compensated

RIDGE = 1e-13


def halved(net: nn.Module, x: Tensor, *tensors: str) -> tuple[Compensated, Plan, nn.Module]:
    """The first layer, or that of ``tensors``, loses half of its units: the result, the plan, the small network."""
    net.double().eval()
    space = niwaki.search_space(net, x)
    keep = np.ones(space.num_units, dtype=bool)
    for tensor in tensors or ("first.weight",):
        group = next(group for group in space.groups if any(one.tensor == tensor for one in group.slices))
        keep[group.first + group.units // 2 : group.first + group.units] = False
    plan = space.plan(keep)
    result = niwaki.compensate(space, plan, x.split(5), ridge=RIDGE)
    return result, plan, niwaki.cut(result.model, plan)


def best(read: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and a bias by least squares, from rows."""
    rows = torch.cat([read, read.new_ones(len(read), 1)], 1)
    found = torch.linalg.lstsq(rows, target, driver="gelsd").solution
    return found[:-1].T, found[-1]


class Two(nn.Module):
    def __init__(self, first: nn.Module, reader: nn.Module, last: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.reader, self.last = first, reader, last

    def forward(self, x: Tensor) -> Tensor:
        read: Tensor = self.reader(self.first(x).tanh())
        return read if self.last is None else self.last(read.tanh())


CONVOLUTIONS = {  # what the last one reads, if there is one, may go with the units
    "depthwise": (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 2, 1), (6, 6)),
    "depthwise, two each": (nn.Conv1d(3, 8, 1), nn.Conv1d(8, 16, 2, groups=8), nn.Conv1d(16, 2, 1), (12,)),
    "grouped": (nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, (3, 1), stride=2, groups=4), None, (8, 8)),
    "whole groups": (nn.Conv1d(3, 12, 1), nn.Conv1d(12, 8, 3, groups=4), nn.Conv1d(8, 2, 1), (9,)),
    "transposed": (nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 3, 2, padding=1, output_padding=1), None, (4, 5)),
    "transposed, dilated": (nn.Conv1d(3, 6, 1), nn.ConvTranspose1d(6, 4, 3, stride=3, dilation=2), None, (7,)),
    "transposed, cropped": (nn.Conv1d(3, 6, 1), nn.ConvTranspose1d(6, 4, 2, padding=1), None, (9,)),
    "transposed, grouped": (nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=4), None, (4, 4)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_all_kinds_are_fitted_as_least_squares_fit_them(name: str) -> None:
    """The specification knows no windows: a layer is linear in its parameters, whatever it computes."""
    torch.manual_seed(0)
    first, reader, last, sides = CONVOLUTIONS[name]
    x = torch.randn(11, 3, *sides, dtype=torch.float64)
    net = Two(first, reader, last)
    result, plan, small = halved(net, x)
    assert list(result.layers) == (["reader"] if last is None else ["reader", "last"]) and not result.left
    with torch.no_grad():
        target, read = reader(first(x).tanh()), small.first(x).tanh()  # type: ignore[operator]
        outputs = plan.tensors.get("reader.weight", {}).get(0)
        if outputs is not None and not isinstance(reader, nn.ConvTranspose1d | nn.ConvTranspose2d):
            target = target[:, list(outputs)]
        lost = (target - small.reader(read)).square().sum()  # type: ignore[operator]
    parameters = {key: value.detach() for key, value in small.reader.named_parameters()}  # type: ignore[union-attr]
    slopes = jacrev(lambda values: functional_call(small.reader, values, (read,)))(parameters)  # type: ignore[arg-type]
    design = torch.cat([slopes[key].flatten(target.ndim).flatten(0, -2) for key in parameters], 1)
    solution = torch.linalg.lstsq(design, target.reshape(-1, 1), driver="gelsd").solution[:, 0]
    least = (target.reshape(-1) - design @ solution).square().sum()
    assert float(lost) == pytest.approx(float(least), rel=1e-6)
    found = torch.cat([value.flatten() for value in parameters.values()])
    assert torch.allclose(found, solution, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_recurrent_layers_read_is_fitted(kind: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.reader = nn.Linear(3, 8), kind(8, 4, batch_first=True, bidirectional=True)
            self.last = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(self.reader(self.first(x).tanh())[0])
            return result

    torch.manual_seed(0)
    net, x = Net(), torch.randn(11, 6, 3, dtype=torch.float64)
    result, _, small = halved(net, x)
    assert list(result.layers) == ["reader.weight_ih_l0", "reader.weight_ih_l0_reverse"] and not result.left
    with torch.no_grad():
        dense, read = (one.first(x).tanh().flatten(0, 1) for one in (net, small))  # type: ignore[operator]
        for way in ("l0", "l0_reverse"):
            old, new = net.reader, result.model.reader
            weight, shift = best(read, dense @ getattr(old, f"weight_ih_{way}").T)
            assert torch.allclose(getattr(small.reader, f"weight_ih_{way}"), weight, atol=1e-6)
            assert torch.allclose(getattr(new, f"bias_ih_{way}"), getattr(old, f"bias_ih_{way}") + shift, atol=1e-6)
            assert torch.equal(getattr(new, f"weight_hh_{way}"), getattr(old, f"weight_hh_{way}"))


def test_a_recurrent_cell_is_fitted_on_all_its_steps_and_hidden_states_are_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.reader, self.last = nn.Linear(3, 8), nn.GRUCell(8, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(len(x), self.reader.hidden_size)
            for step in self.first(x).tanh().unbind(1):
                state = self.reader(step, state)
            result: Tensor = self.last(state)
            return result

    torch.manual_seed(0)
    net, x = Net(), torch.randn(11, 6, 3, dtype=torch.float64)
    result, _, small = halved(net, x)
    assert list(result.layers) == ["reader.weight_ih"] and not result.left
    with torch.no_grad():
        dense, read = (one.first(x).tanh().flatten(0, 1) for one in (net, small))  # type: ignore[operator]
        weight, shift = best(read, dense @ net.reader.weight_ih.T)
    assert torch.allclose(small.reader.weight_ih, weight, atol=1e-6)  # type: ignore[union-attr]
    assert torch.allclose(result.model.reader.bias_ih, net.reader.bias_ih + shift, atol=1e-6)
    hidden, _, _ = halved(Net(), x, "reader.weight_hh")
    assert dict(hidden.left) == {"reader.weight_hh": "it reads hidden states, which the recurrent layer does not show"}
    assert list(hidden.layers) == ["last"]


class Attending(nn.Module):
    def __init__(self, apart: bool) -> None:
        super().__init__()
        sizes = {"kdim": 6, "vdim": 6} if apart else {}
        self.first, self.other = nn.Linear(3, 8), nn.Linear(3, 6) if apart else None
        self.reader = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        query = self.first(x).tanh()
        other = query if self.other is None else self.other(x).tanh()
        result: Tensor = self.reader(query, other, value=other, need_weights=False)[0]
        return result


@pytest.mark.parametrize("apart", [True, False], ids=["weights apart", "packed"])
def test_the_projections_of_attention_are_fitted(apart: bool) -> None:
    torch.manual_seed(0)
    net, x = Attending(apart), torch.randn(11, 6, 3, dtype=torch.float64)
    result, _, small = halved(net, x, *(("other.weight",) if apart else ("first.weight", "reader.in_proj_bias")))
    names = {"reader.key", "reader.value"} | (set() if apart else {"reader.query", "reader.out_proj"})
    assert set(result.layers) == names and not result.left
    old, new, cut = net.reader, result.model.reader, small.reader
    with torch.no_grad():
        layers = {"query": "first", "key": "other" if apart else "first", "value": "other" if apart else "first"}
        for number, (name, layer) in enumerate(layers.items()):
            rows = slice(8 * number, 8 * number + 8)
            dense, read = (getattr(one, layer)(x).tanh().flatten(0, 1) for one in (net, small))
            own = getattr(old, f"{name[0]}_proj_weight") if apart else old.in_proj_weight[rows]
            if f"reader.{name}" in names:
                weight, shift = best(read, dense @ own.T)
                made = getattr(new, f"{name[0]}_proj_weight") if apart else new.in_proj_weight[rows]
                assert torch.allclose(made[:, : weight.shape[1]], weight, atol=1e-6), name
                if apart:
                    assert torch.allclose(getattr(cut, f"{name[0]}_proj_weight"), weight, atol=1e-6), name
                assert torch.allclose(new.in_proj_bias[rows], old.in_proj_bias[rows] + shift, atol=1e-6), name


def test_the_output_projection_of_attention_is_fitted_to_the_heads_as_they_are_then() -> None:
    """Queries, keys and values have their new weights, and those of the projection are the best for what these give."""
    torch.manual_seed(0)
    net, x = Attending(apart=False), torch.randn(11, 6, 3, dtype=torch.float64)
    result, _, small = halved(net, x, "first.weight", "reader.in_proj_bias")
    cut = small.reader
    assert isinstance(cut, nn.MultiheadAttention) and not result.left
    with torch.no_grad():
        query = small.first(x).tanh()  # type: ignore[operator]
        parts = nn.functional.linear(query, cut.in_proj_weight, cut.in_proj_bias).chunk(3, -1)
        heads = [part.unflatten(-1, (cut.num_heads, -1)).transpose(1, 2) for part in parts]
        given = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        weight, shift = best(given.flatten(0, 1), net(x).flatten(0, 1) - net.reader.out_proj.bias)
    made = result.model.reader.out_proj  # type: ignore[union-attr]
    assert weight.shape == (8, 4) and torch.allclose(cut.out_proj.weight, weight, atol=1e-6)
    assert torch.allclose(made.bias, net.reader.out_proj.bias + shift, atol=1e-6)


class Product(nn.Module):
    """A layer of someone's own whose matrix has the inputs in front, as GPT-2's has."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Rooted(Product):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight + self.bias) * 1.001


def test_any_layer_that_multiplies_by_its_matrix_is_fitted_and_others_are_named() -> None:
    torch.manual_seed(0)
    x = torch.randn(11, 6, 3, dtype=torch.float64)
    for size in (8, 5):  # a square matrix could be multiplied by either way
        net = Two(nn.Linear(3, 8), Product(8, size))
        result, _, small = halved(net, x)
        assert list(result.layers) == ["reader"] and not result.left
        with torch.no_grad():
            read = small.first(x).tanh().flatten(0, 1)  # type: ignore[operator]
            weight, bias = best(read, net(x).flatten(0, 1))
        assert torch.allclose(small.reader.weight, weight.T, atol=1e-6)  # type: ignore[union-attr]
        assert torch.allclose(small.reader.bias, bias, atol=1e-6)  # type: ignore[union-attr]
    result, _, _ = halved(Two(nn.Linear(3, 8), Rooted(8, 5)), x)
    assert not result.layers and dict(result.left) == {"reader": "Rooted computes something of its own"}


def test_layers_of_language_models_are_fitted() -> None:
    pytest.importorskip("transformers")
    from niwaki.networks.torchvision_cpu import load

    load()
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=20, n_positions=16)
    tokens = torch.randint(0, 20, (12, 8))
    net = transformers.GPT2LMHeadModel(config).eval()
    space = niwaki.search_space(net, {"input_ids": tokens}, ignored=["*wte*"])
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.6))
    result = niwaki.compensate(space, plan, [{"input_ids": tokens}])
    assert {"transformer.h.0.mlp.c_proj", "transformer.h.0.attn.c_proj"} <= set(result.layers), result
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=20,
            tie_word_embeddings=False,
        )
    ).eval()
    space = niwaki.search_space(llama, {"input_ids": tokens})
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.6))
    result = niwaki.compensate(space, plan, [{"input_ids": tokens}])
    assert {"model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"} <= set(result.layers), result


class Enlarging(nn.Module):
    """A transposed convolution whose call says how large the output is to be."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.reader = nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 3, stride=(3, 2), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.reader(self.first(x).tanh(), output_size=(12, 10))
        return result


def test_the_size_that_a_call_of_a_transposed_convolution_asks_for_is_that_of_the_fit() -> None:
    torch.manual_seed(0)
    net, x = Enlarging(), torch.randn(15, 3, 4, 5, dtype=torch.float64)
    result, plan, small = halved(net, x)
    assert list(result.layers) == ["reader"] and not result.left
    twin = nn.ConvTranspose2d(6, 4, 3, stride=(3, 2), padding=1, output_padding=(2, 1)).double()
    twin.load_state_dict(net.reader.state_dict())
    same, _, other = halved(Two(net.first, twin), x)
    assert torch.allclose(small.reader.weight, other.reader.weight)  # type: ignore[union-attr, operator, arg-type]
    assert same.layers["reader"].after == pytest.approx(result.layers["reader"].after)


def test_a_forward_of_an_instance_is_tried_or_left() -> None:
    """A copy keeps such a forward; it may be a wrapper that changes nothing, as libraries make them."""

    def scaled(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return 0.1 * type(layer).forward(layer, *args, **kwargs)

    def same(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return type(layer).forward(layer, *args, **kwargs)

    torch.manual_seed(0)
    x, why = torch.randn(30, 3), "the forward of this instance computes something of its own"
    for forward, reader, left in (
        (scaled, nn.Linear(8, 2), {"reader": why}),
        (same, nn.Linear(8, 2), {}),
        (scaled, nn.Conv1d(8, 2, 1), {"reader": why}),
        (same, nn.Conv1d(8, 2, 1), {}),
    ):
        plain = isinstance(reader, nn.Linear)
        net = Two(nn.Linear(3, 8) if plain else nn.Conv1d(3, 8, 1), reader)
        reader.forward = MethodType(forward, reader)  # type: ignore[method-assign]
        result, _, _ = halved(net, x.double() if plain else x.double().reshape(15, 3, 2))
        assert result.left == left and list(result.layers) == ([] if left else ["reader"])


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv1d])
def test_complex_weights_are_left_and_named(kind: Any) -> None:
    torch.manual_seed(0)
    kernel, sides = ((), ()) if kind is nn.Linear else ((2,), (4,))
    net = nn.Sequential(*(kind(*widths, *kernel, dtype=torch.complex64) for widths in ((3, 8), (8, 2))))
    x = torch.randn(10, 3, *sides, dtype=torch.complex64)
    space = niwaki.search_space(net, x)
    keep = np.arange(space.num_units) % 2 == 0
    result = niwaki.compensate(space, space.plan(keep), [x])
    assert not result.layers
    assert result.left == {"1": "its weights are complex numbers, and only real ones are fitted"}
