"""Mask generators: what their gates are, that nothing depends on chance unless asked for, and what is saved."""

from __future__ import annotations

from typing import final

import numpy as np
import pytest
import torch
from small import Small, images
from torch import Tensor, nn

import niwaki
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError, UnknownName
from niwaki.masks import MaskGenerator, SharedHead, generators
from niwaki.masks.protocol import BASE, TEMPERATURE, orthogonal_rows
from niwaki.masks.registry import generator, generator_named

NAMES = sorted(generators())


def mlp(widths: tuple[int, ...] = (6, 30, 20, 3)) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def space_of(model: nn.Module) -> SearchSpace:
    return niwaki.search_space(model, torch.randn(1, 6))


@final
class Given(MaskGenerator):
    """Scores that a test sets."""

    name, travel = "given", 1.0

    def build(self) -> None:
        self.values = nn.Parameter(torch.zeros(sum(self.sizes)))

    def scores(self) -> Tensor:
        return self.values

    def observe(self, gradient: Tensor, size: Tensor) -> None:
        pass


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_begins_with_all_units(name: str) -> None:
    torch.manual_seed(0)
    made = generators()[name](space_of(mlp()), seed=3)
    gates = made.gates()
    assert gates.logits.shape == gates.soft.shape == gates.hard.shape == (50,)
    assert bool((gates.hard == 1).all()) and bool((gates.soft > 0.5).all())
    torch.testing.assert_close(gates.soft, torch.sigmoid(gates.logits))


@pytest.mark.parametrize("name", NAMES)
def test_it_depends_on_its_seed_and_on_no_other_chance(name: str) -> None:
    space, kind = space_of(mlp()), generators()[name]
    before = torch.get_rng_state()
    one, same, other = kind(space, seed=1), kind(space, seed=1), kind(space, seed=2)
    noises = [torch.Generator().manual_seed(seed) for seed in (5, 5, 6)]
    drawn = [made.gates(noise).hard for made, noise in zip((one, same, one), noises, strict=True)]
    assert torch.equal(torch.get_rng_state(), before), "torch's own generator is not touched"
    assert torch.equal(one.gates().logits, same.gates().logits)
    assert not torch.equal(one.gates().logits, other.gates().logits)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", NAMES)
def test_gates_have_gradients_and_the_state_holds_all(name: str) -> None:
    space, kind = space_of(mlp()), generators()[name]
    made, again = kind(space, seed=1), kind(space, seed=2)
    made.observe(torch.randn(50), torch.rand(50))
    for gates in (made.gates(), made.gates(torch.Generator().manual_seed(0))):
        found = torch.autograd.grad(gates.hard @ torch.linspace(-1, 1, 50), list(made.parameters()), allow_unused=True)
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in found)
        assert any(bool(gradient.any()) for gradient in found)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.gates().logits, made.gates().logits)


def test_hard_gates_are_drawn_with_the_probability_that_soft_ones_state() -> None:
    """The noise is logistic: P(score + base + noise >= 0) = sigmoid(score + base)."""
    made = Given(space_of(mlp((6, 400, 3))))
    with torch.no_grad():
        made.values.copy_(torch.linspace(-6, 0, 400))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        share = torch.stack([made.gates(noise).hard for _ in range(2000)]).mean(0)
        expected = made.gates().soft
    assert float((share - expected).abs().max()) < 5 * 0.5 / 2000**0.5


def test_the_gradient_passes_straight_through() -> None:
    made = Given(space_of(mlp((6, 40, 3))))
    with torch.no_grad():
        made.values.copy_(torch.linspace(-6, 0, 40))
    by = torch.linspace(1, 2, 40)
    (found,) = torch.autograd.grad(made.gates().hard @ by, made.values)
    probability = torch.sigmoid(made.values.detach() + BASE)
    torch.testing.assert_close(found, by * probability * (1 - probability))
    gates = made.gates(torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad(gates.hard @ by, made.values)
    soft = gates.soft.detach()
    torch.testing.assert_close(found, by * soft * (1 - soft) / TEMPERATURE)
    assert set(gates.hard.tolist()) == {0.0, 1.0}


def test_one_unit_of_every_group_stays() -> None:
    made = Given(space_of(mlp()))
    with torch.no_grad():
        made.values.copy_(-100 - torch.arange(50.0).roll(-7))
    hard = made.gates().hard
    assert hard.nonzero().flatten().tolist() == [
        made.values[:30].argmax().item(),
        30 + made.values[30:].argmax().item(),
    ]


def test_groups_keep_what_their_sizes_ask_for() -> None:
    """Two halves of a chunk lose equally many, and at least one of each is left; other ties ask for more."""
    torch.manual_seed(0)
    space = niwaki.search_space(Small(), images())
    made = Given(space)
    with torch.no_grad():
        made.values.fill_(-100)
    hard = made.gates().hard.detach().numpy()
    assert [int(hard[group.numbers].sum()) for group in space.groups] == space.least_units()


def test_structures_have_gates_of_one() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.head(x + self.body(x).relu())

    space = niwaki.search_space(Residual(), torch.randn(1, 6), erase=True)
    assert len(space.groups) > len(space.width_groups)
    made = Given(space)
    with torch.no_grad():
        made.values.fill_(-100)
    gates = made.gates()
    width = sum(group.units for group in space.width_groups)
    assert len(gates.hard) == space.num_units and gates.hard[width:].eq(1).all()


def test_rows_are_orthogonal() -> None:
    rows = orthogonal_rows(70, 64)
    assert rows.shape == (70, 64)
    torch.testing.assert_close(rows[:64] @ rows[:64].T, torch.eye(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(70))


def test_renumbering_the_units_of_a_group_permutes_their_gates_and_nothing_else() -> None:
    """Through observations and steps of its training, for any order of the units in both groups."""
    space = space_of(mlp())
    order = torch.from_numpy(
        np.concatenate([np.random.default_rng(0).permutation(30), 30 + torch.randperm(20).numpy()])
    )
    one, other = SharedHead(space, seed=1), SharedHead(space, seed=1)
    price = torch.randn(50)
    makers = [torch.optim.SGD(made.parameters(), lr=0.1) for made in (one, other)]
    for _ in range(4):
        gradient, size = torch.randn(50), torch.rand(50)
        one.observe(gradient, size)
        other.observe(gradient[order], size[order])
        for made, maker, by in ((one, makers[0], price), (other, makers[1], price[order])):
            maker.zero_grad()
            (made.gates().hard @ by).backward()
            maker.step()
        torch.testing.assert_close(other.gates().logits, one.gates().logits[order], atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    assert one.gates().logits.std() > 0.1


def test_names() -> None:
    assert generator_named("gru") is generators()["gru"]
    with pytest.raises(UnknownName, match=r"^There is no mask generator 'lstm'\. Registered are: gru, independent, sh"):
        generator_named("lstm")
    with pytest.raises(MethodError, match="There is already a mask generator 'gru'. Give the new one another name."):
        generator(generators()["gru"])
