"""Affinity propagation: its messages by loops, who stands for whom, and how many of a group."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from handmade import MLP, mlp_space
from torch import Tensor

import niwaki
from niwaki.criteria.registry import named
from niwaki.errors import MethodError
from niwaki.per_unit import exemplars
from niwaki.per_unit.exemplars import BETAS, evidence, persistence
from niwaki.per_unit.fast import FastUnits
from niwaki.per_unit.plain import PlainUnits


def by_loops(s: Tensor, passes: int) -> Tensor:
    """Responsibilities and availabilities as in the paper, entry by entry."""
    n = len(s)
    r, a = [[0.0] * n for _ in range(n)], [[0.0] * n for _ in range(n)]
    for _ in range(passes):
        new = [
            [float(s[i, k]) - max(a[i][o] + float(s[i, o]) for o in range(n) if o != k) for k in range(n)]
            for i in range(n)
        ]
        r = [[0.7 * r[i][k] + 0.3 * new[i][k] for k in range(n)] for i in range(n)]
        new = [
            [
                sum(max(0.0, r[o][k]) for o in range(n) if o != k)
                if i == k
                else min(0.0, r[k][k] + sum(max(0.0, r[o][k]) for o in range(n) if o not in (i, k)))
                for k in range(n)
            ]
            for i in range(n)
        ]
        a = [[0.7 * a[i][k] + 0.3 * new[i][k] for k in range(n)] for i in range(n)]
    return torch.tensor([r[k][k] + a[k][k] for k in range(n)], dtype=torch.double)


def test_messages_against_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exemplars, "_PASSES", 6)
    similar = -torch.cdist(*[torch.randn(7, 3, dtype=torch.double)] * 2).square()
    similar.diagonal().fill_(-2.0)
    torch.testing.assert_close(evidence(similar), by_loops(similar, 6), rtol=1e-12, atol=1e-12)


def test_who_stands_for_whom_by_hand() -> None:
    """Two heaps of three and of two, and one alone; to stand for itself costs a unit 1, or a little more: each heap has
    one exemplar, the middle of three, the cheaper of two alike."""
    x = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.0], [30.0]])
    similar = -torch.cdist(x, x).square()
    similar.diagonal().copy_(-torch.tensor([1.0, 1.0, 1.0, 1.01, 1.0, 1.0]))
    assert torch.nonzero(evidence(similar) > 0).flatten().tolist() == [1, 4, 5]
    similar.diagonal().fill_(-2000.0)  # more than the lonely one is worth
    assert int((evidence(similar) > 0).sum()) == 1


def test_equal_and_lonely_units() -> None:
    same = persistence(torch.ones(4, 3))
    assert same.argmax() == 0 and bool(torch.isfinite(same).all())
    assert persistence(torch.ones(1, 3)).tolist() == [len(BETAS)]


def test_groups_keep_as_many_as_they_have_different_units() -> None:
    model = MLP(4, 8, 8)
    with torch.no_grad():
        for layer, kinds in ((model.a, 2), (model.b, 6)):
            layer.bias.zero_()
            rows = 5 * torch.eye(kinds, layer.in_features)
            layer.weight.copy_(rows[torch.arange(8) % kinds] + 0.01 * torch.randn(8, layer.in_features))
    space = mlp_space(model)
    plan = niwaki.choose(space, niwaki.score(space, "exemplar"), niwaki.Budget(units=0.5), compare="space")
    first, second = plan.kept.values()
    assert len(first) == 2 and len(second) == 6
    assert {unit % 2 for unit in first} == {0, 1} and {unit % 6 for unit in second} == set(range(6))


def test_both_engines_score_alike() -> None:
    model = MLP().double()
    space = mlp_space(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = [kind(space, optimizer).values([named("exemplar")], 0)[0] for kind in (PlainUnits, FastUnits)]
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(found[0], niwaki.score(space, "exemplar").values)


def test_too_many_units_are_refused() -> None:
    with pytest.raises(MethodError, match="compares all pairs of units of a group, and one has 4,097: more than 4,096"):
        persistence(torch.zeros(4097, 1))
