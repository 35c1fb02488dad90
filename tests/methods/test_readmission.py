"""HESSO's option that a unit which fades but whose saliency recovers returns before it is zero."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from handmade import MLP, mlp_space

from niwaki.errors import MethodError
from niwaki.methods import HESSO, Schedule
from niwaki.methods.portions import FADING, IMPORTANT, ZERO
from niwaki.selection.budget import Budget

SCHEDULE = Schedule(start=1, until=17, periods=2)  # periods of steps 2 to 9 and 10 to 17, whose middles are 5 and 13


class Training:
    """Weights that nothing but the method and the test changes: the first layer's units have the norms 1, 2, ..."""

    def __init__(self, readmit: bool, vectorised: bool = True, lr: float = 0.0) -> None:
        self.model = MLP(6, 12, 8).double()
        with torch.no_grad():
            for layer in (self.model.a, self.model.b):
                layer.bias.zero_()
                layer.weight.zero_()
                layer.weight[:, 0] = torch.arange(1.0, len(layer.weight) + 1)
        self.space = mlp_space(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.method = HESSO(
            self.space,
            self.optimizer,
            Budget(units=0.5),
            SCHEDULE,
            criteria={"magnitude": 1.0},
            window=1,
            readmit=readmit,
            vectorised=vectorised,
        )

    def step(self, number: int) -> None:
        x = torch.ones(2, 6, dtype=torch.double)
        for _ in range(number):
            self.optimizer.zero_grad()
            self.model(x).square().mean().backward()
            self.optimizer.step()

    @property
    def status(self) -> np.ndarray:
        return self.method.selector.status.copy()


@pytest.mark.parametrize("vectorised", [True, False])
def test_a_unit_that_recovers_returns(vectorised: bool) -> None:
    for readmit in (True, False):
        run = Training(readmit, vectorised)
        run.step(1)
        fading = np.flatnonzero(run.status[:12] == FADING)
        last, next_to_go = int(fading.max()), int(fading.max()) + 1
        factor = 1.25 * (next_to_go + 1) / (last + 1)  # worth more than what is next, but for its fading
        with torch.no_grad():
            run.model.a.weight[last] *= factor
        run.step(4)
        status = run.status
        assert run.model.a.weight[last].norm() < next_to_go + 1
        if not readmit:
            assert status[last] == FADING and status[next_to_go] == IMPORTANT
            continue
        assert status[last] == IMPORTANT and status[next_to_go] == FADING
        assert (status == FADING).sum() == 5
        kept = run.model.a.weight[last].clone()
        run.step(4)
        assert run.status[next_to_go] == ZERO and not run.model.a.weight[next_to_go].any()
        assert torch.equal(run.model.a.weight[last], kept)
        run.step(8)
        assert run.method.progress.phase == "done" and (run.status != IMPORTANT).sum() == 10
        gone = torch.from_numpy(run.status[:12] == ZERO)
        assert not run.model.a.weight[gone].any() and run.model.a.weight[~gone].norm(dim=1).min() > 0


def test_nothing_returns_where_nothing_changed() -> None:
    """Half faded, the units that were least are still the least: they are compared as if they had not faded."""
    runs = [Training(readmit) for readmit in (True, False)]
    for steps in (1, 4, 4, 8):
        for run in runs:
            run.step(steps)
        assert (runs[0].status == runs[1].status).all()
    assert torch.equal(runs[0].model.a.weight, runs[1].model.a.weight)


def test_resumed_before_a_review() -> None:
    whole = Training(True, lr=1e-3)
    whole.step(5 - 1)
    model, state = copy.deepcopy(whole.model.state_dict()), copy.deepcopy(whole.optimizer.state_dict())
    whole.step(13)
    again = Training(True, lr=1e-3)
    again.model.load_state_dict(model)
    again.optimizer.load_state_dict(state)
    again.step(13)
    assert (again.status == whole.status).all()
    assert all(torch.equal(x, y) for x, y in zip(again.model.parameters(), whole.model.parameters(), strict=True))
    off = Training(False)
    with pytest.raises(MethodError, match="with readmit = True, but here it is None"):
        off.optimizer.load_state_dict(state)


def test_short_periods_have_no_middle() -> None:
    method = Training(True).method
    steps = range(1, 18)
    assert [step for step in steps if method.selector.scores.timeline.reviews(step)] == [5, 13]
    assert {
        step: method.selector.scores.timeline.previews(step)
        for step in steps
        if method.selector.scores.timeline.previews(step)
    } == {
        5: 8 / 5,
        13: 8 / 5,
    }
    with pytest.raises(MethodError, match="readmit=1 must be True or False"):
        Training(1)  # type: ignore[arg-type]
