"""The search space after a cut, found without a trace: its plans obey the law, and plans in a row add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import zoo
from exactness import deviations
from hypothesis import HealthCheck, given, settings
from networks import Image, Tokens, build, networks
from torch import nn

import niwaki
from niwaki.core.compose import composed, difference
from niwaki.core.edits import Rescale, SetAttribute, SetScalar
from niwaki.surgery.history import plan_of
from niwaki.testing.models import random_plan, randomised

MODELS = ["mobilenet_v3_small", "shufflenet_v2_x1_0", "swin_t", "qwen3", "t5"]


def numbers_of(plan: niwaki.Plan) -> dict[Any, Any]:
    """What a plan sets, by place."""
    edits: dict[Any, Any] = {(e.module, e.name, e.where): e.value for e in plan.edits_of(SetAttribute)}
    edits |= {(e.module, e.name): pytest.approx(e.value) for e in plan.edits_of(SetScalar)}
    return edits | {e.tensor: pytest.approx(e.factor) for e in plan.edits_of(Rescale)}


def positions_of(plan: niwaki.Plan) -> dict[str, dict[int, tuple[int, ...]]]:
    return {name: {dim: tuple(kept) for dim, kept in dims.items()} for name, dims in plan.tensors.items()}


def units_of(plan: niwaki.Plan) -> dict[str, tuple[int, ...]]:
    return {name: tuple(kept) for name, kept in plan.kept.items()}


def two_steps(model: nn.Module, inputs: Any, seed: int = 0) -> None:
    """Cut twice; the second time by the space that was only given new numbers."""
    rng = np.random.default_rng(seed)
    space = niwaki.search_space(model, inputs, rehearse=False)
    first = random_plan(space, rng)
    small = niwaki.cut(model, first)
    rest = niwaki.reindex(space, first, small)
    second = random_plan(rest, rng)
    assert deviations(small, second, inputs, train=False)["eval"] <= 1e-10

    before = np.flatnonzero(space.keep_of(first))
    keep = np.zeros(space.num_units, dtype=bool)
    keep[before[rest.keep_of(second)]] = True
    whole = space.plan(keep)
    assert rest.cost() == space.cost(first)
    assert rest.cost(second) == space.cost(whole)
    assert positions_of(composed(first, second)) == positions_of(whole)
    assert numbers_of(composed(first, second)) == numbers_of(whole)
    assert units_of(composed(first, second)) == units_of(whole)
    assert positions_of(difference(first, whole)) == positions_of(second)
    assert difference(first, whole).units == second.units

    smallest = niwaki.cut(small, second)
    assert numbers_of(plan_of(smallest) or second) == numbers_of(whole)  # it remembers what was done to the dense one
    for other in (niwaki.cut(model, whole), niwaki.cut(small, whole)):
        for (name, ours), theirs in zip(smallest.state_dict().items(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)

    own = niwaki.search_space(small, inputs, rehearse=False).cost()
    assert (own.params, own.memory) == (rest.cost().params, rest.cost().memory)
    # torch runs a sum of products over a dimension of one position as a product, which counts no MACs
    assert own.macs == pytest.approx(rest.cost().macs, rel=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    entry = zoo.ZOO[name]
    two_steps(randomised(entry.build()), entry.inputs())


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(networks)
def test_random_networks(spec: Image | Tokens) -> None:
    model, inputs = build(spec)
    two_steps(randomised(model), inputs)
