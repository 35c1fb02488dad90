"""Union streams within a latency: branches for which index operators do not pay have all channels of their streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from replacements import Case
from torch import nn

import niwaki
from niwaki.core.edits import Gather, Scatter
from niwaki.errors import BudgetError, PlanError, TraceError
from niwaki.performance import union_latency
from niwaki.performance.meters import Limit
from niwaki.performance.union_latency import EndTime, end_times
from niwaki.unions import UnionSpace


@pytest.fixture(scope="module")
def case() -> tuple[Case, UnionSpace]:
    found = Case.of("resnet")
    return found, UnionSpace.of(found.space, readers=True)


def entries(network: nn.Module) -> float:
    return float(sum(parameter.numel() for parameter in network.parameters()))


@pytest.fixture
def timeless(monkeypatch: pytest.MonkeyPatch, case: tuple[Case, UnionSpace]) -> list[str]:
    """Parameters stand for microseconds, and the branches of the list that comes do not pay."""
    slow: list[str] = []
    dense = entries(case[0].network)

    def meters(space: object, limits: dict[str, float], inputs: object) -> dict[str, Limit]:
        return {"latency": Limit(limits["latency"], 0.05, "microseconds", lambda one: (entries(one), dense))}

    def times(space: UnionSpace, keep: object, masks: Sequence[Any], inputs: object) -> list[EndTime]:
        narrow = [name for name, mask in zip(space.writers.names, masks, strict=True) if not mask.all()]
        return [EndTime(name, 2.0 if name in slow else 1.0, 1.5) for name in narrow]

    monkeypatch.setattr(union_latency, "meters", meters)
    monkeypatch.setattr(union_latency, "end_times", times)
    return slow


def test_the_measured_latency_is_met(case: tuple[Case, UnionSpace], timeless: list[str]) -> None:
    cut, space = case
    scores = niwaki.score(space, "magnitude")
    plan = niwaki.choose(space, scores, niwaki.Budget(latency=0.6), example_inputs=cut.x)
    told = plan.provenance["measured"]["latency"]
    assert 0.5 < told["kept"] / told["dense"] <= 0.6 and plan.provenance["whole"] == []
    assert plan.edits_of(Scatter) and plan.edits_of(Gather) and niwaki.check(cut.network, plan, cut.x).holds
    assert entries(niwaki.cut(cut.network, plan)) == told["kept"]
    timeless += space.writers.names  # nothing pays: no index operators
    plan = niwaki.choose(space, scores, niwaki.Budget(latency=0.6), example_inputs=cut.x)
    assert not plan.edits_of(Scatter) and not plan.edits_of(Gather)
    assert plan.provenance["whole"] and set(plan.provenance["whole"]) <= set(timeless)
    assert plan.provenance["measured"]["latency"]["kept"] <= 0.6 * told["dense"]


def test_other_limits_come_first(case: tuple[Case, UnionSpace], timeless: list[str]) -> None:
    """Where a limit of MACs needs the narrow branches they stay narrow, whatever they take."""
    cut, space = case
    scores = niwaki.score(space, "magnitude")
    budget = niwaki.Budget(latency=1.0, macs=0.4)
    timeless += space.writers.names
    plan = niwaki.choose(space, scores, budget, example_inputs=cut.x)
    assert plan.edits_of(Scatter) and space.cost(plan).macs <= 0.4 * space.cost().macs


def test_times_of_index_operators(case: tuple[Case, UnionSpace]) -> None:
    """Of each end that has channels of its own, the layers are timed with theirs and with all."""
    cut, space = case
    keep = np.ones(cut.space.num_units, dtype=bool)
    masks = [(np.arange(len(end.units)) + place) % 3 > 0 for place, end in enumerate(space.writers.ends)]
    masks[1][:] = True
    found = end_times(space, keep, masks, cut.x)
    assert [one.name for one in found] == [name for place, name in enumerate(space.writers.names) if place != 1]
    assert all(one.own > 0 and one.whole > 0 for one in found)
    assert EndTime("", 1.0, 2.0).pays and not EndTime("", 2.0, 2.0).pays


def test_what_cannot_be_met(case: tuple[Case, UnionSpace], timeless: list[str]) -> None:
    cut, space = case
    scores = niwaki.score(space, "magnitude")
    with pytest.raises(BudgetError, match=r"cannot be met: with the fraction 0.05 .* microseconds were measured"):
        niwaki.choose(space, scores, niwaki.Budget(latency=0.01), example_inputs=cut.x)
    with pytest.raises(BudgetError, match="For union streams a budget limits macs, params, memory.*asks for units"):
        niwaki.choose(space, scores, niwaki.Budget(latency=0.5, units=0.5), example_inputs=cut.x)


def test_inputs_are_needed(case: tuple[Case, UnionSpace]) -> None:
    space = case[1]
    scores = niwaki.score(space, "magnitude")
    with pytest.raises(
        TraceError, match="The network does not run on these inputs: RuntimeError: .*Pass inputs that it"
    ):
        niwaki.choose(space, scores, niwaki.Budget(latency=0.5), example_inputs=case[0].x[0, 0])
    with pytest.raises(BudgetError, match="scores must be of writers.scored_space"):
        niwaki.choose(space, 3, niwaki.Budget(latency=0.5), example_inputs=case[0].x)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="readers='yes' must be True or False: whether branches choose what they read"):
        UnionSpace.of(case[0].space, readers="yes")  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="niwaki must run the network: pass example inputs"):
        union_latency.fit_union_latency(space, scores, niwaki.Budget(latency=0.5), None)
