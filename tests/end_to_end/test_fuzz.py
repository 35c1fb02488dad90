"""Random networks: whatever niwaki finds to remove obeys the law, whatever it pins has a reason.

``NIWAKI_NETWORKS`` is the number of networks of the exhaustive run (``-m ondemand``), ``NIWAKI_SEED`` where it starts.
The networks of CI have to go through every family of rules, and through nearly every rule.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from exactness import deviations
from hypothesis import HealthCheck, given, seed, settings
from networks import Image, Tokens, build, networks, odd_ones
from torch import nn

import niwaki
from niwaki import rules
from niwaki.rules.pointwise import pointwise
from niwaki.rules.registry import NAMED, RULES, Rule
from niwaki.testing.models import random_plan, randomised
from niwaki.trace.tracer import example_calls, trace

IN_CI = 250
PLANS = 2


@dataclass
class Tally:
    """What the networks of one run had to remove."""

    coverage: list[float] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)  # networks that a rule was asked in

    def __str__(self) -> str:
        cut = np.asarray(self.removed) > 0
        never = sorted(ALL_RULES - set(self.rules))
        return (
            f"{len(cut)} networks: mean coverage {np.mean(self.coverage):.3f}, {cut.mean():.1%} lose units, "
            f"{np.mean(self.removed):.1f} units on average; "
            f"{len(ALL_RULES) - len(never)} of {len(ALL_RULES)} rules, all but {', '.join(never)}"
        )

    def assert_substantial(self) -> None:
        """A network in which everything is pinned obeys the law, too."""
        assert np.mean(self.coverage) > 0.5, str(self)
        assert (np.asarray(self.removed) > 0).mean() > 0.85, str(self)


def _name(rule: Rule) -> str:
    return f"{rule.__module__.rsplit('.', 1)[-1]}.{rule.__qualname__}"


ALL_RULES = {_name(rule) for rule in (*RULES.values(), *NAMED.values(), pointwise)}


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that an analysis might change."""
    found: dict[str, Any] = {"rng": torch.random.get_rng_state().tolist()}
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            if not name.startswith("_"):
                found[f"{path}.{name}"] = (type(value), value)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[name] = (id(tensor), tensor.detach().clone().tolist())
    return found


def obeys(spec: Image | Tokens, tally: Tally) -> None:
    model, inputs = build(spec)
    randomised(model)
    before = state_of(model)
    space = niwaki.search_space(model, inputs)
    assert state_of(model) == before
    for pin in space.pins:
        assert pin.count > 0 and pin.reason and pin.reason != "nothing constrains it", str(pin)
    rng = np.random.default_rng(0)
    most = 0
    for number in range(PLANS):
        plan = random_plan(space, rng)
        most = max(most, sum(plan.units.values()) - sum(map(len, plan.kept.values())))
        found = deviations(model, plan, inputs, train=number == 0)
        assert found["eval"] <= 1e-10, found
        assert found.get("train", 0.0) <= 1e-8, found
    runs = trace(model, example_calls(inputs), every=True).runs
    asked = {rules.find(node.operator) for run in runs for node in run.nodes}
    tally.rules.update(_name(rule) for rule in asked if rule is not None)
    tally.coverage.append(space.coverage)
    tally.removed.append(most)


def many(number: int, start: int | None) -> Tally:
    tally = Tally()

    def run(spec: Image | Tokens) -> None:
        obeys(spec, tally)

    test: Callable[[], None] = given(networks)(run)
    if start is not None:
        test = seed(start)(test)
    settings(
        max_examples=number,
        deadline=None,
        derandomize=start is None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(test)()
    return tally


def test_random_networks() -> None:
    tally = many(IN_CI, None)
    for spec in odd_ones:  # chance would leave out some of them, and with them families of rules
        obeys(spec, tally)
    print(tally)
    tally.assert_substantial()
    families = {rule.split(".")[0] for rule in ALL_RULES} - {"grouped_mm"}  # no random network has experts
    assert {rule.split(".")[0] for rule in tally.rules} >= families
    assert len(tally.rules) > 0.8 * len(ALL_RULES), str(tally)


@pytest.mark.ondemand
def test_many_random_networks() -> None:
    tally = many(int(os.environ.get("NIWAKI_NETWORKS", "10000")), int(os.environ.get("NIWAKI_SEED", "0")))
    print(tally)
    tally.assert_substantial()
