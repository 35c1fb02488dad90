"""The check that there are as many placeholders as features does not keep the width of a network from following."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import niwaki.solve.propagate as labelling
from niwaki import search_space
from niwaki.core.numbers import Equation, Literal
from niwaki.solve.comparisons import compared
from niwaki.testing import check_model

TOKENS = torch.tensor([[1, 7, 7, 2], [7, 3, 4, 5]])
PATCHES = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


class Merging(nn.Module):
    """Features of patches take the places of token 7 in a text, if there are as many."""

    def __init__(self, how: str = "==") -> None:
        super().__init__()
        self.words, self.patches = nn.Embedding(8, 6), nn.Linear(5, 6)
        self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
        self.how = how

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        words, features = self.words(tokens), self.patches(patches)
        places = (tokens == 7).unsqueeze(-1)
        counted = places.sum() * words.shape[-1]
        if self.how == "!=":
            fits = not (counted != features.numel())
        elif self.how == "literal":
            fits = bool(counted == 18)
        elif self.how == "not whole":
            fits = bool(counted != features.numel() + 1)
        else:
            fits = bool(counted == features.numel())
        if not fits:
            raise ValueError("there are not as many places as features")
        merged = words.masked_scatter(places, features)
        if self.how == "used":
            merged = merged * counted
        return self.last(torch.relu(self.inner(merged)) + merged)


def _width(how: str) -> tuple[int, set[str]]:
    """How many units the width has, and why it is pinned where it has none."""
    space = search_space(Merging(how), (TOKENS, PATCHES))
    tensors = {(part.tensor, part.dim): group.units for group in space.groups for part in group.slices}
    return tensors.get(("patches.weight", 0), 0), {
        pin.reason for pin in space.pins if pin.parameter == "patches.weight"
    }


@pytest.mark.parametrize("how", ["==", "!="])
def test_a_width_that_both_sides_count_follows(how: str) -> None:
    assert _width(how)[0] == 6
    check_model(Merging(how), (TOKENS, PATCHES), least_coverage=0.9)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("literal", "a number in a comparison is computed as ((3 * size(6)) - 18), which cannot follow a cut"),
        ("not whole", "a number that enters a computation that niwaki does not follow is computed as"),
        ("used", "a number that enters a computation that niwaki does not follow is computed as"),
    ],
)
def test_a_width_that_only_one_side_counts_stays(how: str, why: str) -> None:
    units, reasons = _width(how)
    assert units == 0
    assert any(why in reason for reason in reasons), reasons
    check_model(Merging(how), (TOKENS, PATCHES))


def test_a_comparison_taken_for_granted_fails_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    def granted(graph, run):  # type: ignore[no-untyped-def]
        for product, node, claim in compared(graph, run):
            yield product, node, Equation(Literal(0), None, claim.what, claim.location)

    monkeypatch.setattr(labelling, "compared", granted)
    with pytest.raises(
        AssertionError,
        match="the cut model fails: The cut network does not run .* there are not as many places as features",
    ):
        check_model(Merging("literal"), (TOKENS, PATCHES))
