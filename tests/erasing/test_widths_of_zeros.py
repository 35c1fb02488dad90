"""Zeros where modules were, in code that lives on: as wide as what they meet there, or the class is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from benchmarks.erasing import fuzz
from benchmarks.erasing.drawn import drawn
from niwaki.core.space import SearchSpace
from niwaki.errors import PlanError
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


TOGETHER = ("m12", "m9..m11", "m7..m10")


@pytest.fixture
def fanned() -> SearchSpace:
    """A network in which code can do without each of these, and not without all at once."""
    model, inputs = drawn(96).build()
    return niwaki.search_space(model.eval(), inputs, erase=True)


def test_not_all_at_once(fanned: SearchSpace) -> None:
    erasures = fanned.erasures
    assert erasures is not None
    number = {one.name: place for place, one in enumerate(fanned.structures)}
    numbers = [number[name] for name in TOGETHER]
    for left in range(3):
        assert erasures.why_not(numbers[:left] + numbers[left + 1 :]) is None
    why = erasures.why_not(numbers)
    assert why is not None and why.startswith(
        "m7..m10 cannot be erased beside m12, m9..m11: '' cannot be left out of its code: aten.add.Tensor at "
    )
    assert why.endswith("joins it with what may get narrower; use as_graph=True. Keep it, or keep one of the others.")
    keep = np.ones(fanned.num_units, dtype=bool)
    keep[[group.first for group in fanned.groups if group.structure in numbers]] = False
    with pytest.raises(PlanError, match="m12 cannot be erased beside m7..m10, m9..m11: "):
        fanned.plan(keep)
    trial = erasures.trial()
    whys = [trial.erase(number) for number in numbers]
    assert whys[:2] == [None, None] and "joins it with what may get narrower" in str(whys[2])


def test_a_choice_takes_no_such_set(fanned: SearchSpace) -> None:
    """They are worth least, and without all of them the budget would be met."""
    values = np.ones(fanned.num_units)
    for group in fanned.groups:
        if group.structure is not None:
            values[group.first] = 0.01 if fanned.structures[group.structure].name in TOGETHER else 10.0
    macs = fanned.cost().macs
    need = sum(one.macs for one in fanned.structures if one.name in TOGETHER)
    plan = niwaki.choose(
        fanned, niwaki.score(fanned, lambda _: values), niwaki.Budget(macs=macs - need), remove="structures"
    )
    assert fanned.cost(plan).macs <= macs - need
    erased = [
        fanned.structures[g.structure].name
        for g in fanned.groups
        if g.structure is not None and not len(plan.kept[g.name])
    ]
    assert erased and not set(TOGETHER) <= set(erased)
