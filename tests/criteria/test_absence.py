"""Structures scored by running the network without them, or with other weights, and scores joined by their ranks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.dying import structure_units
from niwaki.criteria import consensus
from niwaki.criteria.registry import in_training
from niwaki.errors import BudgetError, MethodError, UnknownName


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(2, 6, 1), nn.AvgPool2d(3, 1, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = x + block(x).tanh()
        x = self.pool(x) + x.relu()
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.features(x))
        return result


BATCHES = [(torch.randn(16, 2, 5, 5), torch.randint(0, 3, (16,))) for _ in range(2)]
LOSS = nn.CrossEntropyLoss()


def space_of(as_graph: bool = False) -> niwaki.SearchSpace:
    torch.manual_seed(0)
    return niwaki.search_space(Net(), BATCHES[0][0], erase=True, as_graph=as_graph)


def named(space: niwaki.SearchSpace, values: np.ndarray) -> dict[str, float]:
    units = structure_units(space)
    return {space.structures[number].name: float(values[unit]) for number, unit in units.items()}


def similarity(x: Tensor, y: Tensor) -> float:
    """CKA by the kernels of samples: <K, L> / (||K|| ||L||)."""
    x, y = x - x.mean(0), y - y.mean(0)
    k, other = x @ x.T, y @ y.T
    return float((k * other).sum() / (k.norm() * other.norm()))


def test_cka_against_its_definition() -> None:
    space = space_of()
    assert isinstance(space.model, Net)
    before = copy.deepcopy(space.model.state_dict())
    found = named(space, niwaki.score(space, "cka", BATCHES, LOSS).values)
    assert all(torch.equal(value, before[name]) for name, value in space.model.state_dict().items())
    for number in range(3):
        other = copy.deepcopy(space.model)
        with torch.no_grad():
            for weight in other.blocks[number].parameters():
                weight.zero_()
            same = [similarity(space.model.features(x).double(), other.features(x).double()) for x, _ in BATCHES]
        assert found[f"blocks.{number}"] == pytest.approx(1 - np.mean(same), rel=1e-4)


def test_a_term_without_parameters_is_closed_by_its_gate() -> None:
    space = space_of()
    assert isinstance(space.model, Net)
    found = named(space, niwaki.score(space, "cka", BATCHES, LOSS).values)
    other = copy.deepcopy(space.model)
    other.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Threshold(torch.inf, 0.0))  # type: ignore[assignment]
    with torch.no_grad():
        same = [similarity(space.model.features(x).double(), other.features(x).double()) for x, _ in BATCHES]
    assert found["pool"] == pytest.approx(1 - np.mean(same), rel=1e-4)


@pytest.mark.parametrize("name", ["cka", "reinitialised"])
def test_what_does_nothing_goes_first(name: str) -> None:
    """A branch whose result is zero changes no feature; one that has been trained is worse with other weights, the same
    for the same seed."""
    space = space_of()
    assert isinstance(space.model, Net)
    with torch.no_grad():
        if name == "cka":
            space.model.blocks[1].weight.zero_()  # type: ignore[operator]
            space.model.blocks[1].bias.zero_()  # type: ignore[operator]
        else:
            optimizer = torch.optim.Adam([*space.model.blocks[2].parameters(), *space.model.head.parameters()], 0.05)
            for _ in range(60):
                optimizer.zero_grad()
                with torch.enable_grad():
                    sum(LOSS(space.model(x), y) for x, y in BATCHES).backward()
                optimizer.step()
    values = named(space, niwaki.score(space, name, BATCHES, LOSS).values)
    if name == "cka":
        assert values["blocks.1"] == pytest.approx(0, abs=1e-6) and min(values["blocks.0"], values["blocks.2"]) > 1e-4
        macs = space.cost().macs - space.structures[1].macs
        plan = niwaki.choose(
            space, niwaki.score(space, name, BATCHES, LOSS), niwaki.Budget(macs=macs), remove="structures"
        )
        kept = space.keep_of(plan)
        erased = {space.structures[n].name for n, unit in structure_units(space).items() if not kept[unit]}
        assert erased == {"blocks.1"}
    else:
        assert values["blocks.2"] > 0
        again = niwaki.score(space, name, BATCHES, LOSS)
        assert named(space, again.values) == values
        assert named(space, niwaki.score(space, name, BATCHES, LOSS, seed=1).values) != values


def test_ranks_are_added_whatever_the_scale() -> None:
    space = space_of()
    votes = []
    for factor in (1.0, 1e6):
        values = np.arange(space.num_units, dtype=np.float64) * factor
        votes.append(niwaki.score(space, lambda _: values))  # noqa: B023
    found = consensus(space, votes)
    for group in space.width_groups:
        assert found.values[group.numbers].tolist() == [2.0 * rank for rank in range(group.units)]
    units = list(structure_units(space).values())
    assert found.values[units].tolist() == [2.0 * rank for rank in range(len(units))]
    assert found.compare == "group" and "consensus of" in found.criterion
    votes = [niwaki.score(space, name, BATCHES, LOSS) for name in ("cka", "taylor2", "magnitude_l1")]
    plan = niwaki.choose(space, consensus(space, votes), niwaki.Budget(macs=0.7), remove="structures")
    assert space.cost(plan).macs <= 0.7 * space.cost().macs


def test_errors() -> None:
    space = space_of()
    bare = niwaki.search_space(Net(), BATCHES[0][0])
    for name in ("cka", "reinitialised"):
        with pytest.raises(
            MethodError, match=f"The criterion '{name}' is for structures, of which this space has none"
        ):
            niwaki.score(bare, name, BATCHES, LOSS)
        with pytest.raises(MethodError, match=f"'{name}' is defined by runs of the network without each structure, so"):
            niwaki.score(space, name)
        with pytest.raises(
            MethodError, match=f"The criterion '{name}' needs runs without each structure, which an opt"
        ):
            in_training(name, space)
    scores = niwaki.score(space, "cka", BATCHES, LOSS)
    for remove in ("units", "both"):
        with pytest.raises(
            BudgetError, match="The scores by cka are of structures alone, and all units that make layer"
        ):
            niwaki.choose(space, scores, niwaki.Budget(macs=0.5), remove=remove)  # type: ignore[arg-type]
    with pytest.raises(
        MethodError, match="The criterion 'cka' compares what the last matrix product or convolution re"
    ):
        niwaki.score(space, "cka", BATCHES, lambda model, batch: torch.zeros(()))
    with pytest.raises(MethodError, match="A consensus needs scores of the"):
        consensus(space, [])
    with pytest.raises(UnknownName, match="There is no criterion 'CKA'"):
        niwaki.score(space, "CKA", BATCHES, LOSS)
