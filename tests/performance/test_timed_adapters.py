"""A latency as the limit of trainings of low-rank adapters: that of the network into which they are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lora import Llama, LoraLinear, adapted
from lora_training import SCHEDULE, TOKENS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import niwaki
from niwaki.errors import BudgetError
from niwaki.methods.lora.pairs import find_pairs, merged_space
from niwaki.performance.merged import without_adapters
from niwaki.performance.predict import predicted
from niwaki.selection.budget import Budget
from niwaki.trace.operators import traits

LIMIT = 0.9  # with every group at its least size 0.83 remain


class Clock(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Each operator takes 10 nanoseconds, and one for each entry of its largest result."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.times: list[float] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not traits(func).inquires:
            outputs = [one for one in (result if isinstance(result, tuple) else (result,)) if isinstance(one, Tensor)]
            self.names.append(str(func))
            self.times.append(10.0 + max(one.numel() for one in outputs))
        return result


def told(runs: Sequence[Callable[[], object]], *_: object) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    """In the place of `niwaki.performance.operators.operators`."""
    found = []
    for run in runs:
        with Clock() as clock:
            run()
        found.append((tuple(clock.names), tuple(clock.times)))
    return found


@pytest.fixture(scope="module")
def space() -> niwaki.SearchSpace:
    torch.manual_seed(1)
    model = adapted(Llama().double())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("niwaki.performance.meters.operators", told)
        return niwaki.timed(niwaki.search_space(model, TOKENS[:2], rehearse=False), TOKENS[:2])


def test_it_is_what_the_merged_network_takes(space: niwaki.SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the space of a network that never had adapters, under the same clock."""
    monkeypatch.setattr("niwaki.performance.meters.operators", told)
    plain = niwaki.timed(niwaki.search_space(Llama().double(), TOKENS[:2], rehearse=False), TOKENS[:2])
    view, _ = merged_space(space, find_pairs(space))
    for seed in range(4):
        keep = np.random.default_rng(seed).random(view.num_units) < 0.6
        assert predicted(view, keep) == pytest.approx(predicted(plain, keep), rel=1e-12)
    everything = np.ones(space.num_units, dtype=bool)
    models = space.cost_model, view.cost_model
    with_adapters, without = (m.latency.total(m.counts(everything[: m.counts.num_units])) for m in models if m.latency)
    assert without < 0.8 * with_adapters, "adapters take time that the merged network does not"


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def lhspg(space: niwaki.SearchSpace, optimizer: torch.optim.Optimizer, budget: Budget) -> niwaki.LHSPG:
    return niwaki.LHSPG(space, optimizer, budget, SCHEDULE, loss=lambda: loss_fn(space.model, TOKENS))


def atp(space: niwaki.SearchSpace, optimizer: torch.optim.Optimizer, budget: Budget) -> niwaki.ATP:
    schedule = niwaki.Schedule(start=2, until=40)
    batches = [TOKENS[:4], TOKENS[4:8]]
    return niwaki.ATP(space, optimizer, budget, schedule, loss_fn=loss_fn, batches=batches, generator="independent")


@pytest.mark.parametrize("method", [lhspg, atp])
def test_methods_for_adapters_meet_it(space: niwaki.SearchSpace, method: Any) -> None:
    model = space.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    made = method(space, optimizer, Budget(latency=LIMIT))
    view, number = merged_space(space, find_pairs(space))
    while not made.done and made.step < 60:
        optimizer.zero_grad()
        if isinstance(made, niwaki.ATP):
            with made.masked():
                loss_fn(model, TOKENS[:8]).backward()
        else:
            loss_fn(model, TOKENS[:8]).backward()
        optimizer.step()
    assert made.done
    plan = made.plan()
    left = predicted(view, space.keep_of(plan)[number])
    assert LIMIT - 0.05 < left <= LIMIT and plan.provenance["predicted"]["latency"] == pytest.approx(left, rel=1e-4)
    assert niwaki.check(model, plan, TOKENS[:2]).holds
    made.detach()
    model.load_state_dict(before)


def test_limits_that_make_no_sense(space: niwaki.SearchSpace) -> None:
    optimizer = torch.optim.AdamW([p for p in space.model.parameters() if p.requires_grad])
    for method in (lhspg, atp):
        with pytest.raises(BudgetError, match="^latency=300 asks for microseconds, and a latency that is predicted"):
            method(space, optimizer, Budget(latency=300))
        bare = replace(space, cost_model=replace(space.cost_model, latency_merged=None))
        with pytest.raises(BudgetError, match=r"Or train in a space that predicts the latency: niwaki.timed"):
            method(bare, optimizer, Budget(latency=0.5))


class Doubling(LoraLinear):
    """Computes something before its pair, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2)


def test_what_a_holder_computes_goes_with_its_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the clock of the machine: only the operators of the layer beside the pair are left."""
    monkeypatch.setattr("niwaki.performance.meters._SECONDS", 0.0)
    model = nn.Sequential(Doubling(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    model[0].base_layer.weight.requires_grad_(False)
    x = torch.randn(2, 4)
    space = niwaki.timed(niwaki.search_space(model, x), x)
    view, _ = merged_space(space, find_pairs(space))
    shares = [predicted(view, np.arange(view.num_units) < kept) for kept in (view.num_units, 3, 1)]
    assert shares[0] == 1 and shares[0] >= shares[1] >= shares[2] > 0
    bare = without_adapters(niwaki.cut(model, space.plan(np.ones(space.num_units, dtype=bool))))
    assert isinstance(bare[0], nn.Linear) and isinstance(model[0], Doubling)
