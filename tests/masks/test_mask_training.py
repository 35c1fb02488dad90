"""A generator alone, on a network that does not change: it meets budgets, and minds the loss."""

from __future__ import annotations

import copy
import itertools
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.errors import MethodError
from niwaki.masks import generators
from niwaki.masks.training import MaskTraining, even_share, unit_norms
from niwaki.networks.small import ResNet
from niwaki.selection.budget import Budget
from niwaki.selection.soft_costs import soft_costs


class Frozen:
    """A small trained network, its batch, and a generator in training."""

    def __init__(self, name: str = "independent", share: float = 0.5, steps: int = 100, **options: Any) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(
            nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4)
        )
        self.x, self.y = torch.randn(64, 8), torch.randint(0, 4, (64,))
        optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            self.loss(self.model).backward()
            optimizer.step()
        self.space = niwaki.search_space(self.model, self.x[:1])
        self.generator = generators()[name](self.space, seed=0)
        self.steps, self.done = steps, 0
        self.training = MaskTraining(
            self.space, self.generator, Budget(macs=share).absolute(self.space), steps, **options
        )

    def loss(self, model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(self.x), self.y)

    def run(self, number: int) -> Frozen:
        for _ in range(number):
            self.training.step(self.loss, self.done / self.steps)
            self.done += 1
        return self

    def mask(self) -> Tensor:
        return self.generator.gates().hard.detach()

    def macs(self) -> float:
        return self.space.cost_of(self.mask().numpy() > 0.5).macs / self.space.cost().macs


@pytest.mark.parametrize(
    ("name", "share"), [("gru", 0.2), ("gru", 0.9), ("transformer", 0.5), ("independent", 0.35), ("shared", 0.5)]
)
def test_it_meets_its_budget(name: str, share: float) -> None:
    frozen = Frozen(name, share, steps=300).run(300)
    assert abs(frozen.macs() - share) <= 0.005


def test_it_meets_its_budget_from_below() -> None:
    frozen = Frozen("independent", 0.6, steps=300)
    with torch.no_grad():
        frozen.generator.get_parameter("values").sub_(4.0)
    assert frozen.macs() < 0.3
    assert abs(frozen.run(300).macs() - 0.6) <= 0.005


@pytest.mark.parametrize(("share", "above"), [(0.8, True), (0.6, False)])
def test_units_that_cost_more_than_is_missing_do_not_cross_the_threshold_again_and_again(
    share: float, above: bool
) -> None:
    """One of the first layer costs 3 % of this network."""
    torch.manual_seed(0)
    widths = (400, 12, 60, 60, 60, 2)
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    model, x = nn.Sequential(*layers[:-1]), torch.randn(4, 400)
    space = niwaki.search_space(model, x)
    generator = generators()["independent"](space, seed=0)
    if not above:
        with torch.no_grad():
            generator.get_parameter("values").sub_(4.0)
    training = MaskTraining(space, generator, Budget(macs=share).absolute(space), 150)
    for step in range(150):
        training.step(lambda model: model(x).square().mean(), step / 150)
    kept = generator.gates().hard.detach().numpy() > 0.5
    assert abs(space.cost_of(kept).macs / space.cost().macs - share) <= 0.005


def test_the_limits_come_down_along_the_way() -> None:
    """So that at each time the mask costs about what the budget is by then."""
    frozen = Frozen("independent", 0.25, steps=300)
    for done, expected in ((75, 1 - 0.75 * 0.25 / 0.6), (150, 1 - 0.75 * 0.5 / 0.6), (200, 0.25)):
        frozen.run(done - frozen.done)
        assert abs(frozen.macs() - expected) < 0.08


def test_late_steps_do_not_look_at_the_loss() -> None:
    frozen = Frozen(steps=100)

    def refuses(model: nn.Module) -> Tensor:
        raise AssertionError("it was called")

    assert frozen.training.looks(0.74) and not frozen.training.looks(0.75)
    before = frozen.generator.gates().logits.detach()
    found = frozen.training.step(refuses, 0.75)
    assert found.loss is None and found.budget > 0.5
    assert bool((frozen.generator.gates().logits < before).all())


def test_it_keeps_what_the_loss_needs() -> None:
    """Its mask is better than masks of the same cost that are drawn."""
    frozen = Frozen("gru", 0.35, steps=200).run(200)
    learnt = float(frozen.training.gates.value(frozen.mask(), frozen.loss).detach())
    keep = frozen.mask()
    drawn = []
    for seed in range(10):
        order = torch.cat(
            [
                part + torch.randperm(n, generator=torch.Generator().manual_seed(seed))
                for part, n in ((0, 256), (256, 256))
            ]
        )
        drawn.append(float(frozen.training.gates.value(keep[order], frozen.loss).detach()))
    assert learnt < min(drawn)


