"""HSPG, AdaHSPG+ and DHSPG: what they promise about weights, budget, optimizer and plan; the fast path is the plain."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from handmade import MLP, mlp_space
from optimizers import OPTIMIZERS, Calls, same
from torch import nn
from training import Training, adamw, sgd, two_rates

import niwaki
from niwaki.errors import BudgetError, MethodError
from niwaki.methods import DHSPG, HSPG, AdaHSPG, Schedule
from niwaki.methods.method import Method
from niwaki.per_unit import blocks
from niwaki.selection.budget import Budget

SCHEDULE = Schedule(start=4, until=24, periods=4)
KINDS: dict[str, Callable[..., Method]] = {
    "hspg": partial(HSPG, penalty=0.05, epsilon=0.6),
    "adahspg": partial(AdaHSPG, penalty=0.1),
    "dhspg": partial(DHSPG, window=3, epsilon=0.8),
}
Build = Callable[..., torch.optim.Optimizer]


def training(kind: str, build: Build, net: str = "conv", budget: float = 0.4, **options: Any) -> Training:
    return Training(net, build, Budget(macs=budget), SCHEDULE, kind=KINDS[kind], **options)


def agree(kind: str, build: Build, net: str) -> None:
    plain, fast = (training(kind, build, net, vectorised=v, dtype=torch.float64) for v in (False, True))
    zeros = 0
    for _ in range(SCHEDULE.until + 2):
        plain.step()
        fast.step()
        for name, value in plain.parameters().items():
            torch.testing.assert_close(fast.parameters()[name], value, rtol=1e-7, atol=1e-10)
            assert torch.equal(fast.parameters()[name] == 0, value == 0)
        states = [run.optimizer.state_dict()["niwaki"]["state"] for run in (plain, fast)]
        for name in states[0]:
            if name != "scores":
                same(states[0][name], states[1][name])
        zeros = max(zeros, int(fast.method.progress.zero * (fast.method.progress.phase != "done")))
    assert fast.method.progress.phase == "done" and fast.method.progress.macs <= 0.4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
@pytest.mark.parametrize("build", [sgd, adamw, two_rates, partial(two_rates, build=adamw)])
def test_plain_and_fast_agree(kind: str, net: str, build: Build) -> None:
    agree(kind, build, net)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", ["conv", "overlap"])
def test_plain_and_fast_agree_in_small_blocks(kind: str, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", 40)  # entries: all but the smallest tensors take several
    agree(kind, partial(two_rates, build=adamw), net)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", [name for name in OPTIMIZERS if "foreach" not in name and name not in ("SGD", "AdamW")]
)
def test_plain_and_fast_agree_for_every_optimizer(kind: str, name: str) -> None:
    optimizer, options = OPTIMIZERS[name]
    agree(kind, lambda p: optimizer(p, **options), "mlp")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [sgd, adamw])
def test_zeros_stay_and_the_budget_is_met(kind: str, build: Build) -> None:
    run = training(kind, build)
    before: dict[str, Any] = {}
    for _ in range(SCHEDULE.until + 5):
        run.step()
        for name, mask in run.driven(run.marked()).items():
            assert (run.parameters()[name][mask] == 0).all()
        now = run.method.units.at_zero.numpy()
        if kind != "adahspg" or run.method.progress.phase == "done":  # its proximal phases may bring units back
            assert not (before.get("zero", now) & ~now).any()
            before["zero"] = now
        assert all((~now[group.numbers]).any() for group in run.space.groups)
    assert run.method.progress.phase == "done" and run.method.progress.macs <= 0.4
    assert run.space.cost(run.method.plan()).macs == round(run.method.progress.macs * run.space.cost().macs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [sgd, adamw, two_rates])
def test_what_is_not_concerned_takes_the_bare_step_to_the_bit(kind: str, build: Build) -> None:
    run, bare = training(kind, build), Training("conv", build)
    compared = set()
    for _ in range(SCHEDULE.until + 3):
        bare.model.load_state_dict(run.model.state_dict())
        state = copy.deepcopy(run.optimizer.state_dict())
        state.pop("niwaki")
        bare.optimizer.load_state_dict(state)
        bare.done = run.done
        phase = run.method.progress.phase
        run.step()
        bare.step()
        if run.method.selector.ended_at == run.done:  # the last step sets units to zero wherever the budget asks
            continue
        if phase == "done":
            concerned = run.method.units.at_zero.numpy()
        elif phase in ("waiting", "scoring"):
            concerned = np.zeros(run.space.num_units, dtype=bool)
        else:
            concerned = run.method.units.leaving
        untouched = {name: ~mask for name, mask in run.driven(concerned).items()}
        compared |= {phase} if any(mask.any() for mask in untouched.values()) else set()
        for name, value in run.parameters().items():
            assert torch.equal(value[untouched[name]], bare.parameters()[name][untouched[name]])
    assert compared >= {"done"} | {"dhspg": {"waiting", "scoring", "half-space"}, "adahspg": {"waiting"}}.get(
        kind, set()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [sgd, adamw, two_rates])
def test_resumed_in_every_phase(kind: str, build: Build) -> None:
    whole, saved = training(kind, build), []
    for _ in range(SCHEDULE.until + 3):
        file = io.BytesIO()
        torch.save({"model": whole.model.state_dict(), "optimizer": whole.optimizer.state_dict()}, file)
        saved.append(file)
        whole.step()
    for done, file in enumerate(saved):
        if done % 3 and done != SCHEDULE.until:
            continue
        file.seek(0)
        state = torch.load(file, weights_only=True)
        resumed = training(kind, build)
        resumed.model.load_state_dict(state["model"])
        resumed.optimizer.load_state_dict(state["optimizer"])
        resumed.done = done
        resumed.step(SCHEDULE.until + 3 - done)
        same(resumed.parameters(), whole.parameters())
        same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())
        assert resumed.method.plan().to_json() == whole.method.plan().to_json()


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_waits_for_the_device(kind: str) -> None:
    run = training(kind, sgd)
    waiting = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select", "unique"}
    looked = []
    for step in range(1, SCHEDULE.until + 4):
        run.optimizer.zero_grad()
        run.loss().backward()
        with Calls() as calls:
            run.optimizer.step()
        looked += [step] if waiting & set(calls.counts) else []
    assert len(looked) <= SCHEDULE.periods + 1  # the ends of phases, or the looks at the target


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_operations_does_not_grow_with_the_units(kind: str) -> None:
    counts = []
    for width in (40, 80):
        model = MLP(6, width, width)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        KINDS[kind](mlp_space(model), optimizer, Budget(macs=0.4), SCHEDULE)
        total = 0
        for _ in range(SCHEDULE.until - 1):
            model.zero_grad()
            model(torch.ones(4, 6)).square().mean().backward()
            with Calls() as calls:
                optimizer.step()
            total += sum(calls.counts.values())
        counts.append(total)
    assert abs(counts[0] - counts[1]) <= 0.02 * counts[0]  # an end that comes a step earlier


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_on_overflow_is_skipped(kind: str, fused: bool) -> None:
    run = training(kind, lambda p: adamw(p, fused=fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for attempt in range(SCHEDULE.until + 3):
        run.optimizer.zero_grad()
        scaler.scale(run.loss()).backward()
        overflow = attempt in (2, 5, 11)
        if overflow:
            run.model.stem.weight.grad[0, 0] = float("inf")
        before, step = run.parameters(), run.method.step
        scaler.step(run.optimizer)
        scaler.update()
        assert run.method.step == step + (not overflow)
        if overflow:
            same(run.parameters(), before)
    assert run.method.step == SCHEDULE.until and run.method.progress.macs <= 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_and_clipped_gradients_and_schedulers(kind: str) -> None:
    """The loop is the user's: the method sees optimizer steps only, and the rate of each."""
    run = training(kind, sgd)
    scheduler = torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda step: step / 5 if step < 5 else 1.0)
    assert run.optimizer.param_groups[0]["lr"] == 0  # the first step has the rate 0
    for _ in range(SCHEDULE.until):
        run.optimizer.zero_grad()
        for _ in range(3):
            (run.loss() / 3).backward()
            run.done += 1
        nn.utils.clip_grad_norm_(run.model.parameters(), 0.5)
        run.optimizer.step()
        scheduler.step()
        assert all(value.isfinite().all() for value in run.parameters().values())
    assert run.method.step == SCHEDULE.until and run.method.progress.macs <= 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_muon(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24, bias=False), nn.ReLU(), nn.Linear(24, 3, bias=False))
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
    optimizer = torch.optim.Muon(model.parameters(), lr=0.02)
    method = KINDS[kind](niwaki.search_space(model, x), optimizer, Budget(macs=0.5), SCHEDULE)
    for _ in range(SCHEDULE.until):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    kept = method.plan().kept["0"]
    assert len(kept) <= 12 and all((model[0].weight[unit] == 0).all() == (unit not in kept) for unit in range(24))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("capturable", [False, True])
