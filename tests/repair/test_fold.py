"""Constants of removed units go into the biases that follow, where that is exact; elsewhere it is said why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import niwaki
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.repair.fold import Folded
from niwaki.surgery.cut import duplicate
from niwaki.testing.models import randomised


def _half(space: SearchSpace) -> Plan:
    keep = np.ones(space.num_units, dtype=bool)
    for group in space.groups:
        keep[group.first : group.first + group.units // 2] = False
    return space.plan(keep)


def _folded(net: nn.Module, x: Tensor) -> tuple[Folded, Tensor, Tensor]:
    """What folding says, the output of its cut, and that of the network whose producers alone are zero."""
    space = niwaki.search_space(net, x)
    plan = _half(space)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = niwaki.fold_constants(space, plan, x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    silent = duplicate(net)
    with torch.no_grad():
        for place in space.dims:
            if place.role.produces and place.parameter:
                kept = plan.tensors.get(place.tensor, {}).get(place.dim, range(len(place.units)))
                gone = [i for i in range(len(place.units)) if i not in kept]
                silent.get_parameter(place.tensor).index_fill_(place.dim, torch.tensor(gone), 0)
        return result, niwaki.cut(result.model, plan)(x), silent(x)


def _convolutions(padding: int, mode: str = "zeros", bias: bool = True) -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Sigmoid(),
        nn.Conv2d(8, 4, 3, padding=padding, padding_mode=mode, bias=bias),
    )
    return randomised(net).double().eval()


def test_folding_keeps_what_silent_units_send_out() -> None:
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    for net in (_convolutions(0), _convolutions(1, mode="replicate")):
        result, ours, expected = _folded(net, x)
        assert result.folded == ("3",) and not result.left
        assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
        assert "biases of 1 layers" in str(result)


def test_without_folding_the_constant_is_lost() -> None:
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    net = _convolutions(0)
    space = niwaki.search_space(net, x)
    _, _, expected = _folded(net, x)
    assert not torch.allclose(niwaki.cut(net, _half(space))(x), expected, atol=1e-3)


def test_zero_padding_has_no_constant_at_the_border() -> None:
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    result, ours, expected = _folded(_convolutions(1), x)
    assert result.left == {"3": "it pads with zeros, so the constant is missing at the border"}
    assert not torch.allclose(ours, expected, atol=1e-3)
    assert "not 3: it pads with zeros" in str(result)


def test_layers_without_a_bias_and_silent_ones_are_left() -> None:
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert _folded(_convolutions(0, bias=False), x)[0].left == {"3": "it has no bias"}
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    result, ours, expected = _folded(net, torch.randn(4, 3, dtype=torch.float64))
    assert result.folded == () and not result.left
    assert torch.allclose(ours, expected, rtol=0, atol=1e-12)


def test_what_depends_on_the_input_is_not_folded() -> None:
    class Shifted(nn.Module):
        """Removed units carry what comes from elsewhere."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.second(self.first(x) + x.sum(1, keepdim=True))
            return result

    result, _, _ = _folded(Shifted().double(), torch.randn(4, 3, dtype=torch.float64))
    assert result.left == {"second": "what it reads from removed units is not constant"}


class Behind(nn.Module):
    """``reads`` what removed units of a linear layer have become: 0.5, by a sigmoid."""

    def __init__(self, reads: nn.Module, width: int = 7) -> None:
        super().__init__()
        self.first, self.reads, self.last = nn.Linear(5, 8), reads, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        read = self.reads(torch.sigmoid(self.first(x)))
        result: Tensor = self.last(read[0] if isinstance(read, tuple) else read)
        return result


class Cell(nn.Module):
    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(input=step, hx=state) if state is not None else self.cell(step)
        assert isinstance(state, Tensor)
        return state


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True, **options)
        self.query = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        if self.attention.in_proj_weight is None:
            result: Tensor = self.attention(self.query(x), key=x, value=x)[0]
        else:
            y = torch.sigmoid(self.query(x))
            result = self.attention(y, y, y)[0]
        return result