def test_no_group_keeps_less_than_half_of_an_even_share() -> None:
    """Even if the loss says that its units do harm, and with noise."""
    frozen = Frozen("independent", 0.3, steps=100)
    share = even_share(frozen.space, Budget(macs=0.3).absolute(frozen.space))
    least = int(0.5 * share * 256)
    assert 60 <= least <= 80
    with torch.no_grad():
        frozen.generator.get_parameter("values")[:256].sub_(100)
    for gates in (frozen.generator.gates(), frozen.generator.gates(torch.Generator().manual_seed(0))):
        assert int(gates.hard[:256].sum()) == least
    assert int(frozen.generator.protected()[:256].sum()) == least
    free = Frozen("independent", 0.3, steps=100, floor=0.0)
    with torch.no_grad():
        free.generator.get_parameter("values")[:256].sub_(100)
    assert int(free.generator.gates().hard[:256].sum()) == 1


def test_an_even_share_meets_every_limit() -> None:
    space = Frozen().space
    dense = space.cost()
    for limits in ({"macs": 0.3 * dense.macs}, {"macs": 0.5 * dense.macs, "params": 0.1 * dense.params}):
        share = even_share(space, limits)
        gates = torch.full((space.num_units,), share, dtype=torch.float64)
        reached = dict(zip(limits, soft_costs(space.cost_model, gates, tuple(limits)).tolist(), strict=True))
        assert all(reached[measure] <= limit for measure, limit in limits.items())
        assert max(reached[measure] / limit for measure, limit in limits.items()) > 0.999


def test_the_model_is_not_touched() -> None:
    frozen = Frozen()
    frozen.loss(frozen.model).backward()
    before = copy.deepcopy(frozen.model.state_dict())
    gradients = [
        (parameter.grad, parameter.grad.clone())
        for parameter in frozen.model.parameters()
        if parameter.grad is not None
    ]
    random = torch.get_rng_state()
    frozen.run(3)
    assert all(torch.equal(value, before[name]) for name, value in frozen.model.state_dict().items())
    for parameter, (gradient, value) in zip(frozen.model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient and torch.equal(gradient, value)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("name", sorted(generators()))
def test_it_resumes_to_the_same_bits(name: str) -> None:
    whole, first, again = Frozen(name).run(9), Frozen(name).run(4), Frozen(name)
    state = copy.deepcopy(first.training.state())
    again.training.check_state(state)
    again.training.restore(state)
    again.done = 4
    again.run(5)
    for mine, other in zip(again.generator.state_dict().values(), whole.generator.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda model: 1.0, "loss_fn must return the scalar loss of a batch, but returned a float. Return its mean."),
        (
            lambda model: model(torch.ones(2, 8)),
            "loss_fn must return the scalar loss of a batch, but returned a tensor of shape [2, 4]. Return its mean.",
        ),
        (
            lambda model: model(torch.full((1, 8), math.nan)).sum(),
            "The loss of a batch under a mask is nan, so no mask can be learnt from it. Look for non-finite data or a "
            "diverged model.",
        ),
        (
            lambda model: model[4].bias.sum(),
            "The loss that loss_fn returned does not depend on any unit of the search space, so no mask can be learnt "
            "from it. Compute it from the model passed to loss_fn, without torch.no_grad() and without .item().",
        ),
    ],
)
def test_a_loss_that_teaches_nothing_is_refused(loss: Any, says: str) -> None:
    """And the noise is drawn again by the next step."""
    frozen, other = Frozen().run(2), Frozen().run(2)
    with pytest.raises(MethodError, match=f"^{re.escape(says)}$"):
        frozen.training.step(loss, 0.5)
    assert torch.equal(frozen.run(1).mask(), other.run(1).mask())
    assert torch.equal(frozen.training.state()["noise"], other.training.state()["noise"])


def test_a_state_of_another_generator_is_refused() -> None:
    one, other = Frozen("gru"), Frozen("transformer")
    with pytest.raises(ValueError, match="its mask generator is another one"):
        one.training.check_state(other.training.state())


def test_norms_are_those_of_what_makes_units() -> None:
    torch.manual_seed(0)
    model = ResNet(3, 3, (8, 8), (6,), blocks=1)
    space = niwaki.search_space(model, torch.randn(1, 3, 8, 8))
    expected = []
    for group in space.groups:
        pieces = [piece for piece in group.slices if piece.parameter and piece.role.produces]
        for unit in range(group.units):
            parts = [
                model.get_parameter(piece.tensor).index_select(piece.dim, torch.from_numpy(piece.index[unit])).flatten()
                for piece in pieces
            ]
            expected.append(torch.cat(parts).norm())
    torch.testing.assert_close(unit_norms(space), torch.stack(expected).detach())
