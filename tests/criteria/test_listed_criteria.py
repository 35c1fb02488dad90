"""Criteria that were published for single weights: their formulas on cases computed by hand, and by loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from handmade import MLP, mlp_space
from torch import Tensor, nn

import niwaki
from niwaki.criteria import score
from niwaki.criteria.contributions import shares_in_convolution, shares_in_product
from niwaki.errors import MethodError


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def test_drive_by_hand() -> None:
    """y = v relu(w x), the loss y: with x = 2, w = (3, -1), v = (1, 5), dL/dw = (2, 0)."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0], [-1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 5.0]]))
    space = niwaki.search_space(model, torch.ones(1, 1))
    found = score(space, "drive", [torch.tensor([[2.0]])], lambda net, x: net(x).sum())
    assert found.values.tolist() == [3 + 3 * 2 + 2, 1]


def by_loops(x: Tensor, weight: Tensor) -> list[float]:
    """``x`` [samples, inputs], ``weight`` [outputs, inputs]."""
    found = []
    for j in range(x.shape[1]):
        total = 0.0
        for row in weight:
            c = [float((row[j] * one[j]).abs() / (row * one).abs().sum()) for one in x]
            total += float(np.mean(c) + np.std(c))
        found.append(total / len(weight))
    return found


def test_shares_by_hand() -> None:
    """Of 3, -1 the shares are 3/4 and 1/4, of 0, 2 they are 0 and 1: means 3/8, 5/8, deviations 3/8 both."""
    x = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    torch.testing.assert_close(
        shares_in_product(x, torch.tensor([[1.0], [-1.0]])).shares(), torch.tensor([6 / 8, 8 / 8])
    )


def test_shares_are_those_of_every_reader() -> None:
    model = MLP().double()
    space, x = mlp_space(model), torch.randn(7, 6, dtype=torch.double)
    found = score(space, "small_contributions", [x], loss).values
    with torch.no_grad():
        first = torch.relu(model.a(x))
        second = torch.relu(model.b(first))
    expected = by_loops(first, model.b.weight.detach()) + by_loops(second, model.c.weight.detach())
    np.testing.assert_allclose(found, expected, rtol=1e-6)


class Twice(nn.Module):
    """A convolution, one that runs twice, and a weight that is repeated along the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv1d(2, 5, 3, padding=1), nn.Conv1d(5, 5, 3, padding=1)
        self.last = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.first(x))))))
        return torch.bmm(x.mT, self.last.expand(len(x), 5, 3))


@pytest.mark.parametrize("build", [lambda: (MLP(), (6,)), lambda: (Twice(), (2, 4))])
def test_batches_change_no_shares(build: Callable[[], tuple[nn.Module, tuple[int, ...]]]) -> None:
    """Means and deviations are over all samples, which lie in any number of batches of any sizes."""
    torch.manual_seed(0)
    model, shape = build()
    x = torch.randn(9, *shape, dtype=torch.double) * torch.arange(1.0, 10).reshape(9, *(1 for _ in shape))
    space = niwaki.search_space(model.double(), x[:2])
    whole = score(space, "small_contributions", [x], loss).values
    for sizes in ([1] * 9, [2, 7], [4, 4, 1]):
        found = score(space, "small_contributions", x.split(sizes), loss).values
        np.testing.assert_allclose(found, whole, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-25, 1e-30, 1e25])
def test_shares_do_not_depend_on_how_large_numbers_are(size: float) -> None:
    x, weight = torch.rand(6, 3) + 0.1, torch.randn(3, 4)
    expected = shares_in_product(x, weight).shares()
    some = torch.where(torch.arange(6) < 3, size, 1.0)[:, None]
    torch.testing.assert_close(shares_in_product(x * some, weight).shares(), expected)
    torch.testing.assert_close(shares_in_product(x, weight * size).shares(), expected)
    kernel, how = weight.T.reshape(4, 3, 1), ([1], [0], [1], False, [0], 1)
    found = shares_in_convolution((x * some).reshape(6, 3, 1), kernel * size, how).shares()
    torch.testing.assert_close(found, expected)


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv1d(3, 2, 2, dilation=2),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_shares_in_convolutions_are_those_of_the_matrix(kind: str) -> None:
    """A convolution as a matrix: every place is a sample, every weight of the kernel an input of its own there."""
    layer = CONVOLUTIONS[kind]().double()
    shape = (3, 6) if isinstance(layer, nn.Conv1d) else (3, 4, 4)
    x = torch.rand(2, *shape, dtype=torch.double) + 0.1
    size = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    transposed = isinstance(layer, nn.ConvTranspose2d)
    how = [*(list(one) for one in size.values()), transposed, list(layer.output_padding), 1]
    found = shares_in_convolution(x, layer.weight, how).shares()

    def run(weight: Tensor, values: Tensor) -> Tensor:
        return torch.ops.aten.convolution(values, weight, None, *how)

    weight = layer.weight.detach().abs()
    total, expected = run(weight, x), torch.zeros(3, dtype=torch.double)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in weight.shape)):
        one = torch.zeros_like(weight)
        one[tuple(place)] = weight[tuple(place)]
        channel, output = (place[0], place[1]) if transposed else (place[1], place[0])
        c = (run(one, x) / total)[:, output]
        expected[channel] += c.mean() + c.std(correction=0)
    torch.testing.assert_close(found, expected / total.shape[1], rtol=1e-6, atol=0)


def test_an_output_without_inputs_has_no_shares() -> None:
    x, weight = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(shares_in_product(x, weight).shares(), torch.tensor([0.25, 0.25]))


def test_what_small_contributions_need_is_said() -> None:
    with pytest.raises(MethodError, match="'small_contributions' is defined by the activations, so niwaki.score needs"):
        score(mlp_space(MLP()), "small_contributions")
