"""Activation memory as the cost model has it, against the peak that is measured on networks that are cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from handmade import MLP, ConvNet, mlp_space
from networks_of_activations import NETS
from torch import nn
from training import Training, sgd

import niwaki
from niwaki.core.cost import PeakMemory, Terms
from niwaki.criteria import Scores
from niwaki.errors import BudgetError
from niwaki.methods import CRIC, DHSPG, HESSO, HSPG, Schedule
from niwaki.methods.method import Method
from niwaki.report import peak_activations
from niwaki.selection.budget import Budget


@pytest.mark.parametrize("name", NETS)
def test_the_model_is_what_is_measured(name: str) -> None:
    torch.manual_seed(0)
    build, shape = NETS[name]
    model, x = build().eval(), torch.randn(2, *shape)
    space = niwaki.search_space(model, x)
    dense = peak_activations(model, lambda: model(x), [x])
    assert space.cost().activations == dense
    rng, smallest = np.random.default_rng(0), dense
    for share in (0.8, 0.5, 0.3):
        plan = niwaki.choose(space, Scores(rng.uniform(size=space.num_units), ""), Budget(macs=share))
        small = niwaki.cut(model, plan).eval()
        kept = peak_activations(small, lambda small=small: small(x), [x])
        assert space.cost(plan).activations == kept
        smallest = min(smallest, kept)
    assert smallest < dense


def test_fast_paths_of_torch_take_less() -> None:
    model, x = nn.TransformerEncoderLayer(16, 4, 40, batch_first=True).eval(), torch.randn(2, 5, 16)
    told = niwaki.search_space(model, x).cost().activations
    assert told > peak_activations(model, lambda: model(x), [x])
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert told == peak_activations(model, lambda: model(x), [x])
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_a_budget_without_inputs_is_met_by_the_model() -> None:
    torch.manual_seed(0)
    model, x = ConvNet(16, 24), torch.randn(4, 1, 8, 8)
    space = niwaki.search_space(model, x)
    scores = Scores(np.random.default_rng(0).uniform(1, 2, size=space.num_units), "")
    plan = niwaki.choose(space, scores, Budget(activations=0.6))
    small, dense = niwaki.cut(model, plan).eval(), peak_activations(model, lambda: model(x), [x])
    kept = peak_activations(small, lambda: small(x), [x])
    assert 0.5 * dense < kept == space.cost(plan).activations <= 0.6 * dense
    assert plan.provenance["kept"]["activations"] == kept and plan.provenance["dense"]["activations"] == dense
    with pytest.raises(BudgetError, match=r"The budget activations <= 150 \(.* cannot be met: with every group at its"):
        niwaki.choose(space, scores, Budget(activations=150))


@pytest.mark.parametrize(
    ("kind", "options"), [(HESSO, {}), (CRIC, {"layers": 0, "cycle": 3, "cycles": 1}), (DHSPG, {}), (HSPG, {})]
)
def test_methods_meet_it(kind: Callable[..., Method], options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model, x = ConvNet(16, 24), torch.randn(4, 1, 8, 8)
    space = niwaki.search_space(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    method = kind(space, optimizer, Budget(activations=0.6), Schedule(1, 20, periods=2), **options)
    for _ in range(20):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    small, dense = niwaki.cut(model, method.plan()).eval(), peak_activations(model, lambda: model(x), [x])
    assert 0 < peak_activations(small, lambda: small(x), [x]) <= 0.6 * dense
    torch.testing.assert_close(small(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_prices_are_never_more_than_a_return_costs() -> None:
    torch.manual_seed(0)
    space = niwaki.search_space(ConvNet(16, 24), torch.randn(4, 1, 8, 8))
    rng = np.random.default_rng(0)
    for _ in range(5):
        keep = rng.uniform(size=space.num_units) < 0.6
        now, price = space.cost_of(keep).activations, space.cost_model.price(keep.astype(float), "activations")
        merged = space.cost_model.merged()
        assert merged(keep) == space.cost_of(keep)
        for unit in np.flatnonzero(~keep):
            more = keep.copy()
            more[unit] = True
            assert space.cost_of(more).activations - now >= price[unit] - 1e-6


def test_peaks_by_hand() -> None:
    """Three terms, of which the second and third overlap at one moment."""
    terms = Terms(np.array([4.0, 2.0, 3.0]), np.array([[2], [0], [1]]))
    peaks = PeakMemory(terms, np.array([0, 1, 2]), np.array([1, 3, 4]))
    assert peaks.total(np.array([1.0, 1.0])) == 5 and peaks.total(np.array([0.0, 1.0])) == 4
    assert peaks.slopes(np.array([1.0, 1.0])).tolist() == [2.0, 3.0]
    assert peaks.slopes(np.array([0.0, 1.0])).tolist() == [0.0, 0.0]


def test_where_it_is_not_known_it_is_refused() -> None:
    model = MLP()
    space = mlp_space(model)  # made by hand, without a run
    assert space.cost().activations == 0
    with pytest.raises(BudgetError, match="The number of activations alive at once is not known for this search space"):
        HESSO(space, torch.optim.SGD(model.parameters(), lr=0.1), Budget(activations=0.5), Schedule(1, 20))
    run = Training("mlp", sgd)
    with pytest.raises(BudgetError, match="niwaki.choose"):
        niwaki.choose(run.space, Scores(np.ones(run.space.num_units), ""), Budget(activations=0.5))


def test_lifetimes_on_the_meta_device_are_the_same() -> None:
    x = torch.randn(4, 1, 8, 8)
    with torch.device("meta"):
        empty = ConvNet(16, 24)
    assert niwaki.search_space(empty, x).cost() == niwaki.search_space(ConvNet(16, 24), x).cost()


def test_what_a_frame_holds_counts() -> None:
    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 20), nn.Linear(20, 30)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept = self.a(x)
            made = self.b(kept)
            return made.sum(1)  # kept is not used any more, but still there

    model, x = Holds(), torch.randn(3, 4)
    cost = niwaki.search_space(model, x).cost()
    assert cost.activations == 4 * 3 * (20 + 30 + 1) == peak_activations(model, lambda: model(x), [x])
