"""Constants of removed units go into the biases that follow, where that is exact; elsewhere it is said why not."""

from __future__ import annotations

import numpy as np
import torch
from law import randomised
from torch import Tensor, nn

import niwaki
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.surgery.fold import Folded


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
    silent: nn.Module = niwaki.surgery.cut.duplicate(net)
    with torch.no_grad():
        for place in space.places:
            if place.produces and place.parameter:
                kept = plan.tensors[place.tensor][place.dim]
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
