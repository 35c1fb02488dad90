"""Structures of real networks: what is found, and that a structure whose producers are zero adds nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import niwaki
from niwaki.erasing.flow import ADDITIONS, operands
from niwaki.errors import UnknownName
from niwaki.networks.torchvision_cpu import load
from niwaki.testing.models import randomised
from niwaki.trace import tracer
from niwaki.trace.tracer import example_calls

load()
import torchvision  # noqa: E402 - its operators are declared by now
from torchvision.models import ResNet, SwinTransformer, VisionTransformer  # noqa: E402
from torchvision.models.convnext import CNBlockConfig, ConvNeXt  # noqa: E402
from torchvision.models.resnet import BasicBlock  # noqa: E402


class Additions(TorchDispatchMode):
    """Keeps the largest entry of both operands of every addition of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: list[tuple[float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ADDITIONS and all(isinstance(one, Tensor) for one in args[:2]):
            self.largest.append(tuple(float(one.abs().max()) if one.numel() else 0.0 for one in args[:2]))  # type: ignore[arg-type]
        return func(*args, **(kwargs or {}))


class PreActivation(nn.Module):
    """Residual blocks whose norms and activations come first, with the branch written both ways round."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(3)
        )
        self.gate, self.free = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.blocks[0](x)
        x = torch.add(self.blocks[1](x), x)
        y = self.blocks[2](x)
        y += x
        y = y + torch.sigmoid(self.gate(y))  # one half where its weights are zero
        y = torch.add(self.free(y), y, alpha=0.5)
        return self.head(y.mean((2, 3)))


def bert() -> tuple[nn.Module, Any]:
    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=31
    )
    return transformers.BertModel(config), {"input_ids": torch.arange(6)[None]}


def llama(**more: Any) -> tuple[nn.Module, Any]:
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=31,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), {"input_ids": torch.arange(6)[None], **more}


def gpt2() -> tuple[nn.Module, Any]:
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=31, n_positions=12)
    return transformers.GPT2LMHeadModel(config), {"input_ids": torch.arange(6)[None], "use_cache": False}


def t5() -> tuple[nn.Module, Any]:
    config = transformers.T5Config(d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8, vocab_size=31)
    tokens = torch.arange(6)[None]
    return transformers.T5Model(config), {"input_ids": tokens, "decoder_input_ids": tokens, "use_cache": False}


def pictures(build: Callable[[], nn.Module], size: int = 32) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (build(), torch.randn(1, 3, size, size))


NETWORKS: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], int]] = {  # how many can be erased
    "pre-activation": (pictures(PreActivation, 8), 3),
    "resnet": (pictures(lambda: ResNet(BasicBlock, [2, 1, 1, 1])), 8),
    "mobilenet": (pictures(lambda: torchvision.models.mobilenet_v2(width_mult=0.25)), 11),
    "convnext": (pictures(lambda: ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 1)])), 3),
    "vit": (pictures(lambda: VisionTransformer(16, 8, 2, 2, 16, 24), 16), 4),
    "swin": (pictures(lambda: SwinTransformer([4, 4], 8, [2, 1], [2, 4], [3, 3])), 6),
    "bert": (bert, 6),
    "llama": (lambda: llama(use_cache=False), 4),
    "llama with a cache": (llama, 4),
    "gpt2": (gpt2, 5),
    "t5": (t5, 9),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_added_where_the_producers_are_zero(name: str) -> None:
    """And something is where they are not; nobody outside of a structure has its parameters."""
    build, expected = NETWORKS[name]
    torch.manual_seed(0)
    model, inputs = build()
    model = randomised(model.eval()).double()
    calls = example_calls(inputs)
    inputs = calls[0][1] or calls[0][0][0].double()
    space = niwaki.search_space(model, inputs, erase=True)
    erasable = [one for one in space.structures if one.erasable and not one.concatenated]
    assert len(erasable) == expected, "\n".join(map(str, space.structures))
    nodes = tracer.trace(model, example_calls(inputs)).runs[0].nodes
    ordinal: dict[int, int] = {}
    for place, node in enumerate(nodes):
        if node.operator in ADDITIONS and operands(node)[0][0] is not None:
            ordinal[place] = len(ordinal)
    args, kwargs = example_calls(inputs)[0]

    def largest(of: nn.Module) -> list[tuple[float, float]]:
        with torch.no_grad(), Additions() as seen:
            of(*args, **kwargs)
        assert len(seen.largest) == len(ordinal)
        return seen.largest

    dense = largest(model)
    for one in erasable:
        small = copy.deepcopy(model)
        for name_of, parameter in small.named_parameters():
            if name_of in one.producers:
                nn.init.zeros_(parameter)
        assert largest(small)[ordinal[one.join]][one.operand] == 0 < dense[ordinal[one.join]][one.operand], one
        assert set(one.producers) <= set(one.parameters) and one.params > 0


def test_why_others_are_not_erasable() -> None:
    model, inputs = pictures(PreActivation, 8)()
    space = niwaki.search_space(model, inputs, erase=True)
    found = {one.name: one.refused for one in space.structures}
    assert found["gate"] == "its result is not zero where its weights are"
    assert found["free"] == "what it is added to is multiplied on the way"
    text = str(space)
    assert "Structures: 3 of 5 can be erased, each by itself (space.structures has them all)" in text
    assert "1 x not erasable, its result is not zero where its weights are: gate at " in text


def test_a_pattern_keeps_a_structure() -> None:
    model, inputs = pictures(PreActivation, 8)()
    space = niwaki.search_space(model, inputs, ignored=["blocks.1.2"], erase=True)
    (held,) = [one for one in space.structures if one.name == "blocks.1"]
    assert held.refused == "'blocks.1.2.weight' is ignored by the pattern 'blocks.1.2'"


def test_weights_that_are_used_elsewhere_keep_a_structure() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.a(x)
            return self.b(torch.relu(x + self.a(x)))

    space = niwaki.search_space(Twice(), torch.randn(2, 6), erase=True)
    why = "'a.weight', which makes its result, is used elsewhere too"
    assert [one.refused for one in space.structures] == [why] * 2


def test_costs_add_up() -> None:
    """What a residual block costs, by hand; and nothing is listed unless asked for."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + torch.relu(self.body(x)))

    space = niwaki.search_space(Net(), torch.randn(1, 3, 5, 5), erase=True)
    (one,) = space.structures
    assert (one.macs, one.params, one.operators) == (4 * 4 * 9 * 25, 4 * 4 * 9 + 4, 2)
    assert sorted(one.parameters) == sorted(one.producers) == ["body.bias", "body.weight"]
    assert one.name == "body" and one.inside is None and one.location.file == __file__
    assert niwaki.search_space(Net(), torch.randn(1, 3, 5, 5)).structures == ()


def test_halves_in_a_layer_and_a_layer_in_a_stack() -> None:
    """A branch that has residual blocks of its own: they are listed inside of it."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x + self.first(x))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner, self.head = nn.Linear(3, 6), Inner(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.inner(x))

    space = niwaki.search_space(Outer(), torch.randn(2, 3), erase=True)
    first, inner = space.structures
    assert (first.name, inner.name) == ("inner.first", "inner")
    assert space.structures[first.inside] is inner and first.erasable and inner.erasable
    assert inner.params == 2 * 42 and first.params == 42
    assert "inner.first: 72 MACs, 42 parameters, added at" in str(space) and "inside of inner" in str(space)


def test_every_run_has_a_say() -> None:
    """In train mode an auxiliary head reads the branch before it is added."""

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.auxiliary = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            y = torch.relu(self.branch(x))
            made = self.head(x + y)
            return (made, self.auxiliary(y)) if self.training else made

    space = niwaki.search_space(Auxiliary(), torch.randn(2, 3), erase=True)
    (branch,) = space.structures
    assert branch.refused == "another run (in train mode, or of another example call) uses its weights otherwise"


@pytest.mark.parametrize("flag", ["inner", "rehearse", "allow_inexact", "as_graph"])
def test_a_flag_is_true_or_false(flag: str) -> None:
    with pytest.raises(UnknownName, match=f"{flag}='yes' must be True or False"):
        niwaki.search_space(nn.Linear(3, 4), torch.randn(1, 3), **{flag: "yes"})  # type: ignore[arg-type]
