"""The penalty on all units before HESSO's first selection: by hand, both engines, resume, and what it is for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from training import SCHEDULE, Training, adamw, sgd

import niwaki
from niwaki.errors import MethodError
from niwaki.selection.budget import Budget

FIRST = 5  # the step that ends with the first selection of SCHEDULE, with a window of 3


class Beside(nn.Module):
    """A branch that can leave."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


def still(*rows: float) -> tuple[nn.Sequential, niwaki.SearchSpace]:
    """A layer of one input whose units have these weights, and a reader."""
    model = nn.Sequential(nn.Linear(1, len(rows), bias=False), nn.ReLU(), nn.Linear(len(rows), 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(rows).unsqueeze(1))
    return model, niwaki.search_space(model, torch.ones(1, 1))


def test_the_penalty_by_hand() -> None:
    """The factors rise as 1 : 2 : 3 in their logarithms, and an eighth is left; from then on the fade acts alone."""
    model, space = still(3.0, -1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    schedule = niwaki.Schedule(start=3, until=5, periods=1)
    niwaki.HESSO(space, optimizer, Budget(units=0.5), schedule, window=1, separate=1 / 8)
    for left, second in ((0.125 ** (1 / 6), 1.0), (0.125**0.5, 1.0), (0.125, 1.0), (0.125, 0.5), (0.125, 0.0)):
        model[0].weight.grad = torch.zeros_like(model[0].weight)
        optimizer.step()
        torch.testing.assert_close(model[0].weight.flatten(), torch.tensor([3.0 * left, -left * second]))


def test_what_the_loss_holds_stays() -> None:
    """The smaller of two units has the larger curvature: after the penalty it is the larger one."""
    curvature, at = torch.tensor([[50.0], [0.5]]), torch.tensor([[1.0], [1.2]])
    kept = []
    for separate in (None, 0.3):
        model, space = still(1.0, 1.2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        schedule = niwaki.Schedule(start=40, until=60, periods=1)
        method = niwaki.HESSO(
            *(space, optimizer, Budget(units=0.5), schedule), criteria={"magnitude": 1.0}, separate=separate
        )
        for step in range(60):
            if step == 20:
                assert method.progress.phase == ("waiting" if separate is None else "separating")
            model[0].weight.grad = curvature * (model[0].weight.detach() - at)
            optimizer.step()
        kept.append(int(np.flatnonzero(space.keep_of(method.plan()))[0]))
    assert kept == [1, 0]


def test_the_plain_loop_is_the_specification() -> None:
    runs = [Training("conv", sgd, Budget(macs=0.5), separate=0.5, vectorised=fast) for fast in (False, True)]
    for run in runs:
        run.step(SCHEDULE.until + 1)
    for (name, value), other in zip(runs[0].parameters().items(), runs[1].parameters().values(), strict=True):
        torch.testing.assert_close(value, other, msg=name)
    assert (runs[0].marked() == runs[1].marked()).all() and runs[1].method.done


@pytest.mark.parametrize("stop", [1, FIRST - 1, FIRST, FIRST + 1, SCHEDULE.until - 1])
def test_resumed_in_each_phase(stop: int) -> None:
    whole, first, resumed = (Training("mlp", adamw, Budget(macs=0.5), separate=0.5) for _ in range(3))
    whole.step(SCHEDULE.until + 2)
    first.step(stop)
    state = copy.deepcopy((first.model.state_dict(), first.optimizer.state_dict()))
    resumed.model.load_state_dict(state[0])
    resumed.optimizer.load_state_dict(state[1])
    resumed.done = stop
    resumed.step(SCHEDULE.until + 2 - stop)
    for name, value in resumed.parameters().items():
        assert torch.equal(value, whole.parameters()[name]), name
    assert resumed.method.plan().to_json() == whole.method.plan().to_json()


def test_another_share_is_another_run() -> None:
    one, other = (Training("mlp", sgd, Budget(macs=0.5), separate=separate) for separate in (0.5, 0.6))
    one.step(2)
    with pytest.raises(MethodError, match="separate"):
        other.optimizer.load_state_dict(one.optimizer.state_dict())


def test_errors_are_sentences() -> None:
    with pytest.raises(MethodError, match=r"separate=1.0 must be a finite number, from 0 to below 1: it is"):
        Training("mlp", sgd, Budget(macs=0.5), separate=1.0)
    with pytest.raises(MethodError, match="separate=0 would leave nothing to choose from. Give the share to leave"):
        Training("mlp", sgd, Budget(macs=0.5), separate=0)
    with pytest.raises(MethodError, match=r"separate= needs to know the step of the first selection, which Schedule\("):
        Training("mlp", sgd, Budget(macs=0.5), separate=0.5, schedule=niwaki.Schedule("stable", until=40))
    model = nn.Sequential(nn.Linear(4, 4), Beside())
    space = niwaki.search_space(model, torch.randn(2, 4), erase=True)
    with pytest.raises(MethodError, match="remove='structures' takes structures, which hold units and one another"):
        niwaki.HESSO(space, sgd(model.parameters()), Budget(macs=0.8), SCHEDULE, remove="structures", separate=0.5)
