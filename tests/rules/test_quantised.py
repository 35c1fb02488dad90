"""Networks that torch has prepared for training with quantisation, or quantised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization

import niwaki
from niwaki.surgery.zero import zeroed
from niwaki.testing.models import random_plan

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # torch.ao.quantization is on its way to another package
]
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def prepared(backend: str = "fbgemm", norm: bool = False, passes: int = 2, observers: bool = True) -> nn.Module:
    """conv, conv and a linear layer after `prepare_qat`; ``norm``: behind the first there is one that is not folded."""
    torch.manual_seed(0)
    net = nn.Sequential(
        quantization.QuantStub(),
        nn.Conv2d(3, 12, 3, padding=1),
        *([nn.BatchNorm2d(12)] if norm else []),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
        quantization.DeQuantStub(),
    ).train()
    names = [["1", "2", "3"], ["4", "5"]] if norm else [["1", "2"], ["3", "4"]]
    net = quantization.fuse_modules_qat(net, names)
    net.qconfig = quantization.get_default_qat_qconfig(backend)
    net = quantization.prepare_qat(net)
    for _ in range(passes):
        net(torch.randn(4, 3, 8, 8))
    if not observers:
        net.apply(quantization.disable_observer)
    return net.eval()


def gap(net: nn.Module, plan: niwaki.Plan) -> float:
    """How far the cut network is from the zeroed one. (In float32, the only precision that these kernels know: where
    the sums differ in their last bit a number may come to lie on the next point of a grid.)"""
    with torch.no_grad():
        small, zero = niwaki.cut(net, plan)(X), zeroed(net, plan)(X)
    return float((small - zero).abs().max() / zero.abs().max())


@pytest.mark.parametrize(
    ("backend", "passes", "observers"),
    [("fbgemm", 2, True), ("fbgemm", 2, False), ("fbgemm", 0, True), ("qnnpack", 2, True), ("x86", 2, False)],
)
def test_prepared_networks_can_be_cut_exactly(backend: str, passes: int, observers: bool) -> None:
    net = prepared(backend, passes=passes, observers=observers)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    space = niwaki.search_space(net, X)
    assert space.num_units == 28, [pin.reason for pin in space.pins]
    after = net.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    rng = np.random.default_rng(0)
    for _ in range(3):
        plan = random_plan(space, rng)
        if passes:
            scales = [name for name, dims in plan.tensors.items() if name.endswith("scale") and 0 in dims]
            assert len(scales) == (2 if backend != "qnnpack" else 0)  # one for each channel
        assert gap(net, plan) < 0.02


def test_weights_on_a_grid_for_each_channel() -> None:
    """Weights alone, by the module that is not fused: zero is on each of its grids."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)
    )
    weight = quantization.FakeQuantize.with_args(
        observer=quantization.PerChannelMinMaxObserver,
        quant_min=-128,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )
    net.train().qconfig = quantization.QConfig(activation=nn.Identity, weight=weight)
    net = quantization.prepare_qat(net)
    net(X)
    space = niwaki.search_space(net.apply(quantization.disable_observer).eval(), X)
    assert space.num_units == 28, [pin.reason for pin in space.pins]
    assert gap(net, random_plan(space, np.random.default_rng(0))) < 1e-5


def test_observers_are_mentioned_in_a_note() -> None:
    space = niwaki.search_space(prepared(), X)
    assert sum("Observers of fake quantisation take the range" in note for note in space.notes) == 1


def test_a_norm_that_its_own_scale_is_divided_out_of_stays() -> None:
    space = niwaki.search_space(prepared(norm=True), X)
    assert space.num_units == 16
    assert any("turns removed entries into infinities" in pin.reason for pin in space.pins)


class Noisy(nn.Module):
    """Two linear layers, with noise in train mode, so that both modes are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.plain, self.out = (
            nn.Embedding(20, 16),
            nn.Parameter(torch.randn(16, 16)),
            nn.Parameter(torch.randn(16, 16)),
        )
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.relu(self.table(tokens) @ self.plain) @ self.out
        y = self.up(x)
        return self.down(y + 0.1 * torch.randn_like(y) if self.training else y)


def test_what_meets_packed_weights_stays() -> None:
    net = quantization.quantize_dynamic(Noisy(), {nn.Linear}, dtype=torch.qint8)
    space = niwaki.search_space(net, torch.randint(0, 20, (2, 7)))
    assert [group.units for group in space.groups] == [16, 16]  # the table's width, and the hidden width behind it
    assert any("no rule for the operator quantized.linear_dynamic" in pin.reason for pin in space.pins)
