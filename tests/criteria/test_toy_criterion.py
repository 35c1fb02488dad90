"""A new criterion is one new file: a function from sums over units to a score of each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from optimizers import same
from torch import Tensor
from training import SCHEDULE, Training, sgd

import niwaki
from niwaki.criteria import criteria, criterion, registry
from niwaki.errors import UnknownName
from niwaki.per_unit.sums import UnitSums
from niwaki.selection.budget import Budget


def evenness(unit: UnitSums) -> Tensor:
    """||x||_1 / (sqrt(|x|) ||x||), in (0, 1]: 1 where all weights of a unit are equally large."""
    return unit.absolute / (unit.entries * unit.square).sqrt().clamp(min=1e-30)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With the criterion; without it again afterwards."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    criterion("evenness", reads=("absolute", "square", "entries"))(evenness)
    yield
    monkeypatch.undo()
    assert "evenness" not in criteria()


def made() -> niwaki.SearchSpace:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 7), torch.nn.ReLU(), torch.nn.Linear(7, 2)
    ).double()
    return niwaki.search_space(model, torch.randn(1, 4, dtype=torch.float64))


def by_hand(space: niwaki.SearchSpace) -> np.ndarray:
    layers = [space.model[0], space.model[2]]
    rows = [row for layer in layers for row in torch.cat([layer.weight, layer.bias[:, None]], 1).detach()]
    return np.array([float(row.abs().sum() / (row.norm() * len(row) ** 0.5)) for row in rows])


def test_it_scores_and_decides_a_choice() -> None:
    space = made()
    scores = niwaki.score(space, "evenness")
    np.testing.assert_allclose(scores.values, by_hand(space), rtol=1e-12)
    plan = niwaki.choose(space, scores, niwaki.Budget(units=0.5), compare="space")
    kept = space.keep_of(plan)
    assert sorted(np.flatnonzero(kept)) == sorted(np.argsort(-scores.values)[:8])
    assert plan.provenance["criterion"] == "evenness"
    small = niwaki.cut(space.model, plan)
    assert small[0].out_features + small[2].out_features == kept.sum() == 8


def test_it_counts_in_a_mix_and_layer_by_layer() -> None:
    space = made()
    mix = niwaki.score(space, {"evenness": 2.0, "magnitude": 1.0}, compare="space")
    magnitude = niwaki.score(space, "magnitude").values
    mine = by_hand(space)
    np.testing.assert_allclose(mix.values, 2 * mine / mine.mean() + magnitude / magnitude.mean(), rtol=1e-12)
    assert mix.criterion == "2 evenness + 1 magnitude"
    each = [mine[group.numbers] for group in space.groups]
    parts = np.concatenate([values / values.mean() for values in each])
    np.testing.assert_allclose(niwaki.score(space, "evenness", compare="layer").values, parts, rtol=1e-12)


@pytest.mark.parametrize("compare", ["group", "layer", "isomorphic", "space"])
def test_a_method_prunes_by_it_in_both_engines(compare: str) -> None:
    mix = {"evenness": 0.7, "taylor1": 0.3}
    plain, fast = (
        Training("conv", sgd, Budget(macs=0.4), criteria=mix, compare=compare, vectorised=vectorised)
        for vectorised in (False, True)
    )
    for run in (plain, fast):
        run.step(SCHEDULE.until)
    same(plain.parameters(), fast.parameters())
    assert (plain.marked() == fast.marked()).all() and fast.marked().any()
    assert fast.method is not None and fast.method.done
    assert fast.method.plan().provenance["criteria"] == mix


def test_elsewhere_it_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    registry._REGISTRY.pop("evenness")
    with pytest.raises(UnknownName, match="no criterion 'evenness'"):
        niwaki.score(made(), "evenness")
