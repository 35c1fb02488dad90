"""Implants by value per nanosecond: what is timed, what is chosen, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import niwaki
from niwaki.core.cost import ImplantTimes
from niwaki.core.edits import Implant
from niwaki.errors import BudgetError, MethodError
from niwaki.implants import ImplantLayers, choose, hap
from niwaki.implants.limits import latency_left
from niwaki.performance import implant_times as timing

X = torch.randn(2, 1, 8, 8)
HALF = niwaki.Budget(latency=0.6)


def network() -> nn.Module:
    """Most of the weights lie in the centres of the kernels."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 12, 5, padding=2), nn.Conv2d(12, 16, 3, padding=1)
    with torch.no_grad():
        first.weight[:, :, 2, 2] *= 10
        second.weight[:, :, 1, 1] *= 10
    return nn.Sequential(
        *(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    )


def space_of(fixed: float, slim: float = 10.0) -> niwaki.SearchSpace:
    """Every operator takes a thousand nanoseconds, and an output of a convolution a hundred."""
    space = niwaki.search_space(network(), X)
    model = space.cost_model
    assert model.work is not None
    times = {f"{at}.weight": ImplantTimes(inputs, 100.0, slim, fixed) for at, inputs in ((0, 1), (2, 12))}
    return replace(
        space, cost_model=replace(model.timed(np.full(len(model.work.names), 1e3), 0.0), implant_times=times)
    )


def implants_of(plan: niwaki.Plan) -> int:
    return sum(len(edit.slim) for edit in plan.edits_of(Implant))


def test_value_per_nanosecond() -> None:
    """Implants appear where they save time, and not where a second layer costs more than they save."""
    for fixed, some in ((0.0, True), (1e5, False)):
        space = space_of(fixed)
        scores = niwaki.score(space, "magnitude")
        plan = choose(space, scores, HALF)
        assert bool(implants_of(plan)) == some
        left = plan.provenance["predicted"]["latency"]
        assert 0.5 < left <= 0.6 and niwaki.check(space.model, plan, X).holds
        layers = ImplantLayers.of(space)
        slim = np.zeros(space.num_units, dtype=bool)
        for edit in plan.edits_of(Implant):
            (layer,) = [one for one in layers.layers if one.module == edit.module]
            slim[layer.units[list(edit.slim)].ravel()] = True
        assert latency_left(layers, space.keep_of(plan), slim) == left


def test_shares_of_implants() -> None:
    """A fixed share is removed further until the limit holds, with what the implants cost in time."""
    space = space_of(200.0)
    scores = niwaki.score(space, "magnitude")
    for plan in (choose(space, scores, HALF, implants=0.3), hap(space, scores, HALF, implants=0.3)):
        assert implants_of(plan) and plan.provenance["predicted"]["latency"] <= 0.6
    with pytest.raises(BudgetError, match="No choice with implants=0.5 was found within"):
        choose(space_of(1e6), scores, HALF, implants=0.5)


@pytest.mark.parametrize("saved", [0.5, 1.0, 1.3])
def test_predictions_are_corrected(saved: float) -> None:
    """Networks that save more or less time than predicted: the limit holds for what is measured."""
    space = space_of(0.0)
    scores, seen = niwaki.score(space, "magnitude"), list[float]()
    dense = space.cost().macs

    def measured(network: nn.Module) -> float:
        left = niwaki.search_space(network, X, rehearse=False).cost().macs / dense
        seen.append(max(0.01, 1 - saved * (1 - left)))
        return seen[-1]

    plan = choose(space, scores, HALF, measured=measured)
    found = plan.provenance["measured"]["latency"]
    assert found in seen and 0.45 < found <= 0.6 and plan.provenance["budget"]["latency"] == 0.6
    assert niwaki.check(space.model, plan, X).holds and len(seen) <= 7


def test_corrections_that_fail() -> None:
    space = space_of(0.0)
    scores = niwaki.score(space, "magnitude")
    with pytest.raises(
        BudgetError, match=r"No choice was found that is measured to take 60.0% of the latency \(the last"
    ):
        choose(space, scores, HALF, measured=lambda network: 0.9)
    with pytest.raises(BudgetError, match=r"measured= gave 'fast', and must give what share of the dense network's"):
        choose(space, scores, HALF, measured=lambda network: "fast")  # type: ignore[arg-type, return-value]
    with pytest.raises(BudgetError, match="measured= is a function of a network, for a budget that limits the latency"):
        choose(space, scores, niwaki.Budget(macs=0.5), measured=lambda network: 0.5)


def test_what_a_layer_saves() -> None:
    times = ImplantTimes(inputs=8, whole=100.0, slim=20.0, fixed=300.0)
    assert times.saved(8, 0) == 0.0 and times.saved(8, 10) == 500.0 and times.saved(4, 5) == -100.0
    assert times.price(8, 100) == 74.0 and times.price(8, 2) == 0.0


@pytest.mark.parametrize("rank", [None, 2])
def test_layers_are_timed(monkeypatch: pytest.MonkeyPatch, rank: int | None) -> None:
    monkeypatch.setattr("niwaki.performance.meters._SECONDS", 0.0)
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    model = nn.Sequential(*network(), nn.ReLU(), nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    space = niwaki.search_space(model, X)
    layers = ImplantLayers.of(space, rank)
    found = niwaki.timed(space, X, implants=layers)
    times = found.cost_model.implant_times
    assert set(times) == {layer.weight for layer in layers.layers} and len(times) > (2 if rank else 1)
    assert all(0 <= one.slim <= one.whole and one.fixed >= 0 for one in times.values())
    assert times["2.weight"].inputs == 12 and times["2.weight"].rank is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    scores = niwaki.score(found, "magnitude")
    plan = choose(found, scores, niwaki.Budget(latency=1.0, macs=0.7), rank=rank)
    assert found.cost(plan).macs <= 0.7 * found.cost().macs and plan.provenance["predicted"]["latency"] <= 1.0
    if rank is not None:
        with pytest.raises(BudgetError, match=r"implants=niwaki.implants.ImplantLayers.of\(space, rank=3\)\)"):
            choose(found, scores, HALF, rank=3)


def test_what_is_not_known() -> None:
    space = niwaki.search_space(network(), X)
    scores = niwaki.score(space, "magnitude")
    for call in (lambda: choose(space, scores, HALF), lambda: hap(space, scores, HALF)):
        with pytest.raises(BudgetError, match=r"How long implants in '0' take is not known. Time the space with them"):
            call()
    linear = niwaki.search_space(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(1, 2))
    with pytest.raises(BudgetError, match="The latency of this space is not known, and no layer can have implants"):
        choose(linear, niwaki.score(linear, "magnitude"), HALF)
    with pytest.raises(BudgetError, match="latency=300 asks for microseconds"):
        choose(space_of(0.0), scores, niwaki.Budget(latency=300))
    with pytest.raises(MethodError, match="implants must be the layers that can have them in this network"):
        niwaki.timed(space, X, implants=ImplantLayers.of(niwaki.search_space(network(), X)))
    with pytest.raises(MethodError, match="implants must be the layers that can have them in this network"):
        timing.implant_times(space, True, X)  # type: ignore[arg-type]
