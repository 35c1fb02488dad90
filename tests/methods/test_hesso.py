"""HESSO: what it promises about the weights, the budget, the optimizer and the plan."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from handmade import MLP, ConvNet, mlp_space
from torch import Tensor, nn
from training import SCHEDULE, Build, Training, adamw, sgd

import niwaki
from niwaki.errors import BudgetError, MethodError, UnknownName
from niwaki.methods import HESSO, Schedule
from niwaki.selection.budget import Budget


@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
@pytest.mark.parametrize("build", [sgd, adamw])
@pytest.mark.parametrize("budget", [Budget(macs=0.4), Budget(units=0.5), Budget(params=0.5, macs=0.6)], ids=str)
def test_after_until_the_budget_is_met_by_zeros(net: str, build: Build, budget: Budget) -> None:
    run = Training(net, build, budget)
    assert run.method is not None
    run.step(SCHEDULE.until)
    dense, kept = run.space.cost(), run.space.cost(run.method.plan())
    for measure, limit in budget.absolute(run.space).items():
        assert (run.space.num_units - run.marked().sum() if measure == "units" else getattr(kept, measure)) <= limit
    for _ in range(5):  # zeros stay zero, whatever momentum and weight decay say
        for name, mask in run.driven(run.marked()).items():
            assert (run.parameters()[name][mask] == 0).all()
        run.step()
    assert run.method.progress.phase == "done"
    assert run.method.progress.macs == pytest.approx(kept.macs / dense.macs)


def test_the_schedule_is_kept_to_the_step() -> None:
    run = Training("conv", sgd, Budget(macs=0.4))
    assert run.method is not None
    seen = []
    for step in range(1, SCHEDULE.until + 1):
        run.step()
        progress = run.method.progress
        seen.append((step, progress.phase, progress.marked, progress.zero))
        if step < SCHEDULE.until and progress.marked > progress.zero:
            entries = [run.parameters()[name][mask] for name, mask in run.driven(run.marked()).items()]
            assert any((part != 0).any() for part in entries)
    marked = [entry[2] for entry in seen]
    assert [phase for _, phase, _, _ in seen[:5]] == ["waiting", "scoring", "scoring", "scoring", "fading"]
    assert marked[:4] == [0] * 4 and marked[4] > 0  # the window is steps 3 to 5
    assert sorted(marked) == marked and len(set(marked)) == 4
    assert seen[-2][3] < seen[-2][2] and seen[-1][3] == seen[-1][2] and seen[-1][1] == "done"


def test_each_period_takes_an_equal_share_of_what_is_to_go() -> None:
    run = Training("wide", sgd, Budget(macs=0.4), Schedule(start=2, until=41, periods=4), window=1)
    assert run.method is not None
    left = []
    for _ in range(41):
        run.step()
        left.append(run.method.progress.macs)
    assert np.allclose(sorted(set(left), reverse=True)[1:], [0.85, 0.7, 0.55, 0.4], atol=0.01)


@pytest.mark.parametrize("build", [sgd, adamw])
@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
def test_unmarked_units_take_the_bare_step_to_the_bit(net: str, build: Build) -> None:
    run, bare = Training(net, build, Budget(macs=0.4)), Training(net, build)
    for _ in range(SCHEDULE.until + 3):
        bare.model.load_state_dict(run.model.state_dict())
        state = copy.deepcopy(run.optimizer.state_dict())
        state.pop("niwaki")
        bare.optimizer.load_state_dict(state)
        bare.done = run.done
        before = run.marked()
        run.step()
        bare.step()
        untouched = {name: ~mask for name, mask in run.driven(before).items()}
        for name, value in run.parameters().items():
            assert torch.equal(value[untouched[name]], bare.parameters()[name][untouched[name]])


def test_what_is_marked_fades_linearly() -> None:
    run = Training("mlp", sgd, Budget(units=0.5), Schedule(start=1, until=6, periods=1), window=1)
    run.optimizer.param_groups[0]["lr"] = 0.0
    start = run.parameters()
    for level in (1, 0.8, 0.6, 0.4, 0.2, 0):
        run.step()
        for name, mask in run.driven(run.marked()).items():
            torch.testing.assert_close(run.parameters()[name][mask], level * start[name][mask])


def test_entries_that_read_a_unit_fade_where_they_are_driven() -> None:
    run = Training("conv", sgd, Budget(units=0.4))
    run.step(SCHEDULE.until)
    gone = run.marked()[run.space.groups[2].numbers]
    head = run.parameters()["head.weight"].numpy()
    assert gone.any() and (head[:, gone] == 0).all() and (head[:, ~gone] != 0).all()


def test_a_plan_at_any_time() -> None:
    run = Training("conv", sgd, Budget(macs=0.4))
    assert run.method is not None
    assert run.method.plan().tensors == {}
    run.step(8)
    assert run.method.plan().provenance["step"] == 8
    told = run.method.plan().provenance
    assert told["method"] == "hesso" and told["schedule"] == [3, 16, 3] and told["budget"]["macs"] == 0.4
    assert told["criteria"]["taylor2"] == 0.2


def test_round_to_and_min_units_hold_at_the_end() -> None:
    run = Training("conv", sgd, Budget(macs=0.5, round_to=4))
    run.step(SCHEDULE.until)
    kept = run.method.plan().kept  # type: ignore[union-attr]
    assert all(len(units) % 4 == 0 for units in kept.values())


def test_any_registered_criterion() -> None:
    for criteria in ({"random": 1.0}, {"magnitude": 1.0}, {"taylor1": 0.5, "cosine": 0.5}):
        run = Training("mlp", sgd, Budget(macs=0.5), criteria=criteria)
        run.step(SCHEDULE.until)
        assert run.method.progress.macs <= 0.5  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("vectorised", [True, False])
def test_other_precisions(dtype: torch.dtype, vectorised: bool) -> None:
    run = Training("conv", sgd, Budget(macs=0.4), vectorised=vectorised, dtype=dtype)
    run.step(SCHEDULE.until)
    assert run.method.progress.macs <= 0.4  # type: ignore[union-attr]
    assert all((run.parameters()[name][mask] == 0).all() for name, mask in run.driven(run.marked()).items())


def test_channels_last_and_sparse_gradients() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(11, 24, sparse=True)
            self.out = nn.Linear(24, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.words(x)))

    for model, x in (
        (Words(), torch.randint(0, 11, (8,))),
        (ConvNet().to(memory_format=torch.channels_last), torch.randn(8, 1, 6, 6)),
    ):
        space = niwaki.search_space(model, x)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = HESSO(space, optimizer, Budget(macs=0.5), SCHEDULE)
        for _ in range(SCHEDULE.until):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        assert method.progress.macs <= 0.5 and method.plan().tensors


def test_detach_ends_it() -> None:
    run = Training("mlp", sgd, Budget(macs=0.4))
    run.step(SCHEDULE.until)
    assert run.method is not None
    zeros = run.driven(run.marked())
    run.method.detach()
    assert "niwaki" not in run.optimizer.state_dict()
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.add_(0.1)
    run.step()
    assert all((run.parameters()[name][mask] != 0).all() for name, mask in zeros.items())
    HESSO(run.space, run.optimizer, Budget(macs=0.9), SCHEDULE)  # and another may be attached


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_on_overflow_is_skipped(fused: bool) -> None:
    run = Training("mlp", lambda p: adamw(p, fused=fused), Budget(macs=0.4))
    assert run.method is not None
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for attempt in range(SCHEDULE.until + 3):
        run.optimizer.zero_grad()
        scaler.scale(run.loss()).backward()
        overflow = attempt in (1, 4, 9)
        if overflow:
            run.model.a.weight.grad[0, 0] = float("inf")  # type: ignore[union-attr, index]
        before, step = run.parameters(), run.method.step
        scaler.step(run.optimizer)
        scaler.update()
        assert run.method.step == step + (not overflow)
        if overflow:
            assert all(torch.equal(value, before[name]) for name, value in run.parameters().items())
    assert run.method.step == SCHEDULE.until and run.method.progress.macs <= 0.4


def test_nothing_outlives_the_run() -> None:
    run = Training("mlp", sgd, Budget(macs=0.4))
    run.step(SCHEDULE.until)
    alive = weakref.ref(run.model)
    del run
    gc.collect()
    assert alive() is None


def test_optimizers_with_a_closure() -> None:
    run = Training("mlp", lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3), Budget(macs=0.4))

    def closure() -> Tensor:
        run.optimizer.zero_grad()
        loss = run.loss()
        loss.backward()
        return loss

    for _ in range(SCHEDULE.until):
        run.optimizer.step(closure)  # type: ignore[arg-type]
    assert run.method.progress.phase == "done" and run.method.progress.macs <= 0.4  # type: ignore[union-attr]


def test_a_diverged_training_is_told() -> None:
    run = Training("mlp", sgd, Budget(macs=0.4))
    run.step(3)
    with torch.no_grad():
        run.model.a.weight[0] = float("nan")  # type: ignore[union-attr, index]
    with pytest.raises(MethodError, match="The scores of step 5 are not finite: the training has diverged"):
        run.step(5)


@pytest.mark.parametrize("kind", [niwaki.HESSO, niwaki.CRIC, niwaki.HSPG, niwaki.DHSPG, niwaki.AdaHSPG])
def test_what_is_no_space_or_schedule_is_told(kind: Any) -> None:
    run = Training("mlp", torch.optim.AdamW)
    for odd in (10, None, (3, 16)):
        with pytest.raises(MethodError, match=r"schedule=.* is not a schedule. Say when: niwaki.Schedule\("):
            kind(run.space, run.optimizer, Budget(macs=0.5), odd)
    with pytest.raises(MethodError, match=r"space is a MLP, but must be what niwaki.search_space\("):
        kind(run.model, run.optimizer, Budget(macs=0.5), SCHEDULE)


@pytest.mark.parametrize("seed", ["a", 1.5, True, None, 2**64])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(MethodError, match="seed=.* must be a whole number of 64 bits"):
        Training("mlp", torch.optim.AdamW, Budget(macs=0.5), seed=seed)


def test_errors_are_sentences() -> None:
    model = MLP()
    space, budget = mlp_space(model), Budget(macs=0.5)
    whole = sgd(model.parameters())
    with pytest.raises(MethodError, match="trains none of the parameters .* from the same model object"):
        HESSO(space, sgd(MLP().parameters()), budget, SCHEDULE)
    with pytest.raises(MethodError, match="lacks 4 of the 4 .*'a.weight'; it trains others only, first 'c.weight'"):
        HESSO(space, sgd(model.c.parameters()), budget, SCHEDULE)  # the head alone
    with pytest.raises(MethodError, match="lacks 2 of the 4 parameters that units are made of, first 'b.weight'"):
        HESSO(space, sgd(model.a.parameters()), budget, SCHEDULE)
    with pytest.raises(BudgetError, match="cannot be met"):
        HESSO(space, whole, Budget(macs=0.01), SCHEDULE)
    with pytest.raises(UnknownName, match="no criterion 'size'"):
        HESSO(space, whole, budget, SCHEDULE, criteria={"size": 1.0})
    with pytest.raises(MethodError, match="criteria is empty"):
        HESSO(space, whole, budget, SCHEDULE, criteria={})
    with pytest.raises(MethodError, match="window=0 must be a whole number of steps, 1 or more"):
        HESSO(space, whole, budget, SCHEDULE, window=0)
    for window in (1.5, "a", True):
        with pytest.raises(MethodError, match="must be a whole number of steps"):
            HESSO(space, whole, budget, SCHEDULE, window=window)  # type: ignore[arg-type]
    for criteria, message in (
        ({"magnitude": float("nan")}, "the weight nan for 'magnitude': it must be a finite number, 0 or more"),
        ({"magnitude": -1.0, "random": 1.0}, "the weight -1.0 for 'magnitude'"),
        ({"magnitude": "x"}, "the weight 'x' for 'magnitude'"),
        ({"magnitude": 0.0}, "has the weight 0 only"),
        (["magnitude"], "is not a mapping: name criteria and their weights"),
    ):
        with pytest.raises(MethodError, match=message):
            HESSO(space, whole, budget, SCHEDULE, criteria=criteria)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match=r"budget=0.5 is not a budget. .* niwaki.Budget\(macs=0.5\)"):
        HESSO(space, whole, 0.5, SCHEDULE)  # type: ignore[arg-type]
    model.b.weight.requires_grad_(False)
    with pytest.raises(MethodError, match=r"1 of the 4 parameters .* are frozen .*, first 'b.weight', .* `ignored`"):
        HESSO(space, whole, budget, SCHEDULE)
    model.b.weight.requires_grad_(True)
    HESSO(space, whole, budget, SCHEDULE)
    with pytest.raises(MethodError, match=r"has a method already \(hesso\). Call its detach\(\) first"):
        HESSO(space, whole, budget, SCHEDULE)
    empty = type(space)(model, (), (), (), 0.0, space.shapes, space.cost_model, space.numbers)
    with pytest.raises(MethodError, match="has no units, so there is nothing to remove"):
        HESSO(empty, sgd(model.parameters()), budget, SCHEDULE)