class Bare(nn.Module):
    """Reads by parameters of its own."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.functional = functional
        self.weight, self.bias = nn.Parameter(torch.randn(7, 8)), nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias) if self.functional else x @ self.weight.T + self.bias


class Uncalled(nn.Module):
    """A layer of which only the parameters are used."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.inner.weight, self.inner.bias)


class Own(nn.Linear):
    """Computes something of its own from its input."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight) * self.bias


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 7), nn.Linear(8, 7)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.one(x) + self.other(x)
        return result


class Doubled(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inside(x, x)
        return result


@pytest.mark.parametrize(
    ("reads", "folded", "reason"),
    [
        (lambda: nn.GRU(8, 7, 2, batch_first=True), ("reads",), None),
        (lambda: nn.LSTM(8, 7, batch_first=True), ("reads",), None),
        (lambda: nn.RNN(8, 7, batch_first=True), ("reads",), None),
        (lambda: nn.RNN(8, 7, batch_first=True, bias=False), (), {"reads": "it has no bias"}),
        (lambda: Cell(nn.GRUCell(8, 7)), ("reads.cell",), None),
        (lambda: Attention(), ("reads.attention", "reads.query"), None),
        (lambda: Attention(kdim=8, vdim=8), ("reads.attention", "reads.query"), None),
        (lambda: Attention(kdim=8, vdim=8, bias=False), ("reads.query",), {"reads.attention": "it has no bias"}),
        (lambda: Doubled(nn.Bilinear(8, 8, 7)), None, None),
        (lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 7)), None, None),
        (lambda: Bare(True), (), {"reads.weight": "it is read outside of the layers whose biases niwaki knows"}),
        (lambda: Bare(False), (), {"reads.weight": "it is read outside of the layers whose biases niwaki knows"}),
        (Uncalled, (), {"reads.inner": "no example input reached it as a layer of its own"}),
        (lambda: Own(8, 7), (), {"reads": "its class computes something of its own"}),
        (Twice, (), {"reads.one": "it shares its weight or bias with another module"}),
    ],
)
def test_whatever_reads_a_constant_takes_it_up_or_is_listed(
    reads: Callable[[], nn.Module], folded: tuple[str, ...] | None, reason: dict[str, str] | None
) -> None:
    torch.manual_seed(0)
    inside = reads()
    net = Behind(inside, 6 if isinstance(inside, Attention) else 7).double().eval()
    result, ours, expected = _folded(net, torch.randn(3, 4, 5, dtype=torch.float64))
    assert folded is None or tuple(sorted(result.folded)) == folded
    assert dict(result.left) == (reason or {}) if folded is not None else True
    assert bool(result.left) != torch.allclose(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kernel", "stride", "exact"), [(1, 1, True), (2, 2, False), (3, 1, False)])
def test_a_transposed_convolution_takes_a_constant_up_where_it_stays_one(kernel: int, stride: int, exact: bool) -> None:
    layers = nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.ConvTranspose2d(8, 6, kernel, stride), nn.Conv2d(6, 2, 1)
    net = nn.Sequential(*layers).double().eval()
    result, ours, expected = _folded(net, torch.randn(2, 3, 6, 6, dtype=torch.float64))
    assert result.folded == (("2",) if exact else ())
    assert exact or "output of a transposed convolution for a constant is not constant" in result.left["2"]
    assert torch.allclose(ours, expected, rtol=0, atol=1e-12) == exact


@pytest.mark.parametrize("tokens", [False, True])
def test_what_differs_from_sample_to_sample_is_no_constant(tokens: bool) -> None:
    """Within one call, all places read the same."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 3)
            self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x) if tokens else x
            result: Tensor = self.second(self.first(x) + x[:1, :1].amax(-1, keepdim=True))
            return result

    x = torch.arange(8).view(2, 4) if tokens else torch.randn(2, 4, 3, dtype=torch.float64)
    result, _, _ = _folded(Shifted().double(), x)
    assert result.left == {"second": "what it reads from removed units is not constant"} and not result.folded
