"""The stream itself is a term of additions, such as x in x + f(x): a program can be without it, a class cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.errors import PlanError, UnknownName
from niwaki.testing import check_erasing
from niwaki.testing.models import randomised

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.inner, self.outer, self.in_place = nn.Linear(6, 8), nn.Linear(8, 6), in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(torch.relu(self.inner(x)))
        if self.in_place:
            y += x
            return y
        return x + y


class Blocks(nn.Module):
    """``in_place``: the stream is added to the branch, and written over it."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList(Block(in_place) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = x if mask is None else x + mask[:, None].to(x)
        return self.head(x + x)  # what is added to itself has no part of its own


@pytest.mark.parametrize("in_place", [False, True])
def test_a_program_without_a_stream(in_place: bool) -> None:
    torch.manual_seed(0)
    model = randomised(Blocks(in_place).eval())
    space = niwaki.search_space(model, X, as_graph=True, erase="streams")
    assert [one.name for one in space.structures if not one.operators] == ["skip of stem", "skip of blocks.0"]
    assert all(one.erasable and one.macs == one.params == 0 for one in space.structures[-2:])
    keep = np.ones(space.num_units, dtype=bool)
    keep[space.groups[-1].first] = False  # that of the second block
    plan = space.plan(keep)
    assert space.cost(plan).macs == space.cost().macs
    small = niwaki.cut(model, plan, as_graph=True, example_inputs=X)
    first, second = model.blocks
    stream = first(model.stem(X))
    made = second.outer(torch.relu(second.inner(stream)))  # type: ignore[union-attr, operator]
    assert torch.allclose(small.module()(X), model.head(made + made), atol=1e-6)
    keep[[group.first for group in space.groups if group.name.startswith("blocks.1 ")]] = False
    with pytest.raises(PlanError, match="nothing would be left to join"):
        space.plan(keep)
    found = check_erasing(model, X, plans=6, as_graph=True, streams=True, least_erasable=4)
    assert found.backward is not None and found.backward < 1e-8


def test_masks_are_no_streams() -> None:
    inputs = {"x": X, "mask": torch.tensor([0, 1])}
    space = niwaki.search_space(Blocks(), inputs, as_graph=True, erase="streams")
    assert [one.name for one in space.structures if not one.operators] == ["skip of stem", "skip of blocks.0"]


@pytest.mark.parametrize("as_graph", [False, True])
def test_by_default_a_note_says_so(as_graph: bool) -> None:
    space = niwaki.search_space(Blocks(), X, erase=True, as_graph=as_graph)
    assert all(one.operators for one in space.structures) and len(space.structures) == 3
    (note,) = [one for one in space.notes if "stream" in one]
    assert note.startswith("2 additions are given the stream itself, as x in x + f(x) (the first at test_bare_streams.")
    assert note.endswith("only an exported program can be without it: use as_graph=True and erase='streams'.")
    assert not [one for one in niwaki.search_space(Blocks(), X).notes if "stream" in one]


def test_a_class_goes_on_adding_what_it_names() -> None:
    with pytest.raises(UnknownName, match="erase='streams' is for exported programs: the code of a class goes on"):
        niwaki.search_space(Blocks(), X, erase="streams")
    with pytest.raises(UnknownName, match="erase='stream' must be True, False or 'streams'"):
        niwaki.search_space(Blocks(), X, as_graph=True, erase="stream")  # type: ignore[arg-type]
