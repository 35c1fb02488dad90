"""Structures are scored by all weights that die with them: the mean weight's score, as often as they have weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.dying import dying_parameters, homes, structure_units
from niwaki.criteria.registry import criteria, named
from niwaki.per_unit.fast import FastUnits
from niwaki.per_unit.plain import PlainUnits
from niwaki.per_unit.sums import UnitSums


class Times(nn.Module):
    """A product with parameters that are no unit's: every position of their only long dimension is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.shift


class Net(nn.Module):
    """A residual branch with a branch inside, both with norms; the width of the stream is that of what is given."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.inner = (
            nn.Conv2d(4, 6, 1, bias=False),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 6, 3, padding=1),
        )
        self.narrow = nn.Sequential(nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 1))
        self.down, self.last = nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)
        self.times, self.head = Times(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.times(self.norm(self.up(x)).relu())
        y = y + self.narrow(y).relu()
        x = x + self.last(self.down(y))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


@pytest.fixture(name="space")
def _space() -> niwaki.SearchSpace:
    torch.manual_seed(0)
    model = Net().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return niwaki.search_space(model, torch.randn(2, 4, 3, 3).double(), erase=True, as_graph=True)


OUTER = {"up.weight", "norm.weight", "norm.bias", "times.shift", "down.weight", "down.bias", "last.weight", "last.bias"}


def names(space: niwaki.SearchSpace) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    units = {unit: space.structures[number].name for number, unit in structure_units(space).items()}
    for name, owners in dying_parameters(space).items():
        for unit in owners:
            found.setdefault(units[unit], set()).add(name)
    return found


def test_what_dies(space: niwaki.SearchSpace) -> None:
    """All that only the branch reads, once, and that of the branch inside too."""
    inner = {f"narrow.{number}.{what}" for number in (0, 1, 3) for what in ("weight", "bias")}
    found = names(space)
    assert found["narrow"] == inner and OUTER | inner in found.values() and len(found) == 2
    assert set(structure_units(space)) == {number for number, one in enumerate(space.structures) if one.erasable}
    for number in structure_units(space):
        assert space.erasures is not None
        gone = space.erasures.gone([number]).intersection(name for name, _ in space.model.named_parameters())
        assert gone == set(space.structures[number].parameters)


def test_homes(space: niwaki.SearchSpace) -> None:
    home = homes(space, structure_units(space))
    for group in space.groups:
        (place,) = np.unique(home[group.numbers])
        inside = "" if place < 0 else space.structures[place].name
        assert (inside == "narrow") == (group.name == "narrow.0") and (group.structure is None or place == -1)


@pytest.mark.parametrize("name", ["magnitude", "magnitude_l1", "average_magnitude", "cosine", "taylor1", "taylor2"])
def test_against_the_definition(space: niwaki.SearchSpace, name: str) -> None:
    batch = torch.randn(8, 4, 3, 3).double()

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().mean()  # type: ignore[no-any-return]

    values = niwaki.score(space, name, [batch], loss_fn).values
    space.model.zero_grad()
    space.model.eval()
    loss_fn(space.model, batch).backward()
    weights = dict(space.model.named_parameters())
    for number, unit in structure_units(space).items():
        own = [weights[one] for one in space.structures[number].parameters]
        x = torch.cat([one.detach().flatten() for one in own])
        h = torch.cat([torch.zeros(one.numel()) if one.grad is None else one.grad.flatten() for one in own])
        sums = {
            "square": x @ x,
            "absolute": x.abs().sum(),
            "product": x @ h,
            "product_square": (x * h) @ (x * h),
            "product_absolute": (x * h).abs().sum(),
            "gradient_absolute": h.abs().sum(),
            "aligned": x @ h,
            "direction_square": h @ h,
        }
        one = torch.ones(1, dtype=torch.float64)
        mean = UnitSums(1, one.long(), one, **{key: (value / len(x)).reshape(1) for key, value in sums.items()})
        assert values[unit] == pytest.approx(len(x) * float(named(name).saliency(mean)), rel=1e-9)


@pytest.mark.parametrize("adam", [False, True])
def test_the_fast_path_is_the_plain_loop(space: niwaki.SearchSpace, adam: bool) -> None:
    model = space.model
    optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(model.parameters(), lr=0.01)
    fast, plain = FastUnits(space, optimizer), PlainUnits(space, optimizer)
    assert torch.equal(fast.uses, plain.uses.to(fast.uses))
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 4, 3, 3).double()).square().mean().backward()
        for units in (fast, plain):
            units.remember()
        optimizer.step()
    known = [
        one for one in criteria().values() if not (one.needs_activations or one.needs_curvature or one.needs_absence)
    ]
    known = [one for one in known if one.name != "batchnorm_scale"]
    size = torch.rand(space.num_units).double()
    for more in ({}, {"size": size}):
        found, expected = (units.values(known, 0, **more) for units in (fast, plain))
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_two_copies_are_worth_twice_as_much() -> None:
    """Whatever the criterion: no structure is worth more, or less, because it is large."""

    class Copies(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.branches = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(number))
            self.body = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = x
            for branch in self.branches:
                y = branch(y).relu()
            return x + self.body(y)

    values = []
    for number in (1, 3):
        torch.manual_seed(1)
        model = Copies(number)
        with torch.no_grad():
            for own in model.parameters():
                own.copy_(torch.arange(own.numel()).reshape(own.shape) / own.numel())
        space = niwaki.search_space(model, torch.randn(2, 4, 2, 2), erase=True)
        (unit,) = structure_units(space).values()
        found = [niwaki.score(space, name).values[unit] for name in ("magnitude", "magnitude_l1", "average_magnitude")]
        values.append(np.array(found))
    assert np.allclose(2 * values[0], values[1])


def test_criteria_of_activations_take_the_units_inside(space: niwaki.SearchSpace) -> None:
    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().mean()  # type: ignore[no-any-return]

    values = niwaki.score(space, "activation", [torch.randn(8, 4, 3, 3).double()], loss_fn).values
    number = next(number for number in structure_units(space) if space.structures[number].name == "narrow")
    group = next(group for group in space.groups if group.name == "narrow.0")
    entries = sum(p.numel() for name, p in space.model.named_parameters() if name.startswith("narrow"))
    assert values[structure_units(space)[number]] == pytest.approx(entries * values[group.numbers].mean())


def test_a_parameter_that_nobody_trains_counts_at_its_weights(space: niwaki.SearchSpace) -> None:
    """What is pinned and frozen inside of a structure is part of `score`; in a training, what the optimizer holds."""
    held = [p for name, p in space.model.named_parameters() if name != "times.shift"]
    units = FastUnits(space, torch.optim.SGD(held, lr=0.1))
    whole = FastUnits(space, torch.optim.SGD(space.model.parameters(), lr=0.1))
    lost = (whole.uses - units.uses).unique().tolist()
    assert lost == [0.0, 9.0]


def test_weights_count_as_often_as_they_are_used() -> None:
    """The same kernel is worth four times as much at four times the positions; what it does to the loss knows that."""

    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.Conv2d(2, 2, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.early(x).relu()
            x = nn.functional.avg_pool2d(x, 2)
            return x + self.late(x).relu()

    model = Stages()
    model.late.load_state_dict(model.early.state_dict())
    x = torch.randn(2, 2, 8, 8)
    space = niwaki.search_space(model, x, erase=True)
    early, late = (structure_units(space)[place] for place in range(2))
    assert [space.structures[place].name for place in range(2)] == ["early", "late"]
    for name in ("magnitude", "average_magnitude", "magnitude_l1"):
        values = niwaki.score(space, name).values
        assert values[early] == pytest.approx(4 * values[late])
    model.zero_grad()
    model(x).square().sum().backward()
    assert model.late.weight.grad is not None
    for name, expected in (
        ("taylor1", (model.late.weight * model.late.weight.grad).sum().abs()),
        ("fisher", (model.late.weight * model.late.weight.grad).sum().square() / 2),
    ):
        values = niwaki.score(space, name, [x], lambda model, x: model(x).square().sum()).values
        assert values[late] == pytest.approx(float(expected), rel=1e-4)
