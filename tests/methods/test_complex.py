"""Complex parameters: units count their real and imaginary parts, as torch's optimizers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from every_method import KINDS, SCHEDULE
from torch import Tensor, nn

import niwaki
from niwaki.core.space import SearchSpace
from niwaki.selection.budget import Budget
from niwaki.surgery.zero import zeroed
from niwaki.testing.models import random_plan

LOOSE = {"rtol": 1e-4, "atol": 1e-6}


class Waves(nn.Module):
    """Units of complex matrices, biases and scales; some are real."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 8, dtype=torch.complex64)
        self.scale = nn.Parameter(torch.randn(8, dtype=torch.complex64))
        self.two = nn.Linear(8, 6, bias=False, dtype=torch.complex64)
        self.three = nn.Linear(6, 9)
        self.out = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.scale * self.one(x.to(torch.complex64)))
        made: Tensor = self.out(torch.relu(self.three(x.abs())))
        return made


def ready() -> tuple[Waves, SearchSpace, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x, y = Waves(), torch.randn(64, 5), torch.randint(0, 3, (64,))
    return model, niwaki.search_space(model, x), x, y


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def entries(space: SearchSpace, number: int, tensors: dict[str, Tensor]) -> Tensor:
    """What a unit is made of, all as real numbers."""
    group = next(group for group in space.groups if group.first <= number < group.first + group.units)
    parts = []
    for piece in group.slices:
        if piece.parameter and piece.role.produces:
            index = torch.from_numpy(piece.index[number - group.first])
            part = tensors[piece.tensor].detach().index_select(piece.dim, index)
            parts.append((torch.view_as_real(part) if part.is_complex() else part).flatten())
    return torch.cat(parts)


def test_scores_are_those_of_real_and_imaginary_parts() -> None:
    model, space, x, y = ready()
    loss_of(model, (x, y)).backward()
    weights = dict(model.named_parameters())
    gradients = {name: weight.grad for name, weight in weights.items()}
    expected: dict[str, list[Tensor]] = {"magnitude": [], "taylor1": [], "fisher": [], "cosine": []}
    for number in range(space.num_units):
        w, g = entries(space, number, weights), entries(space, number, gradients)
        expected["magnitude"].append(w.norm())
        expected["taylor1"].append((w @ g).abs())
        expected["fisher"].append((w @ g).square() / 2)
        expected["cosine"].append(1 - ((w @ g) / w.norm() / g.norm()).nan_to_num())  # of a dead unit
    assert space.num_units == 8 + 6 + 9
    for name, values in expected.items():
        found = niwaki.score(space, name, [(x, y)], loss_of).values
        torch.testing.assert_close(torch.from_numpy(found).float(), torch.stack(values), **LOOSE)


@pytest.mark.filterwarnings("error:Casting complex")
@pytest.mark.parametrize("name", ["activation", "energy", "hessian", "geometric_median", "lamp", "taylor2"])
def test_all_criteria_take_them(name: str) -> None:
    model, space, x, y = ready()
    values = niwaki.score(space, name, [(x, y)], loss_of).values
    assert (values >= 0).all() and values.std() > 0
    if name == "activation":
        expected = (model.one(x.to(torch.complex64)) * model.scale).detach().abs().mean(0)
        group = next(group for group in space.groups if group.units == 8)
        torch.testing.assert_close(torch.from_numpy(values[group.numbers]).float(), expected, **LOOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [torch.optim.AdamW, torch.optim.SGD])
def test_methods_drive_them_to_zero(kind: str, build: Callable[..., torch.optim.Optimizer]) -> None:
    trained = []
    for vectorised in (True, False):
        model, space, x, y = ready()
        make, more = KINDS[kind]
        options = {"schedule": SCHEDULE, "vectorised": vectorised} | more
        method = make(space, build(model.parameters(), lr=0.02), Budget(macs=0.5), **options)
        for _ in range(SCHEDULE.until):
            method.optimizer.zero_grad()
            loss_of(model, (x, y)).backward()
            method.optimizer.step()
        trained.append(torch.cat([torch.view_as_real(p + 0j).flatten() for p in model.parameters()]).detach())
        plan = method.plan()
        assert space.cost(plan).macs <= 0.5 * space.cost().macs
        torch.testing.assert_close(niwaki.cut(model, plan)(x), model(x), **LOOSE)
    torch.testing.assert_close(trained[0], trained[1], rtol=1e-3, atol=1e-5)


def test_a_check_sees_imaginary_parts() -> None:
    """In float64 a complex number is two of these, and their round-off hides nothing."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 8)
            self.turn = nn.Parameter(1j * torch.randn(3, 8, dtype=torch.complex64).real)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = torch.fft.fft(self.first(x).relu().to(torch.complex64) @ self.turn.to(torch.complex64).T)
            return made

    torch.manual_seed(0)
    model, x = Turned(), torch.randn(6, 5)
    space = niwaki.search_space(model, x)
    outcome = niwaki.check(model, niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5)), x)
    assert outcome.holds and outcome.deviation < 1e-14 and outcome.tolerance == 1e-10
    assert outcome.distance > 0.01


class Averaged(nn.Module):
    """Complex numbers made of an average over hidden units and of something else, times a complex weight."""

    def __init__(self, made: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.other, self.made = nn.Linear(5, 8), nn.Linear(5, 1), made
        self.weight = nn.Parameter(torch.randn(1, 4, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return (self.made(torch.relu(self.first(x)).mean(-1, keepdim=True), self.other(x)) @ self.weight).abs()


FACTORS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "length": (torch.polar, True),
    "times i": (lambda mean, other: mean * 1j + mean * other, True),
    "angle": (lambda mean, other: torch.polar(other, mean), False),
    "real part": (torch.complex, False),
    "imaginary part": (lambda mean, other: torch.complex(other, mean), False),
}


@pytest.mark.parametrize("name", FACTORS)
def test_the_factor_of_an_average_goes_through_complex_numbers_as_a_whole(name: str) -> None:
    torch.manual_seed(0)
    made, whole = FACTORS[name]
    net, x = Averaged(made), torch.randn(4, 5, dtype=torch.float64)
    net.first.double(), net.other.double()
    space = niwaki.search_space(net, x)
    assert space.num_units == (8 if whole else 0), [pin.reason for pin in space.pins]
    for seed in range(3 if whole else 0):
        plan = random_plan(space, np.random.default_rng(seed))
        ours, expected = niwaki.cut(net, plan)(x).detach(), zeroed(net, plan)(x).detach()
        assert float((ours - expected).abs().max()) < 1e-10 * float(expected.abs().max())


def test_nothing_over_nothing_is_no_number_here_either() -> None:
    class Divided(Waves):
        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.out(
                torch.relu(self.three(self.two(self.one(x.to(torch.complex64)) / self.scale).abs()))
            )
            return made

    space = niwaki.search_space(Divided(), torch.randn(4, 5))
    assert [group.units for group in space.groups] == [6, 9]
    assert any("turns removed entries into infinities or undefined numbers" in pin.reason for pin in space.pins)
