"""WeightMom: its average on a case computed by hand, whom it keeps, both engines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from training import SCHEDULE, Training, adamw

import niwaki
from niwaki.errors import MethodError
from niwaki.methods import WeightMom
from niwaki.selection.budget import Budget

STEPS = [[5.0, -2.0], [5.0, -2.0], [1.0, -2.0]]


def run(momentum: float) -> tuple[nn.Sequential, WeightMom]:
    """Two units whose weights are `STEPS` step by step; after the last of these one is chosen, and left out after the
    next."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    space = niwaki.search_space(model, torch.ones(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = niwaki.Schedule(start=3, until=4, periods=1)
    method = WeightMom(space, optimizer, Budget(units=0.5), schedule, momentum=momentum)
    for size in (*STEPS, STEPS[-1]):
        model[0].weight.grad = model[0].weight.detach() - torch.tensor(size).unsqueeze(1)
        optimizer.step()
    return model, method


def test_the_average_by_hand() -> None:
    """With a momentum of 0.5: (5/8 + 5/4 + 1/2) / (7/8) = 19/7, and 2."""
    model, method = run(0.5)
    scores = method.selector.scores  # type: ignore[attr-defined]
    np.testing.assert_allclose(scores.saliency(3, np.ones(2, dtype=bool)), [19 / 7, 2.0], rtol=1e-6)
    assert model[0].weight.flatten().tolist() == [1.0, 0.0]


def test_without_a_momentum_the_moment_decides() -> None:
    model, _ = run(0.0)
    assert model[0].weight.flatten().tolist() == [0.0, -2.0]


def test_sparser_groups_matter_more() -> None:
    method = Training("mlp", adamw, Budget(macs=0.5), kind=WeightMom).method
    scores, groups = method.selector.scores, method.space.groups  # type: ignore[attr-defined]
    here = np.ones(method.space.num_units, dtype=bool)
    here[groups[0].first : groups[0].first + groups[0].units // 2] = False
    scores._steps = 1
    scores.saliency(1, here)
    assert scores.group_weight() == pytest.approx([here.mean() / 0.5, here.mean()])


def test_the_plain_loop_is_the_specification() -> None:
    runs = [Training("conv", adamw, Budget(macs=0.5), kind=WeightMom, vectorised=way) for way in (False, True)]
    for one in runs:
        one.step(SCHEDULE.until + 1)
    assert (runs[0].marked() == runs[1].marked()).all() and runs[1].method.done
    for value, other in zip(runs[0].parameters().values(), runs[1].parameters().values(), strict=True):
        torch.testing.assert_close(value, other)


def test_errors_are_sentences() -> None:
    with pytest.raises(MethodError, match="momentum=1 must be a finite number, from 0 to below 1: it is what is left"):
        Training("mlp", adamw, Budget(macs=0.5), kind=WeightMom, momentum=1)
    with pytest.raises(MethodError, match="WeightMom averages the sizes of whole units: compare='group', 'isomorphic'"):
        Training("mlp", adamw, Budget(macs=0.5), kind=WeightMom, compare="layer")
