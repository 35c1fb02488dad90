"""Zeros where modules were, in code that lives on: as wide as what they meet there, or the class is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import niwaki
from benchmarks.erasing import fuzz
from niwaki.testing.erasing import check_erasing


@pytest.mark.parametrize("number", [42, 96, 98, 195, 235, 253, 3004, 5037])
def test_what_is_offered_can_be_cut(number: int) -> None:
    """In these, nothing is left that tells the width of a concatenation or of a stack, or code that runs in vain adds
    what has no width any more."""
    row = fuzz.tried(number, 4, ["class"])
    assert "problem" not in row, row["problem"]


class Bottleneck(nn.Module):
    """A block whose zeros meet each other inside of it, in code that lives on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.inner = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(4, 4)
        self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3]
        x = self.stem(x)
        y = self.first(x)
        return self.head(x + self.second(torch.relu(y + self.inner(y))))


def test_zeros_that_meet_each_other() -> None:
    report = check_erasing(Bottleneck(), torch.randn(2, 3), plans=8, least_erasable=2)
    assert report.erasable == report.listed == 2 and report.refused == 0


class Joined(nn.Module):
    """Two branches are concatenated, and a third is added to both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.other, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3]
        return self.head(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1) + self.other(x))


class InVain(nn.Module):
    """Two branches are concatenated, and one of them is part of a sum that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.other, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3]
        a, b = self.a(x), self.b(x)
        self.other(x) + a
        return self.head(torch.cat([a, b], 1))


def test_what_may_get_narrower_is_named() -> None:
    space = niwaki.search_space(Joined(), torch.randn(2, 3), erase=True)
    whys = {one.name: one.refused for one in space.structures if "a.weight" in one.parameters}
    assert whys["a..b"] is not None and whys["a..b"].startswith(
        "'' cannot be left out of its code: aten.add.Tensor at test_widths_of_zeros.py:"
    )
    assert whys["a..b"].endswith(" joins it with what may get narrower; use as_graph=True")
    (other,) = [one for one in space.structures if one.name == "other"]
    assert other.erasable
    check_erasing(Joined(), torch.randn(2, 3), plans=4)


def test_what_code_computes_in_vain_counts() -> None:
    space = niwaki.search_space(InVain(), torch.randn(2, 3), erase=True)
    whys = {one.name: one.refused for one in space.structures}
    assert whys["b"] is None and "joins it with what may get narrower" in str(whys["a"])
    check_erasing(InVain(), torch.randn(2, 3), plans=4, as_graph=True, least_erasable=2)
