"""Scores carry with which others each unit is compared, and what chooses by them compares so."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.criteria import Scores
from niwaki.errors import BudgetError, MethodError
from niwaki.report.latency_profile import kept_saliency


class Blocks(nn.Module):
    """Two blocks of one kind, one of which matters three times as much, and a head of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6)) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(6, 10, bias=False), nn.ReLU(), nn.Linear(10, 2))
        with torch.no_grad():
            for layer in self.blocks[1]:
                for parameter in layer.parameters():
                    parameter.mul_(3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


HALF = niwaki.Budget(units=0.5)


def made() -> niwaki.SearchSpace:
    torch.manual_seed(0)
    return niwaki.search_space(Blocks(), torch.randn(2, 6))


def widths(space: niwaki.SearchSpace, **how: str) -> tuple[int, int]:
    """What the two blocks keep of ten units each, of scores taken in one way, chosen in another or as they were."""
    scores = niwaki.score(space, "magnitude", compare=how.get("score"))
    plan = niwaki.choose(space, scores, HALF, compare=how.get("choose"))
    return len(plan.kept["blocks.0.0"]), len(plan.kept["blocks.1.0"])


@pytest.mark.parametrize("compare", ["space", "isomorphic"])
def test_a_choice_compares_as_the_scores_were(compare: str) -> None:
    space = made()
    first, second = widths(space)
    assert abs(first - second) <= 1, "in groups, scale counts for nothing"
    small, large = widths(space, score=compare)
    assert small < large and (small, large) != (first, second)
    assert widths(space, choose=compare) == (small, large), "scores as they are, compared so"
    assert widths(space, score=compare, choose="group") == (first, second), "what choose is told comes first"


def test_plans_say_it() -> None:
    space = made()
    for how in ("group", "layer", "isomorphic", "space"):
        scores = niwaki.score(space, "magnitude", compare=how)
        assert scores.compare == how
        about = niwaki.choose(space, scores, HALF).provenance
        assert about.get("compare", "group") == how and json.dumps(about)
    assert niwaki.score(space, "magnitude").compare is None
    assert niwaki.score(space, {"magnitude": 1.0}).compare == "group"
    assert "compare" not in niwaki.choose(space, niwaki.score(space, "magnitude"), HALF).provenance
    assert Scores(np.ones(3), "mine").compare is None


def test_by_layer_is_the_share_in_the_group_of_such_scores() -> None:
    space = made()
    scores = niwaki.score(space, "magnitude", compare="layer")
    same = niwaki.choose(space, Scores(scores.values, "magnitude"), HALF)
    assert niwaki.choose(space, scores, HALF).kept == same.kept
    assert niwaki.choose(space, scores, HALF, compare="layer").kept == same.kept
    for others in (niwaki.score(space, "magnitude"), niwaki.score(space, "magnitude", compare="space")):
        with pytest.raises(BudgetError, match="compare='layer' is for scores that were taken layer by layer, which"):
            niwaki.choose(space, others, HALF, compare="layer")


def test_a_profile_compares_as_a_choice_does() -> None:
    space = made()
    scores = niwaki.score(space, "magnitude", compare="space")
    runtimes = {"torch": lambda network: network}
    found = niwaki.latency_profile(space, scores, HALF, torch.randn(2, 6), round_to=(1,), runtimes=runtimes, seconds=0)
    (row,) = found.rows
    assert row.plan.kept == niwaki.choose(space, scores, HALF).kept
    assert row.plan.provenance["compare"] == "space"
    assert row.saliency == pytest.approx(kept_saliency(space, scores, row.plan, "space"))
    assert row.saliency > kept_saliency(space, scores, niwaki.choose(space, scores, HALF, compare="group"), "space")
    with pytest.raises(BudgetError, match="compare='all' must be one of 'group', 'layer', 'isomorphic', 'space': it"):
        niwaki.latency_profile(space, scores, HALF, torch.randn(2, 6), compare="all")  # type: ignore[arg-type]


def test_what_it_was_called_before_warns() -> None:
    space = made()
    with pytest.warns(DeprecationWarning, match=r"niwaki.score\(among=...\) is called compare=... now") as seen:
        before = niwaki.score(space, "magnitude", among="space")
    assert seen[0].filename == __file__
    now = niwaki.score(space, "magnitude", compare="space")
    assert before.compare == now.compare == "space" and (before.values == now.values).all()
    kept = niwaki.choose(space, before, HALF).kept
    assert kept == niwaki.choose(space, now, HALF).kept != niwaki.choose(space, now, HALF, compare="group").kept
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(MethodError, match="compare='space' and among='group' are"),
    ):
        niwaki.score(space, "magnitude", compare="space", among="group")
    with pytest.warns(DeprecationWarning), pytest.raises(MethodError, match="compare='' must be one of 'group'"):
        niwaki.score(space, "magnitude", among="")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["all", "", 3, np.ones(3)])
def test_what_is_no_way_to_compare_is_refused(wrong: object) -> None:
    space = made()
    scores = niwaki.score(space, "magnitude")
    message = "must be one of 'group', 'layer', 'isomorphic', 'space': it says with which others each unit is compared."
    with pytest.raises(MethodError, match=message):
        niwaki.score(space, "magnitude", compare=wrong)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match=message):
        niwaki.choose(space, scores, HALF, compare=wrong)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match=message):
        niwaki.choose(space, Scores(scores.values, "mine", wrong), HALF)  # type: ignore[arg-type]
