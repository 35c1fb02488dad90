"""What methods drive to zero is enough: with the driven entries at zero, and no others, the network is the cut one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from exactness import outputs
from hypothesis import HealthCheck, given, settings
from networks import Image, Tokens, build, networks
from torch import Tensor, nn

import niwaki
from niwaki.core.precision import doubled
from niwaki.surgery.cut import duplicate
from niwaki.testing.models import random_plan, randomised
from niwaki.verify import difference


def silenced(model: nn.Module, space: niwaki.SearchSpace, plan: niwaki.Plan) -> nn.Module:
    """A copy in which all driven entries of the removed units are zero, as a method leaves them."""
    quiet = duplicate(model)
    gone = np.append(~space.keep_of(plan), False)
    parameters = dict(quiet.named_parameters())
    with torch.no_grad():
        for place in space.dims:
            if place.parameter and place.role.zeroed_by_method:
                rows = torch.from_numpy(np.flatnonzero(gone[place.units].any(axis=1)))
                parameters[place.tensor].index_fill_(place.dim, rows, 0)
    return quiet


def departure(model: nn.Module, inputs: Any) -> float:
    """How far the cut network is from the dense one in which the driven entries are zero."""
    space = niwaki.search_space(model, inputs, rehearse=False)
    worst = 0.0
    for seed in range(2):
        plan = random_plan(space, np.random.default_rng(seed))
        dense = duplicate(model).double().eval()
        with torch.no_grad(), doubled():
            cut = outputs(niwaki.cut(dense, plan), inputs, torch.float64)
            worst = max(worst, difference(cut, outputs(silenced(dense, space, plan), inputs, torch.float64)))
    return worst


@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(networks)
def test_random_networks(spec: Image | Tokens) -> None:
    model, inputs = build(spec)
    assert departure(randomised(model), inputs) <= 1e-10


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x1_0", "timm_vit_tiny", "qwen3", "t5", "gpt2"])
def test_models(name: str) -> None:
    entry = zoo.ZOO[name]
    if entry.train:
        assert departure(randomised(entry.build()), entry.inputs()) <= 1e-10


def standardised(layer: nn.Linear) -> nn.Module:
    """A weight divided by the root of the sum of its squares, along both dimensions in turn."""

    class Standardised(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            weight = weight / weight.square().sum(1, keepdim=True).sqrt()
            return weight / weight.square().sum(0, keepdim=True).add(1).sqrt()

    return nn.utils.parametrize.register_parametrization(layer, "weight", Standardised())


class Tied(nn.Module):
    """The same weight there and back, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 6))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.weight).relu(), self.weight.T)


def test_a_weight_that_makes_and_reads() -> None:
    """It reads the hidden units that it makes, beside a bias that makes them alone."""
    torch.manual_seed(0)
    for model in (Tied(), nn.Sequential(nn.Linear(3, 6), Tied(), nn.Linear(6, 2))):
        inputs = torch.randn(5, 6 if isinstance(model, Tied) else 3)
        assert departure(model, inputs) <= 1e-10
        assert niwaki.search_space(model, inputs).num_units >= 12


NORMALISED: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "weight norm over all": lambda layer: nn.utils.parametrizations.weight_norm(layer, dim=None),
    "old weight norm": nn.utils.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "by hand": standardised,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", NORMALISED)
def test_normalised_weights(name: str) -> None:
    """A weight whose entries count for one another, also those that read what has left."""
    torch.manual_seed(0)
    layer = NORMALISED[name](nn.Linear(12, 8))
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), layer, nn.ReLU(), nn.Linear(8, 3)).eval()
    assert departure(model, torch.randn(5, 6)) <= 1e-10
    assert niwaki.search_space(model, torch.randn(5, 6)).num_units >= 12
