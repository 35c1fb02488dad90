"""GaP: who is there when, what returns and as what, and that it ends within the budget, resumed or not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from handmade import ConvNet
from torch import nn
from training import Training, adamw

import niwaki
from niwaki.errors import MethodError
from niwaki.methods import GaP
from niwaki.methods.grow_and_prune import parts_of
from niwaki.selection.budget import Budget

SCHEDULE = niwaki.Schedule(start=2, until=12, periods=2)


def made(net: str = "mlp", **options: object) -> Training:
    return Training(net, adamw, Budget(macs=0.5), SCHEDULE, kind=GaP, **{"window": 1} | options)


def test_the_cycle_by_hand() -> None:
    """Two layers of four units of sizes 1 to 4, no loss: the two smallest of each leave after step 1, and return, as
    they were, layer by layer. In its period the second layer's smallest grows, and takes the place of a larger one."""
    model = nn.Sequential(
        *(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))
    )
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])))
    space = niwaki.search_space(model, torch.ones(1, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = niwaki.Schedule(start=1, until=5, periods=2)
    method = GaP(space, optimizer, Budget(units=0.5), schedule, criteria={"magnitude": 1.0}, window=1)
    there = []
    for step in range(1, 7):
        for layer in (model[0], model[2]):
            layer.weight.grad = torch.zeros_like(layer.weight)
        if step == 4:  # to 5 at a learning rate of 1
            model[2].weight.grad[0, 0] = -4.0
        optimizer.step()
        there.append([torch.diag(layer.weight.detach()).tolist() for layer in (model[0], model[2])])
    small, whole, other = [0.0, 0.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [5.0, 0.0, 0.0, 4.0]
    first, second = [whole, small], [small, whole]
    assert there == [first, first, second, [small, [5.0, 2.0, 3.0, 4.0]], [small, other], [small, other]]
    assert method.progress.phase == "done" and [len(kept) for kept in method.plan().kept.values()] == [2, 2]


def test_the_budget_holds_but_for_the_part_that_grows() -> None:
    run = made("conv")
    run.step(2)
    with pytest.warns(UserWarning, match="leaves the part that is grown at its full width, and need"):
        run.method.plan()
    parts = parts_of(run.space, 2)
    for period in range(2):
        zero = run.method.selector.zero()
        assert not zero[parts[period]].any() and zero[parts[1 - period]].any()
        run.step(5)
    plan = run.method.plan()
    assert run.method.done and run.method.progress.macs <= 0.5
    model = run.model.eval()
    torch.testing.assert_close(niwaki.cut(model, plan)(run.x[0]), model(run.x[0]))


def test_it_resumes_to_the_same_bits() -> None:
    whole = made()
    whole.step(14)
    for done in (1, 2, 5, 7, 9, 12):
        first, again = made(), made()
        first.step(done)
        again.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
        again.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
        again.done = done
        again.step(14 - done)
        for value, other in zip(again.parameters().values(), whole.parameters().values(), strict=True):
            assert torch.equal(value, other), f"resumed after {done}"
        assert (again.marked() == whole.marked()).all()


def test_norms_know_what_returns() -> None:
    """While a unit is at zero, running statistics become those of zeros; they return with it, for eval mode."""
    schedule = niwaki.Schedule(start=2, until=17, periods=3)  # the second of three parts grows after step 7
    run, first = (Training("conv", adamw, Budget(macs=0.5), schedule, kind=GaP, window=1) for _ in range(2))
    run.model.norm1.momentum = first.model.norm1.momentum = 0.5
    names = ("running_mean", "running_var")
    run.step(2)
    at_zero = run.method.selector.zero()
    (group,) = (g for g in run.space.groups if any(piece.tensor == "norm1.running_var" for piece in g.slices))
    gone = torch.from_numpy(np.flatnonzero(at_zero[group.numbers]))
    before = {name: getattr(run.model.norm1, name)[gone].clone() for name in names}
    assert len(gone)
    run.step(4)
    assert run.model.norm1.running_var[gone].max() < 0.2 * before["running_var"].min()
    first.model.load_state_dict(copy.deepcopy(run.model.state_dict()))
    first.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    first.done = run.done  # it resumes from here
    for one in (run, first):
        one.step(1)
        assert not one.method.selector.zero()[group.numbers][gone].any()
        for name in names:
            assert torch.equal(getattr(one.model.norm1, name)[gone], before[name])


def test_structures_are_no_parts() -> None:
    """A space may have them beside its units; a period in which nothing could grow would be lost."""
    model = ConvNet()
    plain, both = (niwaki.search_space(model, torch.randn(1, 1, 6, 6), erase=erase) for erase in (False, True))
    assert both.num_units > plain.num_units
    for one, other in zip(parts_of(plain, 2), parts_of(both, 2), strict=True):
        assert (other[: plain.num_units] == one).all() and not other[plain.num_units :].any()


def test_it_shrinks_at_the_end_only() -> None:
    run, dense = made(shrink=niwaki.ShrinkPolicy(cost=0.01)), made()
    for one in (run, dense):
        one.step(11)
    assert not run.method.shrink()
    for one in (run, dense):
        one.step(3)
    assert sum(p.numel() for p in run.model.parameters()) < sum(p.numel() for p in dense.model.parameters())
    small = niwaki.cut(dense.model.eval(), dense.method.plan())
    torch.testing.assert_close(run.model.eval()(run.x[0]), small(run.x[0]))


def test_the_plain_loop_is_the_specification() -> None:
    runs = [made(vectorised=vectorised) for vectorised in (False, True)]
    for run in runs:
        run.step(13)
    assert (runs[0].marked() == runs[1].marked()).all() and np.any(runs[0].marked())
    for value, other in zip(runs[0].parameters().values(), runs[1].parameters().values(), strict=True):
        torch.testing.assert_close(value, other)


def test_errors_are_sentences() -> None:
    with pytest.raises(MethodError, match="parts=3, but the schedule has 2 periods, in each of which one part grows"):
        made(parts=3)
    with pytest.raises(MethodError, match="parts=0 must be a whole number, 1 or more: the parts grow one after"):
        made(parts=0)
    with pytest.raises(MethodError, match="parts=9, but the network has only 2 groups of units that are free of each"):
        parts_of(made().space, 9)
    run = made()
    run.step(3)
    saved = run.optimizer.state_dict()
    saved["niwaki"]["state"]["aside"]["a.weight"] = torch.zeros(1)
    with pytest.raises(MethodError, match="is damaged: its copy of 'a.weight' is of another network"):
        made().optimizer.load_state_dict(saved)
    saved["niwaki"]["state"]["aside"] = {}
    with pytest.raises(MethodError, match=r"is damaged: it has units at zero that may return, and no copy of '"):
        made().optimizer.load_state_dict(saved)
