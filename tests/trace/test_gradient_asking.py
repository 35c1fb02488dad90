"""Code that asks whether gradients are recorded, of which the analysis records none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import niwaki

_SAYS = "asks whether gradients are recorded"
_ASKING: dict[str, Callable[[Tensor], bool]] = {
    "requires_grad": lambda h: h.requires_grad,
    "the mode": lambda _: torch.is_grad_enabled(),
    "grad_fn": lambda h: h.grad_fn is not None,
    "is_leaf": lambda h: not h.is_leaf,
}


class Asking(nn.Module):
    """``other`` is what it computes where it is told of gradients."""

    def __init__(self, asks: Callable[[Tensor], bool], other: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.drop, self.two = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)
        self.asks, self.other = asks, other

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.drop(self.one(x))
        if self.asks(hidden):
            hidden = self.other(hidden)
        return self.two(hidden)


def _notes(net: nn.Module, x: Tensor) -> list[str]:
    return [note for note in niwaki.search_space(net, x, rehearse=False).notes if _SAYS in note]


@pytest.mark.parametrize("asking", _ASKING)
@pytest.mark.parametrize("train", [False, True])
def test_another_network_with_gradients_is_told(asking: str, train: bool) -> None:
    net = Asking(_ASKING[asking], lambda h: h.flip(-1)).train(train)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    drawn = torch.random.get_rng_state()
    (note,) = _notes(net, torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    assert "test_gradient_asking.py:" in note and "computes something else" in note
    assert net.training is train and all(torch.equal(net.state_dict()[name], before[name]) for name in before)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.is_grad_enabled.__module__ != "niwaki.trace.gradients"


@pytest.mark.parametrize("asking", _ASKING)
def test_the_same_network_with_gradients_is_not(asking: str) -> None:
    assert not _notes(Asking(_ASKING[asking], lambda h: h.clone()), torch.randn(5, 4))


def test_torch_asks_for_itself() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert not _notes(nn.Sequential(nn.Linear(4, 8), layer), torch.randn(2, 5, 4))


def test_what_cannot_be_compared_is_told() -> None:
    with torch.device("meta"):
        net = Asking(_ASKING["requires_grad"], lambda h: h.flip(-1))
        (note,) = _notes(net, torch.randn(5, 4))
    assert "cannot be found out without values" in note


def test_what_only_fails_with_gradients_is_told() -> None:
    def fails(_: Tensor) -> Tensor:
        raise OSError("not with gradients")

    (note,) = _notes(Asking(_ASKING["requires_grad"], fails), torch.randn(5, 4))
    assert "does not run (OSError)" in note


def test_a_network_that_draws_its_own_numbers_is_not() -> None:
    """What cannot be repeated tells nothing of gradients."""
    count = iter(range(1, 100))
    net = Asking(_ASKING["requires_grad"], lambda h: h)
    net.register_forward_hook(lambda _, __, result: result * next(count))
    assert not _notes(net, torch.randn(5, 4))
