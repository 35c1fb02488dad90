"""Hessian-Aware Pruning in one call: that it is the choice of the paper, and what it says of bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from implanted import blocks_space, images
from torch import Tensor, nn

import niwaki
from niwaki import HAP, implants
from niwaki.core.edits import Implant
from niwaki.errors import BudgetError, MethodError, NiwakiError, UnknownName
from niwaki.implants import ImplantLayers

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def given() -> tuple[ImplantLayers, Tensor, dict[str, Any]]:
    _, layers = blocks_space()
    torch.manual_seed(1)
    data = [(images(8), torch.randint(0, 4, (8,))) for _ in range(2)]
    return layers, images(), {"batches": data, "loss_fn": nn.CrossEntropyLoss()}


def test_it_is_the_choice_of_the_paper(given: tuple[ImplantLayers, Tensor, dict[str, Any]]) -> None:
    """One quantile over all units, at least 5 % and one of each group, the top ones by sensitivity; the most sensitive
    tenth of what would leave, of what can, is implanted. Word by word, in plain numpy."""
    layers, x, data = given
    space = layers.space
    pruned = niwaki.prune(space.model, x, **data, method=HAP(removed=0.7, implants=0.25, probes=3), seed=5)
    values = niwaki.score(space, "relative_hessian_trace", *data.values(), probes=3, seed=5).values
    bar = np.sort(values)[math.floor(0.7 * space.num_units)]
    leaves = values < bar
    for group in space.groups:
        own = values[group.numbers]
        top = np.argsort(own)[::-1][: max(1, math.ceil(0.05 * group.units))]
        leaves[group.first + top] = False
    candidates = sorted((unit for unit in np.flatnonzero(leaves & layers.can)), key=lambda unit: -values[unit])
    slim = candidates[: math.floor(0.25 * leaves.sum())]
    keep = ~leaves
    keep[slim] = True
    assert np.array_equal(space.keep_of(pruned.plan), keep)
    found = sum(len(edit.slim) for edit in pruned.plan.edits_of(Implant))
    assert found >= len(slim) > 0
    assert pruned.report.method == "hap" and pruned.report.rounds == 1 and pruned.report.repair == "norms"
    assert set(pruned.report.losses) == {"dense", "cut", "repaired"}
    assert niwaki.check(space.model, pruned.plan, x).holds


def test_every_group_keeps_its_share(given: tuple[ImplantLayers, Tensor, dict[str, Any]]) -> None:
    space = given[0].space
    plan = implants.hap(space, niwaki.score(space, "magnitude"), 1.0, implants=0.0, least=0.3)
    assert [len(plan.kept[group.name]) for group in space.groups] == [math.ceil(0.3 * g.units) for g in space.groups]
    assert max(group.units for group in space.groups) > 3, "more than the one unit that always stays"


def test_norms_have_the_statistics_of_the_batches() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(192, 3))
    data = [(torch.randn(32, 1, 4, 4), torch.randint(0, 3, (32,)))]
    pruned = niwaki.prune(
        *(net, data[0][0], niwaki.Budget(macs=0.5)), batches=data, loss_fn=nn.CrossEntropyLoss(), method="hap"
    )
    made = pruned.model[0](data[0][0])
    assert torch.allclose(pruned.model[1].running_mean, made.mean((0, 2, 3)), atol=1e-5)


def test_a_budget_removes_the_fewest_units_that_meet_it(given: tuple[ImplantLayers, Tensor, dict[str, Any]]) -> None:
    layers, _, _ = given
    space = layers.space
    scores = niwaki.score(space, "magnitude")
    for budget in (niwaki.Budget(macs=0.5), niwaki.Budget(macs=0.8, params=0.4), niwaki.Budget(macs=0.6, round_to=4)):
        plan = implants.hap(space, scores, budget)
        limits, cost = budget.absolute(space), space.cost(plan)
        assert all(getattr(cost, name) <= limit for name, limit in limits.items())
        if budget.round_to == 1:
            fraction = plan.provenance["removed"]
            assert implants.hap(space, scores, fraction).kept == plan.kept
            more = space.cost(implants.hap(space, scores, fraction - 1.5 / space.num_units))
            assert any(getattr(more, name) > limit for name, limit in limits.items())
        else:
            assert all(len(kept) % 4 == 0 or len(kept) == plan.units[name] for name, kept in plan.kept.items())


def test_bad_input_is_told(given: tuple[ImplantLayers, Tensor, dict[str, Any]]) -> None:
    layers, x, data = given
    net, budget = layers.space.model, niwaki.Budget(macs=0.5)
    few = HAP(probes=1)
    scores = niwaki.score(layers.space, "magnitude")

    def told(error: type[NiwakiError], match: str, **changed: Any) -> None:
        with pytest.raises(error, match=match):
            niwaki.prune(**{"model": net, "inputs": x, "budget": budget, "method": few, **data, **changed})

    missing: dict[str, Any] = {"batches": None, "loss_fn": None}
    for method in (few, "hap"):
        told(
            *(MethodError, "method='hap' needs batches and loss_fn: it takes second derivatives of the loss, on data."),
            **missing,
            method=method,
        )
    neither = "Hessian-Aware Pruning has neither a budget nor a fraction of the units to remove. Give one of both: niw"
    told(BudgetError, neither, budget=None)
    told(BudgetError, "has a budget and a fraction of the units to remove. Give one", method=HAP(removed=0.5))
    told(BudgetError, "budget=None is not a budget. Name its measure", budget=None, method="taylor1")
    memory = "With implants a budget limits macs and params, and the latency .* and this one limits memory"
    told(BudgetError, memory, budget=niwaki.Budget(memory=0.5))
    own = r"is for criteria that score units, and method='hap' makes its choice itself, in one round. Leave it out."
    for name, value in {"rounds": 4, "compare": "space", "refine": 1, "readers": True}.items():
        told(MethodError, rf"{name}={value!r} {own}", **{name: value})
    told(MethodError, "method='hap' removes units, and remove='both' asks for whole structures.", remove="both")
    for name in ("removed", "implants", "least"):
        with pytest.raises(BudgetError, match=f"{name}=1.5 must be a fraction from 0 to 1"):
            HAP(**{"removed": 0.5, "probes": 1, name: 1.5})
    told(
        UnknownName,
        r"There is no method 'happ'. Did you mean hap\? There are surgeon, cap, hap and the criteria",
        method="happ",
    )
    with pytest.raises(BudgetError, match=r"cannot be met: with the fraction 0.05 of every group, and the fraction 0"):
        implants.hap(layers.space, scores, niwaki.Budget(macs=0.001))


def test_fine_tuning_is_that_of_the_paper() -> None:
    layer = nn.Linear(2, 2)
    optimizer, schedule = HAP.fine_tuning(layer, 8)
    assert {k: optimizer.defaults[k] for k in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.02,
        "momentum": 0.9,
        "weight_decay": 4e-4,
    }
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.02] * 4 + [0.002] * 2 + [0.0002] * 2)
    with pytest.raises(MethodError, match="steps=0 must be a whole number, 1 or more: how many steps are taken."):
        HAP.fine_tuning(layer, 0)
