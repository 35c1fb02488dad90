"""A latency that is predicted, as a limit of choices, of masks that are learnt, and of trainings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ato_run import SCHEDULE, labelled, loss_fn
from torch import Tensor, nn

import niwaki
from niwaki.errors import BudgetError
from niwaki.selection import costs
from niwaki.selection.budget import Budget

LIMIT = Budget(latency=0.5)
SLOW = 200.0  # times as long as its work says


def perceptron() -> tuple[nn.Module, niwaki.SearchSpace]:
    """Its second layer takes nearly all of the time, and its first most of the multiply-accumulates."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4), nn.ReLU(), nn.Linear(4, 2))
    space = niwaki.search_space(model, torch.randn(2, 8))
    work = space.cost_model.work
    assert work is not None
    layers = [number for number, name in enumerate(work.names) if "addmm" in name]
    rate = np.ones(len(work.names))
    rate[layers[1]] = SLOW
    return model, replace(space, cost_model=space.cost_model.timed(rate, 10.0))


def left(space: niwaki.SearchSpace, plan: niwaki.Plan) -> float:
    keep = space.keep_of(plan)
    now, dense = (costs(space.cost_model, units, ["latency"])["latency"] for units in (keep, np.ones_like(keep)))
    return now / dense


METHODS: dict[str, Any] = {
    "hesso": lambda space, optimizer: niwaki.HESSO(space, optimizer, LIMIT, SCHEDULE),
    "ddp": lambda space, optimizer: niwaki.DDPTraining(space, optimizer, LIMIT, SCHEDULE),
    "greg1": lambda space, optimizer: niwaki.GReg1(space, optimizer, LIMIT, SCHEDULE),
    "greg2": lambda space, optimizer: niwaki.GReg2(space, optimizer, LIMIT, SCHEDULE),
    "weightmom": lambda space, optimizer: niwaki.WeightMom(space, optimizer, LIMIT, SCHEDULE),
    "gap": lambda space, optimizer: niwaki.GaP(space, optimizer, LIMIT, SCHEDULE),
    "ato": lambda space, optimizer: niwaki.ATO(
        space, optimizer, LIMIT, SCHEDULE, loss_fn=loss_fn, batches=[labelled(7, 64)], generator="independent"
    ),
}


@pytest.mark.parametrize("kind", METHODS)
def test_methods_meet_it(kind: str) -> None:
    model, space = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    method = METHODS[kind](space, optimizer)
    for step in range(SCHEDULE.until):
        optimizer.zero_grad()
        if kind == "ddp":
            with method.masked():
                loss_fn(model, labelled(step)).backward()
        else:
            loss_fn(model, labelled(step)).backward()
        optimizer.step()
    plan = method.plan()
    assert method.done and niwaki.check(model, plan, torch.randn(2, 8)).holds
    assert 0.3 < left(space, plan) <= 0.5
    assert plan.provenance["predicted"]["latency"] == pytest.approx(left(space, plan))


def test_masks_and_choices_meet_it() -> None:
    model, space = perceptron()
    masks = niwaki.DDPMasks([labelled(7, 64)], loss_fn, steps=40)
    for scores in (masks, niwaki.score(space, "magnitude")):
        plan = niwaki.choose(space, scores, LIMIT)
        assert 0.3 < left(space, plan) <= 0.5 and plan.provenance["predicted"]["latency"] <= 0.5
    plan = niwaki.refine(space, scores, LIMIT, [labelled(n)[0] for n in range(2)], sweeps=1)
    assert niwaki.check(model, plan, torch.randn(2, 8)).holds and left(space, plan) <= 0.5


def test_limits_that_make_no_sense() -> None:
    model, space = perceptron()
    with pytest.raises(BudgetError, match="^latency=300 asks for microseconds, and a latency that is predicted from"):
        niwaki.HESSO(space, torch.optim.SGD(model.parameters(), lr=0.1), Budget(latency=300), SCHEDULE)
    bare = niwaki.search_space(model, torch.randn(2, 8))
    with pytest.raises(BudgetError, match=r"Or train in a space that predicts the latency: niwaki.timed\(space, x\)"):
        niwaki.HESSO(bare, torch.optim.SGD(model.parameters(), lr=0.1), LIMIT, SCHEDULE)
    with pytest.raises(BudgetError, match="^To measure latency, niwaki must run the network: pass example inputs"):
        niwaki.timed(bare, None)


class OtherPath(nn.Module):
    """Runs more for more than two rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu())
        return y.relu() if len(x) > 2 else y


def test_the_times_of_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("niwaki.performance.meters._SECONDS", 0.0)
    torch.manual_seed(0)
    model = OtherPath()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    space = niwaki.search_space(model, torch.randn(2, 8))
    found = niwaki.timed(space, torch.randn(2, 8))
    assert space.cost_model.latency is None and found.cost_model.latency is not None
    everything = np.ones(space.num_units, dtype=bool)
    some = [costs(found.cost_model, np.arange(12) < kept, ["latency"])["latency"] for kept in (12, 6, 1)]
    assert some[0] >= some[1] >= some[2] > 0 and costs(found.cost_model, everything, ["latency"])["latency"] == some[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(
        BudgetError,
        match=r"^The latency of this network cannot be predicted from the times of its operators: \d operators ran "
        r"where the search space was made from \d.* Build the search space from the same inputs",
    ):
        niwaki.timed(space, torch.randn(4, 8))
