"""The law on well-known models: what is cut computes what is zeroed; and how much of them can be cut at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from exactness import deviations
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO

import niwaki
from niwaki.core.edits import Keep
from niwaki.core.space import SearchSpace
from niwaki.testing.models import random_plan, randomised
from niwaki.verify import difference

TOLERANCE = {"float32": 1e-5, "eval": 1e-10, "train": 1e-8}
IN_CI, ON_DEMAND = 2, 20

# Without these, whose cost is the number of their operators or of their parameters, the rest take seconds.
SLOW = {"vgg16_bn", "vit_b_16", "swin_t", "convnext_tiny"} | {
    name for name in ZOO if name.startswith("timm_") and name != "timm_vit_tiny"
}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in ZOO]
COUNTED = ["resnet18", "mobilenet_v3_small", "regnet_y_400mf", "shufflenet_v2_x1_0", "googlenet", "gpt2", "llama"]


@dataclass(frozen=True)
class Analysed:
    """A model of the zoo with random weights, and what can leave it."""

    name: str
    model: nn.Module
    space: SearchSpace


def analyse(name: str) -> Analysed:
    torch.manual_seed(0)
    model = randomised(ZOO[name].build().eval())
    return Analysed(name, model, niwaki.search_space(model, ZOO[name].inputs()))


@pytest.fixture(scope="module", params=NAMES)
def known(request: pytest.FixtureRequest) -> Analysed:
    """All tests of one model follow one another and share its analysis."""
    return analyse(request.param)


def plans(space: SearchSpace, number: int) -> Iterator[niwaki.Plan]:
    rng = np.random.default_rng(0)
    for _ in range(number):
        yield random_plan(space, rng)


def obeys(known: Analysed, number: int) -> None:
    space, entry = known.space, ZOO[known.name]
    least = space.least_cost().macs / space.cost().macs
    print(f"{known.name}: coverage {space.coverage:.4f}, least MACs {least:.4f}, {space.num_units} units")
    for index, plan in enumerate(plans(space, number)):
        found = deviations(known.model, plan, entry.inputs(), train=entry.train and index < max(1, number // 5))
        print("   ", {what: f"{value:.1e}" for what, value in found.items()})
        assert all(value <= TOLERANCE[what] for what, value in found.items()), found


def test_the_law(known: Analysed) -> None:
    obeys(known, IN_CI)


def test_coverage(known: Analysed) -> None:
    assert known.space.coverage >= ZOO[known.name].coverage
    mishaps = [note for note in known.space.notes if "also returns" not in note]  # caches beside the outputs
    assert not mishaps, mishaps


def test_cost_of_a_plan_is_that_of_the_cut_model(known: Analysed) -> None:
    plan = next(plans(known.space, 1))
    small, cost = niwaki.cut(known.model, plan), known.space.cost(plan)
    assert sum(parameter.numel() for parameter in small.parameters()) == cost.params
    held = {id(tensor): tensor.numel() * tensor.itemsize for tensor in [*small.parameters(), *small.buffers()]}
    assert sum(held.values()) == cost.memory
    if known.name in COUNTED:
        assert counted(known.model, known.name) == known.space.cost().macs
        assert counted(small, known.name) == cost.macs


def counted(model: nn.Module, name: str) -> int:
    """Multiply-accumulates by torch's own counter; attention, which it misses on the CPU, takes its decomposed form."""
    inputs = ZOO[name].inputs()
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return counter.get_total_flops() // 2


@pytest.mark.ondemand
@pytest.mark.parametrize("name", list(ZOO))
def test_the_law_at_length(name: str) -> None:
    obeys(analyse(name), ON_DEMAND)


def test_the_law_can_fail() -> None:
    """A blind comparison would pass everything: here one row too many, one tensor of another shape, one NaN."""
    ones = torch.ones(3)
    assert difference([ones], [ones]) == 0
    assert difference([ones], [ones * (1 + 1e-6)]) > 1e-7
    assert difference([ones], [torch.ones(4)]) == float("inf")
    assert difference([ones], [ones / 0]) == float("inf")
    assert difference([ones], []) == float("inf")
    net = nn.Sequential(nn.Linear(3, 6), nn.Sigmoid(), nn.Linear(6, 2))
    space = niwaki.search_space(net, torch.randn(2, 3))
    plan = next(plans(space, 1))
    good = deviations(net, plan, torch.randn(2, 3))
    assert all(value <= TOLERANCE[what] for what, value in good.items())
    kept = plan.kept["0"]
    other = tuple(sorted({(unit + 1) % 6 for unit in kept}))
    columns = Keep("2.weight", 1, other)  # the second layer keeps the wrong columns
    edits = tuple(columns if edit.place == columns.place else edit for edit in plan.edits)
    assert edits != plan.edits
    wrong = replace(plan, edits=edits)
    bad = deviations(net, wrong, torch.randn(2, 3))
    assert bad["eval"] > 1e-3 and bad["float32"] > 1e-3


def test_sparse_outputs_are_compared() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.last(self.first(x).relu())
            return made.to_sparse()

    net, x = Sparse(), torch.randn(5, 4)
    space = niwaki.search_space(net, x)
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
    outcome = niwaki.check(net, plan, x)
    assert outcome.holds and outcome.distance > 0.01
