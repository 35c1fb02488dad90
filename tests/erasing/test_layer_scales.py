"""Parameters that code multiplies a term by: they stay where that code does, and the term is zero without theirs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import EraseModules
from niwaki.core.plan import Plan, smaller_shapes, tensor_shapes
from niwaki.surgery.zero import zeroed
from niwaki.testing import check_erasing
from niwaki.testing.models import randomised

X = torch.randn(3, 4, dtype=torch.float64)


class Block(nn.Module):
    """A branch whose result is multiplied by a scale of the block in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.up, self.down = way, nn.Linear(6, 8), nn.Linear(8, 6)
        self.scale = nn.Parameter(torch.ones(()) if way == "a number" else torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "before":
            return x + self.down(torch.relu(self.up(self.scale * x)))
        y: Tensor = self.down(torch.relu(self.up(x)))
        if self.way == "a number":
            return x + y.mul_(self.scale)
        if self.way == "a view":
            return x + self.scale.view(1, -1) * y
        if self.way == "added":
            return x + (y + self.scale)
        if self.way == "asked for":
            return x + (y if self.scale is None else self.scale * y)
        if self.way == "alone":
            return x + self.scale * torch.relu(x)
        return x + self.scale * y


class Net(nn.Module):
    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList(Block(way) for _ in range(3))
        self.blocks.append(nn.Identity())  # so that code may pick them by their places

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.head(x)
        return result


def model_of(way: str = "") -> Any:
    torch.manual_seed(0)
    return randomised(Net(way).eval()).double()


def without(space: niwaki.SearchSpace, numbers: Collection[int], widths: bool = False) -> Plan:
    keep = np.ones(space.num_units, dtype=bool)
    erasable = [group for group in space.groups if group.structure is not None]
    keep[[erasable[number].first for number in numbers]] = False
    for group in space.width_groups if widths else ():
        keep[group.first] = False
    return space.plan(keep)


@pytest.mark.parametrize("widths", [False, True])
@pytest.mark.parametrize("way", ["", "a number", "a view", "asked for"])
def test_a_scale_stays_with_its_code(way: str, widths: bool) -> None:
    model = model_of(way)
    space = niwaki.search_space(model, X, erase=True)
    assert [one.erasable for one in space.structures] == [True] * 3
    assert not any(name.endswith("scale") for one in space.structures for name in one.producers)
    plan = without(space, [0, 2], widths)
    (edit,) = plan.edits_of(EraseModules)
    assert not edit.unset and not edit.entries and set(edit.absent) >= {"blocks.0.down", "blocks.2.down"}
    small = niwaki.cut(model, plan)
    assert small.blocks[0].scale is not None and tensor_shapes(small) == smaller_shapes(plan)
    assert space.cost(plan).params == sum(parameter.numel() for parameter in small.parameters())
    assert torch.allclose(small(X), zeroed(model, plan)(X))
    if not widths:
        assert torch.allclose(small(X), model.head(model.blocks[1](model.stem(X))))


def test_it_goes_with_a_block_that_is_deleted() -> None:
    model = model_of()
    del model.blocks[3]
    plan = without(niwaki.search_space(model, X, erase=True), [1])
    (edit,) = plan.edits_of(EraseModules)
    small = niwaki.cut(model, plan)
    assert edit.entries == ("blocks.1",) and not [name for name in small.state_dict() if name.startswith("blocks.2")]
    assert torch.allclose(small(X), zeroed(model, plan)(X))


def test_what_is_added_or_alone_has_to_be_zero() -> None:
    for way in ("added", "alone"):
        found = niwaki.search_space(model_of(way), X, erase=True).structures
        why = [one.refused or "" for one in found if one.inside is None]
        assert len(why) == 3 and all("its code fails without it: TypeError" in one for one in why), way


def test_what_is_multiplied_before_weights_read_it_goes() -> None:
    """Nothing of the term would be left that could give it a gradient."""
    for one in niwaki.search_space(model_of("before"), X, erase=True).structures:
        assert one.refused is not None and "its code fails without it: TypeError" in one.refused


def test_a_single_number_is_no_unit() -> None:
    class Gained(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            result: Tensor = self.head(x + self.blocks[0].scale * torch.relu(x))
            return result

    (one,) = niwaki.search_space(Gained("a number"), X.float(), erase=True).structures
    assert one.refused == "only 'blocks.0.scale' makes its result zero, and no unit is part of that"


def test_law() -> None:
    for way in ("", "a number", "a view"):
        report = check_erasing(model_of(way), X, plans=6, least_erasable=3)
        assert report.forward < 1e-10 and report.backward is not None and report.backward < 1e-8
