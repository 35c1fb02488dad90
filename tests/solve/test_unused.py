"""What a forward pass computes and throws away holds nothing, unless somebody may see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.testing import check_model


class Averaging(nn.Module):
    """Eight channels, whose average is used in some way or not at all."""

    def __init__(self, use: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last, self.use, self.kept = nn.Linear(3, 8), nn.Linear(8, 2), use, []
        self.buffer = nn.Buffer(torch.zeros(4))

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.first(x))
        more = self.use(self, h.mean(1))
        result = self.last(h)
        return result if more is None else (result, more)


def _stored(self: Any, mean: Tensor) -> None:
    self.aux_loss = mean.square()


def _listed(self: Any, mean: Tensor) -> None:
    self.kept.append(mean[:2])


def _written(self: Any, mean: Tensor) -> None:
    self.buffer.copy_(mean)


def _through_a_view(self: Any, mean: Tensor) -> None:
    self.view = mean.new_zeros(2, 4)
    self.view[1].add_(mean)


def _as_number(self: Any, mean: Tensor) -> None:
    self.number = mean.sum().item()


def _as_array(self: Any, mean: Tensor) -> None:
    self.array = mean.numpy().copy()


SEEN = [_stored, _listed, _written, _through_a_view, _as_number, _as_array, lambda self, mean: mean * 2]


@pytest.mark.parametrize("use", SEEN)
def test_what_somebody_may_see_holds_its_channels(use: Callable[[Any, Tensor], Any]) -> None:
    space = niwaki.search_space(Averaging(use), torch.randn(4, 3))
    assert not space.num_units
    assert any("a mean over this dimension counts its entries" in str(pin) for pin in space.pins)


def _spent(self: Any, mean: Tensor) -> None:
    weights = (mean * 2).softmax(0)
    weights += 1
    del weights


@pytest.mark.parametrize("use", [lambda self, mean: None, _spent])
def test_what_is_thrown_away_holds_nothing(use: Callable[[Any, Tensor], Any]) -> None:
    torch.manual_seed(0)
    report = check_model(Averaging(use), torch.randn(4, 3), least_coverage=0.9)
    assert report.units == 8


def test_one_run_throws_away_what_another_keeps() -> None:
    def in_train_mode(self: Any, mean: Tensor) -> None:
        if self.training:
            self.aux_loss = mean

    assert not niwaki.search_space(Averaging(in_train_mode), torch.randn(4, 3)).num_units


class Attended(nn.Module):
    """Attention as it is mostly called: the weights come back averaged over heads, and are not looked at."""

    def __init__(self, others: bool, keys: int = 8, values: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True, kdim=keys, vdim=values)
        self.others, self.keys, self.values = others, nn.Linear(8, keys), nn.Linear(8, values)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        keys, values = (self.keys(x), self.values(x)) if self.others else (x, x)
        y, _ = self.attention(x, keys, values)
        result: Tensor = self.last(x + y)
        return result


@pytest.mark.parametrize("others", [False, True])
def test_heads_of_an_attention_whose_weights_nobody_asks_for(others: bool) -> None:
    torch.manual_seed(0)
    report = check_model(Attended(others), torch.randn(2, 5, 3))
    assert report.units == 12


def test_keys_and_values_of_widths_of_their_own() -> None:
    torch.manual_seed(0)
    model, x = Attended(True, keys=6, values=5), torch.randn(2, 5, 3)
    assert check_model(model, x).units == 8 + 4 + 6 + 5
    space = niwaki.search_space(model, x)
    small = niwaki.cut(model, niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5)))
    attention = small.attention
    assert attention.embed_dim == attention.q_proj_weight.shape[1] < 8
    assert (attention.kdim, attention.vdim) == (attention.k_proj_weight.shape[1], attention.v_proj_weight.shape[1])
