"""GReg: the penalty's formula on a case computed by hand, both engines, and what curvature makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training import SCHEDULE, Training, sgd, two_rates

import niwaki
from niwaki.errors import MethodError
from niwaki.methods import GReg1, GReg2
from niwaki.selection.budget import Budget


def still(*rows: float) -> tuple[nn.Sequential, niwaki.SearchSpace]:
    """A layer of one input whose units have these weights, and a reader."""
    model = nn.Sequential(nn.Linear(1, len(rows), bias=False), nn.ReLU(), nn.Linear(len(rows), 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(rows).unsqueeze(1))
    return model, niwaki.search_space(model, torch.ones(1, 1))


def without_loss(model: nn.Sequential, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        model[0].weight.grad = torch.zeros_like(model[0].weight)
        optimizer.step()


def test_the_penalty_by_hand() -> None:
    """Chosen after step 2; on steps 3 and 4 the penalty is 0.5 and 1, the learning rate 0.2; gone after step 5."""
    model, space = still(3.0, -1.0, 2.0, 4.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    GReg1(space, optimizer, Budget(units=0.5), niwaki.Schedule(start=2, until=5, periods=1), growth=0.5)
    shrunk = [1.0, 1.0, 1 / 1.1, 1 / 1.1 / 1.2, 0.0, 0.0]
    for left in shrunk:
        without_loss(model, optimizer, 1)
        torch.testing.assert_close(model[0].weight.flatten(), torch.tensor([3.0, -1.0 * left, 2.0 * left, 4.0]))


@pytest.mark.parametrize("steps", [2, 3, 40])
def test_by_default_a_thousandth_is_left(steps: int) -> None:
    model, space = still(3.0, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    GReg1(space, optimizer, Budget(units=0.5), niwaki.Schedule(start=1, until=1 + steps, periods=1))
    without_loss(model, optimizer, steps)
    assert float(model[0].weight.detach()[1]) == pytest.approx(1e-3, rel=1e-4)
    without_loss(model, optimizer, 1)
    assert model[0].weight.flatten().tolist() == [3.0, 0.0]


def test_greg2_keeps_what_the_loss_holds() -> None:
    """1/2 h (w - w0)^2: the minimum under a penalty is at h / (h + penalty) w0, so that the smaller of two units stays
    if its curvature h is larger; GReg-1 removes it."""
    curvature, at = torch.tensor([[50.0], [0.5]]), torch.tensor([[1.0], [1.2]])
    kept = []
    for kind in (GReg1, GReg2):
        model, space = still(1.0, 1.2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        method = kind(space, optimizer, Budget(units=0.5), niwaki.Schedule(start=1, until=201, periods=1), growth=0.02)
        for step in range(201):
            model[0].weight.grad = curvature * (model[0].weight.detach() - at)
            optimizer.step()
            if step == 45 and kind is GReg2:
                assert method.progress.phase == "separating" and model[0].weight[1] < model[0].weight[0] < 1
        kept.append(int(np.flatnonzero(space.keep_of(method.plan()))[0]))
    assert kept == [1, 0]


@pytest.mark.parametrize("growth", [None, 0.3])
@pytest.mark.parametrize("kind", [GReg1, GReg2])
def test_the_plain_loop_is_the_specification(kind: type, growth: float | None) -> None:
    runs = [
        Training("conv", two_rates, Budget(macs=0.5), kind=kind, growth=growth, vectorised=vectorised)
        for vectorised in (False, True)
    ]
    for run in runs:
        run.step(SCHEDULE.until + 1)
    for (name, value), other in zip(runs[0].parameters().items(), runs[1].parameters().values(), strict=True):
        torch.testing.assert_close(value, other, msg=name)
    assert (runs[0].marked() == runs[1].marked()).all() and runs[1].method.done


def test_others_take_the_bare_step() -> None:
    bare, run = Training("mlp", sgd), Training("mlp", sgd, Budget(macs=0.5), kind=GReg1)
    for one in (bare, run):
        one.step(4)
    leaving, others = run.driven(run.method.units.leaving), bare.parameters()
    for name, value in run.parameters().items():
        assert torch.equal(value[~leaving[name]], others[name][~leaving[name]]), name
        assert not torch.equal(value[leaving[name]], others[name][leaving[name]]) or not leaving[name].any(), name
    assert leaving["a.weight"].any()


def test_errors_are_sentences() -> None:
    def built(**options: object) -> Tensor:
        return Training("mlp", sgd, Budget(macs=0.5), kind=GReg2, **options)  # type: ignore[return-value]

    with pytest.raises(MethodError, match="growth=-1 must be a finite number, 0 or more: the penalty on the weights"):
        built(growth=-1)
    with pytest.raises(MethodError, match="pick=1.0 must be a finite number, from 0 to below 1: it is the share of"):
        built(pick=1.0)
    with pytest.raises(MethodError, match="the ramp 'cubic', but GReg-2 does not choose units in portions"):
        built(schedule=niwaki.Schedule(start=2, until=20, ramp="cubic"))
