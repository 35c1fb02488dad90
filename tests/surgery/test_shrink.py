"""Shrinking in place: the cut, carried out on a network in training, with everything that hangs on its parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from exactness import outputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora import Llama, adapted, lora_layers, merged
from networks import Image, Tokens, build, networks
from small import Small, images
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import Keep, Rescale
from niwaki.errors import PlanError
from niwaki.surgery.history import plan_of
from niwaki.testing.models import random_plan, randomised

Make = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False, amsgrad=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}
COUPLED: dict[str, Make] = {
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "muon": lambda p: torch.optim.Muon(p, lr=0.01),
}


class Matrices(nn.Module):
    """All weights are matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(a, b, bias=False) for a, b in ((5, 12), (12, 16), (16, 3))])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


def setting(model: nn.Module, inputs: Any, seed: int = 0) -> niwaki.Plan:
    """A random plan for a model whose values are all different."""
    randomised(model)
    return random_plan(niwaki.search_space(model, inputs), np.random.default_rng(seed))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = model(inputs).square().mean()
    loss.backward()
    optimizer.step()
    return loss


def in_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups of different learning rates."""
    parameters = list(model.parameters())
    return [{"params": parameters[::2]}, {"params": parameters[1::2], "lr": 0.005}]


def by_hand(tensor: Tensor, plan: niwaki.Plan, name: str, like: torch.Size) -> Tensor:
    """A state tensor as the plan leaves it: entries are looked up one dimension after the other."""
    if tensor.numel() == 1:
        return tensor.clone()
    for dim, stays in plan.tensors.get(name, {}).items():
        if tensor.shape[dim] == like[dim] and like[dim] > 1:
            tensor = torch.stack([tensor.select(dim, position) for position in stays], dim)
    return tensor.clone()


def twin(model: nn.Module, optimizer: torch.optim.Optimizer, make: Make, plan: niwaki.Plan) -> Any:
    """The small network that `cut` makes, with an optimizer of its own whose state was cut by hand."""
    small = niwaki.cut(model, plan)
    other = make(in_groups(small))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    mine = dict(small.named_parameters())
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        other.state[mine[name]] = {
            key: by_hand(value, plan, name, parameter.shape) if isinstance(value, Tensor) else copy.copy(value)
            for key, value in state.items()
        }
    return small, other


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    left, right = ours.state_dict(), theirs.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x1_0", "swin_t", "qwen3", "t5"])
def test_a_shrunk_model_is_the_cut_one(name: str) -> None:
    entry = zoo.ZOO[name]
    model = entry.build().eval()
    plan = setting(model, entry.inputs())
    small, objects = niwaki.cut(model, plan), {n: id(p) for n, p in model.named_parameters()}
    niwaki.shrink(model, plan)
    assert {n: id(p) for n, p in model.named_parameters()} == objects
    assert_same(model, small)
    assert str(model) == str(small)
    for ours, theirs in zip(
        outputs(model, entry.inputs(), torch.float32), outputs(small, entry.inputs(), torch.float32), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert plan_of(model) is plan


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(networks, st.sampled_from(sorted(OPTIMIZERS)), st.integers(0, 99))
def test_the_next_step_is_that_of_a_small_network_made_by_hand(spec: Image | Tokens, name: str, seed: int) -> None:
    model, inputs = build(spec)
    plan = setting(model, inputs, seed)
    model.double().train()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    optimizer = OPTIMIZERS[name](in_groups(model))
    for _ in range(2):
        step(model, optimizer, inputs)
    small, other = twin(model, optimizer, OPTIMIZERS[name], plan)
    niwaki.shrink(model, plan, optimizer)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters())), "the optimizer owns all parameters"
    for network, its in ((model, optimizer), (small, other)):
        torch.manual_seed(0)
        step(network, its, inputs)
    repaired = {edit.tensor for edit in plan.edits_of(Rescale)}
    for (path, ours), theirs in zip(model.named_parameters(), small.parameters(), strict=True):
        if path not in repaired:  # whose averages are rescaled with them
            assert torch.equal(ours, theirs), path


@pytest.mark.parametrize("name", sorted(COUPLED))
def test_optimizers_that_couple_entries(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = Matrices(), torch.randn(6, 5)
    plan = setting(model, inputs)
    optimizer = COUPLED[name](in_groups(model))
    for _ in range(2):
        step(model, optimizer, inputs)
    small, other = twin(model, optimizer, COUPLED[name], plan)
    niwaki.shrink(model, plan, optimizer)
    step(model, optimizer, inputs), step(small, other, inputs)
    assert_same(model, small)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_same_path(name: str) -> None:
    """Twenty steps with and without the units that are zero, and stay zero, agree."""
    torch.manual_seed(0)
    model = Small()
    plan = setting(model, images())
    model = _silenced(model.double(), plan)
    other = copy.deepcopy(model)
    optimizer, large = OPTIMIZERS[name](in_groups(model)), OPTIMIZERS[name](in_groups(other))
    niwaki.shrink(model, plan, optimizer)
    for number in range(20):
        x = images(seed=number).double()
        ours, theirs = step(model, optimizer, x), step(other, large, x)
        other = _silenced(other, plan)
        assert abs(ours.item() - theirs.item()) <= 1e-12 * abs(theirs.item())
    small = niwaki.cut(other, plan)
    for (path, left), right in zip(model.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12, msg=path)


def test_pairs_of_adapters_lose_the_same_units() -> None:
    """Weight and adapter are one unit: both shrink, with what the optimizer knows of the adapter, and can be merged."""
    torch.manual_seed(0)
    model = adapted(Llama().double())
    for _, module in lora_layers(model):
        nn.init.normal_(module.lora_B["default"].weight, std=0.1)
    tokens = torch.randint(0, 11, (2, 5))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)

    def advance() -> None:
        optimizer.zero_grad()
        model(tokens).square().mean().backward()
        optimizer.step()

    advance()
    plan = random_plan(niwaki.search_space(model, tokens), np.random.default_rng(1))
    expected, before = niwaki.cut(model, plan)(tokens), {id(p) for p in model.parameters()}
    dense = copy.deepcopy(dict(model.named_parameters()))
    niwaki.shrink(model, plan, optimizer)
    assert {id(p) for p in model.parameters()} == before
    assert torch.equal(model(tokens), expected)
    for _, module in lora_layers(model):
        rows, columns = module.base_layer.weight.shape
        assert module.lora_B["default"].weight.shape[0] == rows
        assert module.lora_A["default"].weight.shape[1] == columns
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in dense.values())
    advance()
    assert all(value.shape in ((), p.shape) for p, state in optimizer.state.items() for value in state.values())
    trained = model(tokens)
    assert torch.allclose(merged(model)(tokens), trained)


def _silenced(model: nn.Module, plan: niwaki.Plan) -> nn.Module:
    """Zeros in every removed unit, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for dim, stays in plan.tensors.get(name, {}).items():
                gone = [position for position in range(parameter.shape[dim]) if position not in set(stays)]
                if isinstance(plan.at["keep", name, dim], Keep):
                    parameter.index_fill_(dim, torch.tensor(gone), 0)
    return model


def test_what_is_no_plan_is_told(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    space = niwaki.search_space(net, x)
    before = copy.deepcopy(net.state_dict())
    uses: dict[str, Callable[[Any], object]] = {
        "cut": lambda plan: niwaki.cut(net, plan),
        "shrink": lambda plan: niwaki.shrink(net, plan),
        "check": lambda plan: niwaki.check(net, plan, x),
        "save": lambda plan: niwaki.save(net, tmp_path / "here", plan=plan),
        "fold": lambda plan: niwaki.fold_constants(space, plan, x),
        "compensate": lambda plan: niwaki.compensate(space, plan, [x]),
    }
    for use in uses.values():
        for wrong in ("plan.json", tmp_path, {"kept": {}}):
            with pytest.raises(
                PlanError,
                match=rf"plan is a {type(wrong).__name__}, but must be a niwaki.Plan: .*Plan.from_json\(text\)",
            ):
                use(wrong)
    assert not list(tmp_path.iterdir()) and all(torch.equal(before[name], p) for name, p in net.state_dict().items())