def test_other_precisions_and_rates_as_tensors(kind: str, dtype: torch.dtype, capturable: bool) -> None:
    lr = torch.tensor(0.02) if capturable else 0.02
    run = training(kind, lambda p: torch.optim.AdamW(p, lr=lr, foreach=False), dtype=dtype)
    run.step(SCHEDULE.until)
    assert run.method.progress.macs <= 0.4
    assert all((run.parameters()[name][mask] == 0).all() for name, mask in run.driven(run.marked()).items())


@pytest.mark.parametrize("kind", KINDS)
def test_round_to_holds_and_the_cut_is_exact(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    x = torch.randn(32, 6).double()
    space, optimizer = niwaki.search_space(model, x), adamw(model.parameters())
    method = KINDS[kind](space, optimizer, Budget(macs=0.4, round_to=4), SCHEDULE)
    for step in range(SCHEDULE.until + 2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        plan = method.plan()  # at any time
        assert plan.provenance["step"] == step + 1 and plan.provenance["method"] == kind
    assert all(len(units) % 4 == 0 for units in plan.kept.values())
    small = niwaki.cut(model, plan)
    assert space.cost(plan).macs <= 0.4 * space.cost().macs
    torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parameters_are_refused(kind: str) -> None:
    model = MLP()
    model.b.bias.requires_grad_(False)
    with pytest.raises(MethodError, match="are frozen .*, first 'b.bias', .* `ignored`"):
        KINDS[kind](mlp_space(model), sgd(model.parameters()), Budget(macs=0.5), SCHEDULE)
    free = niwaki.search_space(model, torch.randn(1, 6), ignored=["b.bias"])
    run = KINDS[kind](free, sgd(p for p in model.parameters() if p.requires_grad), Budget(units=0.9), SCHEDULE)
    assert "0 of" in repr(run)


def test_what_does_not_fit_is_refused() -> None:
    run = training("dhspg", sgd)
    run.step(5)
    state = run.optimizer.state_dict()
    for other in (training("dhspg", sgd, tolerance=0.1), training("dhspg", sgd, budget=0.5), training("hspg", sgd)):
        with pytest.raises(MethodError, match="The checkpoint was made by dhspg with .* Build the method as it was"):
            other.optimizer.load_state_dict(state)
        assert other.method.step == 0
    for kind, change, message in (
        ("hspg", lambda saved: saved.update(zero=torch.zeros(3, dtype=torch.bool)), "its zero is not 32 truth values"),
        ("hspg", lambda saved: saved.update(ended=0), "the step it ended at is not a step"),
        ("dhspg", lambda saved: saved.update(scores=torch.zeros(1, 2)), "its window has not the shape"),
        ("dhspg", lambda saved: saved.update(chosen=torch.zeros(32)), "its choice is not 32 truth values"),
        (
            "adahspg",
            lambda saved: saved.update(mode="other"),
            "its phase, or the step in it, is not one of this schedule's",
        ),
        ("adahspg", lambda saved: saved.update(epsilon=2.0), "its epsilon is out of bounds"),
    ):
        run, other = training(kind, sgd), training(kind, sgd)
        run.step(5)
        state = run.optimizer.state_dict()
        change(state["niwaki"]["state"])
        with pytest.raises(MethodError, match=message):
            other.optimizer.load_state_dict(state)
        assert other.method.step == 0


def test_errors_are_sentences() -> None:
    model = MLP()
    space, budget, whole = mlp_space(model), Budget(macs=0.5), sgd(model.parameters())
    for kind, options, message in (
        (HSPG, {"penalty": -1.0}, "penalty=-1.0 must be a finite number, 0 or more: it weighs the norms"),
        (HSPG, {"epsilon": 1.0}, "epsilon=1.0 must be a finite number, from 0 to below 1: it is the share"),
        (AdaHSPG, {"penalty": float("nan")}, "penalty=nan must be a finite number"),
        (DHSPG, {"amplify": 0.5}, "amplify=0.5 must be a finite number, 1 or more"),
        (DHSPG, {"window": 0}, "window=0 must be a whole number of steps, 1 or more"),
        (DHSPG, {"compare": "all"}, "compare='all' must be one of 'group', 'isomorphic', 'space': it says with which"),
    ):
        with pytest.raises(MethodError, match=message):
            kind(space, whole, budget, SCHEDULE, **options)
    with pytest.raises(MethodError, match=r"schedule=30 is not a schedule. Say when: niwaki.Schedule\("):
        HSPG(space, whole, budget, 30)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="budget=None is not a budget"):
        DHSPG(space, whole, None, SCHEDULE)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="cannot be met"):
        AdaHSPG(space, whole, Budget(macs=0.01), SCHEDULE)

    class NoRate(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            pass

    with pytest.raises(MethodError, match="HSPG takes its steps with the optimizer's learning rate, but .*NoRate has"):
        HSPG(space, NoRate(model.parameters()), budget, SCHEDULE)
    run = training("dhspg", sgd)
    run.step(3)
    with torch.no_grad():
        run.model.stem.weight[0] = float("nan")
    with pytest.raises(MethodError, match="The scores of step 6 are not finite: the training has diverged"):
        run.step(5)


def test_nothing_to_remove_ends_at_once() -> None:
    """A budget that the whole network meets: no unit is chosen, and the method does not wait for its schedule."""
    run = Training("conv", sgd, Budget(macs=1.0), kind=DHSPG, tolerance=0.0, window=2)
    run.step(SCHEDULE.start + 12)
    assert run.method.progress.phase == "done" and not run.marked().any()


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_into_a_method_that_has_acted(kind: str) -> None:
    """The run goes back to a checkpoint of its own, with the same objects: the rule acts again from there on."""
    whole, back = training(kind, sgd), training(kind, sgd)
    early = SCHEDULE.start + 6
    whole.step(SCHEDULE.until + 2)
    back.step(early)
    model, optimizer = (copy.deepcopy(one.state_dict()) for one in (back.model, back.optimizer))
    back.step(3)
    back.model.load_state_dict(model)
    back.optimizer.load_state_dict(optimizer)
    back.done = early
    back.step(SCHEDULE.until + 2 - early)
    for name, value in whole.parameters().items():
        assert torch.equal(back.parameters()[name], value)
