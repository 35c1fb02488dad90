"""Models whose parameters live on the meta device: the same space as with real weights, and nothing materialised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import _DECODER, ZOO, _transformers

import niwaki
from benchmarks.scale import measure
from niwaki.errors import TraceError


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def _same(ours: niwaki.SearchSpace, real: niwaki.SearchSpace) -> None:
    assert [(g.name, g.units) for g in ours.groups] == [(g.name, g.units) for g in real.groups]
    assert ours.pins == real.pins
    assert ours.coverage == real.coverage
    assert ours.cost() == real.cost()
    assert ours.least_cost() == real.least_cost()
    assert ours.notes == real.notes


_mixtral = _transformers("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, **_DECODER)
_CASES = {name: (ZOO[name].build, ZOO[name].inputs) for name in ("resnet18", "timm_vit_tiny", "bert", "llama")}
_CASES["mixtral"] = (_mixtral, ZOO["llama"].inputs)


@pytest.mark.parametrize("name", _CASES)
def test_a_meta_model_gives_the_same_space(name: str) -> None:
    build, inputs = _CASES[name]
    model = _on_meta(build)
    before = [(id(tensor), tensor.device.type) for tensor in (*model.parameters(), *model.buffers())]
    space = niwaki.search_space(model, inputs())
    assert [(id(tensor), tensor.device.type) for tensor in (*model.parameters(), *model.buffers())] == before
    assert all(parameter.is_meta for parameter in model.parameters())
    _same(space, niwaki.search_space(build(), inputs()))
    keep = torch.ones(space.num_units, dtype=torch.bool).numpy()
    for group in space.groups:
        if not any(space.groups.index(group) in tie.groups for tie in space.ties):
            keep[group.first] = False
    small = niwaki.cut(model, space.plan(keep))
    assert all(parameter.is_meta for parameter in small.parameters())
    assert sum(p.numel() for p in small.parameters()) == space.cost(space.plan(keep)).params


def test_nothing_of_the_size_of_a_parameter_is_materialised() -> None:
    model = _on_meta(lambda: nn.Sequential(nn.Linear(2**16, 2**20), nn.ReLU(), nn.Linear(2**20, 2**16)))  # 512 GiB
    space = niwaki.search_space(model, torch.zeros(1, 2**16, device="meta"))
    assert [group.units for group in space.groups] == [2**20]


@pytest.mark.parametrize(("name", "coverage", "left"), [("llama-3-70b", 0.99, 0.5), ("mixtral-8x7b", 0.0, 1.0)])
def test_layers_of_real_width_are_analysed_and_cut_on_meta(name: str, coverage: float, left: float) -> None:
    found = measure(name, layers=2)
    assert found["params"] > 2.5e9
    assert found["coverage"] > coverage
    assert found["cut_params"] < found["params"] * left
    assert found["real_bytes_after_cut"] < 2**20
    assert found["peak_GB"] < 4  # the parameters would need more than 10


class _Mixed(nn.Module):
    """Real and meta parameters, buffers, plain tensors and lists, some of them tied."""

    def __init__(self) -> None:
        super().__init__()
        self.real = nn.Linear(4, 6)
        with torch.device("meta"):
            self.pretended = nn.Linear(6, 4)
            self.register_buffer("scale", torch.ones(4))
            self.plain = torch.ones(4)
            self.listed = [torch.ones(4), {"inside": (torch.ones(4),)}]
        self.again = self.pretended.weight
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x: Tensor) -> Tensor:
        if not bool(self.mask.any()):  # a real buffer keeps its content
            raise ValueError("no mask")
        hidden = self.pretended(self.real(x).relu()) * self.scale * self.plain * self.listed[0]
        return hidden * self.listed[1]["inside"][0] + self.again.t().sum(0) * 0


def test_real_and_meta_tensors_may_be_mixed() -> None:
    model = _Mixed()
    kept = [*model.parameters(), *model.buffers(), model.listed[0], *model.listed[1]["inside"], model.plain]
    space = niwaki.search_space(model, torch.randn(2, 4))
    assert [(group.name, group.units) for group in space.groups] == [("real", 6)]
    now = [*model.parameters(), *model.buffers(), model.listed[0], *model.listed[1]["inside"], model.plain]
    assert all(ours is before for ours, before in zip(now, kept, strict=True))
    assert model.again is model.pretended.weight and type(model.pretended.weight) is nn.Parameter


class _Asking(nn.Module):
    def __init__(self, of_input: bool) -> None:
        super().__init__()
        self.linear, self.of_input = nn.Linear(4, 4), of_input

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear(x)
        return hidden[(x if self.of_input else hidden).sum(1).nonzero()[:, 0]]


def test_a_line_that_needs_a_value_is_named() -> None:
    model = _on_meta(lambda: _Asking(of_input=False))
    parameters = dict(model.named_parameters())
    with pytest.raises(TraceError) as caught:
        niwaki.search_space(model, torch.randn(2, 4))
    text = str(caught.value)
    assert text.startswith("The model cannot be analysed on the meta device: ")
    assert "test_meta.py:" in text and "asks for the values of a tensor (aten.nonzero.default)" in text
    assert "analyse a model with real weights" in text
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


def test_what_depends_on_real_inputs_has_its_value() -> None:
    model = _on_meta(lambda: _Asking(of_input=True))
    assert niwaki.search_space(model, torch.ones(2, 4)).pins
    with pytest.raises(TraceError, match="Give the example inputs as real tensors"):
        niwaki.search_space(model, torch.ones(2, 4, device="meta"))


@dataclass(frozen=True)
class _Batch:
    image: Tensor
    more: list[Tensor]


class _FromBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, batch: _Batch) -> dict[str, Any]:
        batch.image.add_(1)
        return {"logits": self.two(self.one(batch.image) + batch.more[0])}


@pytest.mark.parametrize("given", ["cpu", "meta"])
@pytest.mark.parametrize("model", ["cpu", "meta"])
def test_inputs_inside_dataclasses(model: str, given: str) -> None:
    with torch.device(model):
        network = _FromBatch()
    batch = _Batch(torch.zeros(2, 4, device=given), [torch.zeros(2, 1, device=given)])
    space = niwaki.search_space(network, (batch,))
    assert [(group.name, group.units) for group in space.groups] == [("one", 6)]
    assert given == "meta" or not batch.image.any()
