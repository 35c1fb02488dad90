"""Terms that no parameters make, in the user's class: modules that hand on or pool what they are given."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.absent import Absent
from niwaki.core.compose import composed, difference
from niwaki.core.edits import EraseModules
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.errors import PlanError
from niwaki.networks.cells import CellNetwork
from niwaki.selection.structures import erasable
from niwaki.surgery.zero import masked, zeroed
from niwaki.testing import check_erasing

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


class Cell(nn.Module):
    """One node of a cell: candidates without parameters and one with some, summed up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.edges = nn.ModuleList(
            [
                nn.Identity(),
                nn.MaxPool2d(3, 1, 1),
                nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(4, affine=False)),
                nn.Conv2d(4, 4, 3, padding=1),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        result: Tensor = self.head(sum(edge(x) for edge in self.edges))
        return result


class Residual(nn.Module):
    """A branch beside a skip, added in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.stem, self.head = way, nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.skip, self.branch = nn.Identity(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.way == "written over":
            y = self.skip(x)
            y += self.branch(x)
        elif self.way == "twice":
            y = self.skip(x) + self.branch(self.skip(x))
        elif self.way == "elsewhere too":
            z = self.skip(x)
            y = z + self.branch(z)
        elif self.way == "no module":
            self.skip(x)
            y = x + self.branch(x)
        elif self.way == "the other operand":
            y = self.branch(x) + self.skip(x)
        else:
            y = self.skip(x) + self.branch(x)
        result: Tensor = self.head(y)
        return result


def without(space: SearchSpace, names: Collection[str]) -> Plan:
    keep = np.ones(space.num_units, dtype=bool)
    units = {space.structures[g.structure].name: g.first for g in space.groups if g.structure is not None}
    keep[[units[name] for name in names]] = False
    return Plan.from_json(space.plan(keep).to_json())


def test_candidates_of_a_cell() -> None:
    """Each is zeros in the reference, and absent in the cut network, of any size of pictures."""
    torch.manual_seed(0)
    model = Cell().eval().double()
    space = niwaki.search_space(model, X, erase=True)
    names = ["edges.0", "edges.1", "edges.0..1", "edges.2", "edges.0..2", "edges.3"]
    assert [one.name for one in space.structures if one.erasable] == names
    sets = {("edges.0..1",): (0, 1), ("edges.0..2",): (0, 1, 2), ("edges.0..1", "edges.3"): (0, 1, 3)}
    sets |= {(f"edges.{edge}",): (edge,) for edge in range(4)} | {("edges.0", "edges.2", "edges.3"): (0, 2, 3)}
    for erased, gone in sets.items():
        plan = without(space, erased)
        small: Any = niwaki.cut(model, plan)
        assert [isinstance(edge, Absent) for edge in small.edges] == [edge in gone for edge in range(4)]
        for x in (X, torch.randn(3, 3, 5, 7, dtype=torch.float64)):
            stem = model.stem(x)
            expected = model.head(sum(edge(stem) for number, edge in enumerate(model.edges) if number not in gone))
            assert torch.allclose(small(x), expected) and torch.allclose(zeroed(model, plan)(x), expected)
        outcome = niwaki.check(model, plan, X)
        assert outcome.holds and not outcome.zero
        with masked(model, plan):
            assert torch.allclose(model(x), expected)
        assert not any(module._forward_hooks for module in model.modules())


def test_a_skip_is_told_from_the_stream_that_it_hands_on() -> None:
    """By the operator that reads what the module returns, and nothing else does."""
    erasable = {}
    for way in ("beside", "the other operand", "written over", "twice", "elsewhere too", "no module"):
        torch.manual_seed(0)
        model = Residual(way).eval().double()
        space = niwaki.search_space(model, X, erase=True)
        erasable[way] = [one.name for one in space.structures if one.erasable]
        if "skip" in erasable[way]:
            plan = without(space, ["skip"])
            expected = model.head(model.branch(model.stem(X)))
            assert torch.allclose(niwaki.cut(model, plan)(X), expected)
            assert torch.allclose(zeroed(model, plan)(X), expected)
    assert erasable == {
        "beside": ["skip", "branch"],
        "the other operand": ["branch", "skip"],
        "written over": ["branch"],
        "twice": ["branch"],
        "elsewhere too": ["branch"],
        "no module": ["branch"],
    }


def test_what_no_module_makes_is_refused() -> None:
    class Bare(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            result: Tensor = self.head(x * 0.5 + self.branch(x))
            return result

    (half, _) = niwaki.search_space(Bare(""), X.float(), erase=True).structures
    assert half.refused == (
        "it has no parameters, and no module that is called once makes its result; use as_graph=True"
    )


def cells(**more: Any) -> nn.Module:
    return CellNetwork(3, 3, 4, cells=2, **more)


@pytest.mark.parametrize("build", [Cell, cells, lambda: Residual("beside")])
def test_law(build: Callable[[], nn.Module]) -> None:
    """Forward and backward, together with widths."""
    torch.manual_seed(0)
    report = check_erasing(build().eval(), X.float(), plans=6)
    assert report.forward < 1e-10 and report.backward is not None and report.backward < 1e-8 and report.erased > 0.5


def test_plans_in_a_row_and_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Cell().eval().double()
    dense = niwaki.search_space(model, X, erase=True)
    first, whole = without(dense, ["edges.1"]), without(dense, ["edges.1", "edges.2"])
    small = niwaki.cut(model, first)
    later = without(niwaki.search_space(small, X, erase=True), ["edges.2"])
    both = composed(first, later)
    assert both.edits_of(EraseModules)[0].gated == ("edges.1", "edges.2")
    expected = niwaki.cut(model, whole)(X)
    assert torch.equal(niwaki.cut(model, both)(X), expected)
    assert torch.allclose(zeroed(model, both)(X), expected)
    assert torch.equal(niwaki.cut(small, difference(first, whole))(X), expected)
    with pytest.raises(PlanError, match="which has left this network already"):
        niwaki.cut(niwaki.cut(model, whole), first)
    niwaki.save(small, tmp_path / "out")
    assert torch.equal(niwaki.load(Cell().eval().double(), tmp_path / "out")(X), small(X))


def test_what_a_gated_term_passes_through() -> None:
    """An edge of a cell is zero where its weights and the gates of its other candidates are."""
    torch.manual_seed(0)
    model: Any = CellNetwork(3, 3, 4, cells=1, nodes=2, halving=()).eval().double()
    space = niwaki.search_space(model, X, erase=True)
    (edge,) = [one for one in space.structures if one.name == "cells.0.edges.0.1"]
    assert edge.erasable and edge.gates == ("cells.0.edges.0.1.maximum", "cells.0.edges.0.1.skip")
    plan = without(space, ["cells.0.edges.0.1"])
    small: Any = niwaki.cut(model, plan)
    assert isinstance(small.cells[0].edges[0][1], Absent)
    model.cells[0].edges[0][1].register_forward_hook(lambda *call: torch.zeros_like(call[-1]))
    assert torch.allclose(small(X), model(X)) and torch.allclose(zeroed(model, plan)(X), model(X))


def test_an_edge_with_a_gate_is_a_candidate_like_others() -> None:
    model = CellNetwork(3, 3, 4, cells=1, nodes=2, halving=()).eval()
    space = niwaki.search_space(model, X.float(), erase=True)
    gated = {number for number, one in enumerate(space.structures) if one.erasable and one.gated}
    assert {bool(space.structures[number].producers) for number in gated} == {True, False}
    assert gated < erasable(space).keys()


class Doubled(nn.Module):
    """The stream and what hands it on are added, and stay where a branch is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.skip = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        both = (self.skip(x) + x) + self.branch(x)
        result: Tensor = self.head(both + torch.relu(x))
        return result


def test_a_stream_beside_itself_is_not_zero() -> None:
    torch.manual_seed(0)
    found = {one.name: one for one in niwaki.search_space(Doubled().eval(), X.float(), erase=True).structures}
    assert found["skip"].erasable and found["branch"].erasable
    assert "pass through it" in next(one.refused or "" for name, one in found.items() if name.startswith("branch:"))


def test_choose_leaves_out_what_it_cannot_score() -> None:
    model = Cell().eval()
    space = niwaki.search_space(model, X.float(), erase=True)
    scores = niwaki.score(space, "average_magnitude")
    plan = niwaki.choose(space, scores, niwaki.Budget(macs=0.5), remove="structures")
    assert plan.edits_of(EraseModules)[0].structures == ("edges.3",)
