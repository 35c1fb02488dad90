"""HESSO-CRIC: what it finds out, what it takes back, when it ends, and what it leaves behind."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from handmade import MLP, mlp_space
from optimizers import OPTIMIZERS, Calls, same
from torch import Tensor, nn
from training import Training, adamw, sgd, two_rates

import niwaki
from niwaki.errors import MethodError
from niwaki.methods import CRIC, HESSO, Schedule
from niwaki.methods.hooks import TRACE
from niwaki.methods.schedule import fitting_cycles
from niwaki.methods.sensitivity import layer_losses, sensitivity
from niwaki.methods.snapshot import TrainingSnapshot
from niwaki.methods.trials import Trials
from niwaki.per_unit.fast import FastUnits
from niwaki.per_unit.plain import PlainUnits
from niwaki.selection import select
from niwaki.selection.budget import Budget

SCHEDULE = Schedule(start=3, until=36, periods=3)
OPENS, CYCLE, CYCLES = 5, 4, 3  # the first window is steps 3 to 5
END = SCHEDULE.until + 3
Build = Callable[..., torch.optim.Optimizer]


def trials_of(run: Training) -> Trials:
    """Where the cycles of a run stand."""
    trials: Trials = run.method.selector.scores.trials
    return trials


def training(net: str = "conv", build: Build = sgd, budget: Budget | None = None, **options: Any) -> Training:
    options = {"window": 3, "cycle": CYCLE, "cycles": CYCLES, "tolerance": 0.0, "loss": lambda: run.loss()} | options
    run = Training(net, build, budget or Budget(macs=0.4), SCHEDULE, kind=CRIC, **options)
    return run


def everything(run: Training) -> dict[str, Any]:
    """All that a step may change, except what belongs to the method."""
    optimizer = copy.deepcopy(run.optimizer.state_dict())
    optimizer.pop("niwaki", None)
    optimizer["param_groups"][0].pop(TRACE, None)
    return {"model": {k: v.clone() for k, v in run.model.state_dict().items()}, "optimizer": optimizer}


# ---------------------------------------------------------------- what it is for


class Quiet:
    """A trained network whose first four units look dispensable: their own weights are a tenth of the others', and so
    is any gradient, since the loss is at its minimum. But what they send on is nearly all of the output."""

    def __init__(self, kind: Callable[..., Any], periods: int = 1, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 1, bias=False)).double()
        with torch.no_grad():
            directions = nn.functional.normalize(self.model[0].weight, dim=1)
            self.model[0].weight.copy_(directions).mul_(torch.where(torch.arange(16) < 4, 0.1, 1.0)[:, None])
            self.model[2].weight.copy_(torch.where(torch.arange(16) < 4, 10.0, 0.02))
        self.x = torch.randn(256, 8).double()
        self.y = self.model(self.x).detach()
        space = niwaki.search_space(self.model, self.x[:1])
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self.method = kind(space, self.optimizer, Budget(units=0.5), Schedule(2, 60, periods), **options)

    def loss(self) -> Tensor:
        """As a share of the variance of what is to be predicted."""
        return (self.model(self.x) - self.y).square().mean() / self.y.var()

    def train(self, steps: int = 200) -> float:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
        return self.loss().item()


def test_units_that_look_dispensable_but_are_not() -> None:
    hesso = Quiet(HESSO)
    collapsed = hesso.train()
    assert not set(range(4)) & set(hesso.method.plan().kept["0"]) and collapsed > 0.5
    cric = Quiet(CRIC, loss=lambda: cric.loss())
    kept = cric.train()
    assert set(range(4)) <= set(cric.method.plan().kept["0"]) and kept < 1e-3
    assert len(cric.method.plan().kept["0"]) == len(hesso.method.plan().kept["0"]) == 8


def test_a_cycle_measures_the_loss_of_the_removal() -> None:
    """At rate 0 the mean of <x, gradient> on the way to the origin is the integral: the loss without the unit."""
    steps = 50
    run = Quiet(CRIC, criteria={"taylor1": 1.0}, layers=0, window=1, cycle=steps, cycles=1, tolerance=0)
    run.optimizer.param_groups[0]["lr"] = 0.0
    target = replace(run.method.selector.target, budget=Budget(units=15 / 16), limits={"units": 15.0})
    run.method.selector.target = run.method.selector.scores._target = target  # one unit at a time
    with torch.no_grad():
        run.y += 1.0  # so that there is a gradient before, too
    before = run.loss().item()
    run.train(2)
    (unit,) = np.flatnonzero(trials_of(run).trial)
    start = trials_of(run).total.clone()
    run.train(steps)
    mean = ((trials_of(run).total - start) / steps)[0, unit].item()
    with torch.no_grad():
        run.model[0].weight[unit] = 0
    removal = run.loss().item() - before
    assert trials_of(run).ended == 2 + steps and abs(removal) > 1e-6
    assert mean == pytest.approx(abs(removal), rel=0.05)  # a sum over 50 steps instead of the integral


# ---------------------------------------------------------------- cycles


@pytest.mark.parametrize("build", [sgd, adamw, two_rates])
def test_every_cycle_is_taken_back(build: Build) -> None:
    """Weights, buffers and the optimizer's state, to the bit; in between all of them move."""
    run = training(build=build)
    run.step(OPENS)
    start, returned = everything(run), 0
    for step in range(OPENS + 1, OPENS + CYCLE * CYCLES + 1):
        run.step()
        now = everything(run)
        if (step - OPENS) % CYCLE == 0:
            same(now, start)
            returned += 1
        else:
            assert not torch.equal(now["model"]["norm1.running_mean"], start["model"]["norm1.running_mean"])
            assert not torch.equal(now["model"]["up.weight"], start["model"]["up.weight"])
        if run.method.progress.phase != "trial":
            break
    assert returned == trials_of(run).cycle >= 2


def test_state_that_appears_within_a_cycle_disappears_with_it() -> None:
    """Also where the optimizer has none yet for a parameter that got no gradient so far."""
    run = training(build=adamw)
    late = run.model.mid.weight
    for _ in range(OPENS):
        run.optimizer.zero_grad()
        run.loss().backward()
        late.grad = None
        run.optimizer.step()
        run.done += 1
    assert late not in run.optimizer.state
    run.step()
    assert late in run.optimizer.state
    run.step(CYCLE - 1)
    assert late not in run.optimizer.state


@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
def test_the_history_only_grows_and_ends_it(net: str) -> None:
    run = training(net, cycles=10, cycle=2, budget=Budget(units=0.7))
    tried, cycles = np.zeros(run.space.num_units, dtype=bool), 0
    for _ in range(SCHEDULE.until):
        run.step()
        state = run.method.state()["trials"]
        trial, now = state["trial"].numpy(), state["tried"].numpy()
        assert not (tried & ~now).any()
        if state["ended"] is None and state["cycle"] > cycles:
            assert trial.any() and not (trial & now).any(), "every cycle tries units that none has tried"
            cycles = state["cycle"]
        tried = now
    assert run.method.progress.phase == "done" and 1 <= cycles <= 10
    assert tried.sum() >= (~run.space.keep_of(run.method.plan())).sum() * 0.5


def test_it_ends_early_when_little_is_new() -> None:
    run = training("wide", tolerance=0.9, cycles=8, budget=Budget(units=0.8))
    run.step(OPENS)
    assert trials_of(run).ended == OPENS and run.method.progress.marked > 0  # V itself is below the tolerance
    bare = Training("wide", sgd)
    bare.step(OPENS)
    same(everything(run), everything(bare))  # the layers were measured, and nothing has faded yet
    run = training("wide", tolerance=0.15, cycles=8, cycle=3, budget=Budget(units=0.8))
    run.step(SCHEDULE.until - SCHEDULE.periods)
    assert 1 <= trials_of(run).cycle < 8 and trials_of(run).ended == OPENS + 3 * trials_of(run).cycle
    assert f"units tried in {trials_of(run).cycle} of at most 8 cycles" in repr(run.method)


@pytest.mark.parametrize("build", [sgd, adamw])
def test_the_trial_fades_and_everything_else_takes_the_bare_step(build: Build) -> None:
    run, bare = training(build=build), Training("conv", build)
    compared = set()
    for step in range(1, SCHEDULE.until + 3):
        bare.model.load_state_dict(run.model.state_dict())
        state = copy.deepcopy(run.optimizer.state_dict())
        state.pop("niwaki")
        bare.optimizer.load_state_dict(state)
        bare.done = run.done
        cycle, phase = trials_of(run).cycle, run.method.progress.phase
        concerned = trials_of(run).trial if phase == "trial" else run.marked()
        run.step()
        bare.step()
        if phase == "trial" and (step - OPENS) % CYCLE == 0:
            continue  # taken back
        masks, factor = run.driven(concerned), None
        if phase == "trial":
            left = CYCLE - (step - OPENS - 1) % CYCLE
            factor = (left - 1) / left
        compared.add((phase, cycle > 1))
        for name, value in run.parameters().items():
            there = bare.parameters()[name]
            assert torch.equal(value[~masks[name]], there[~masks[name]])
            if factor is not None:
                torch.testing.assert_close(value[masks[name]], there[masks[name]] * factor)
    assert {phase for phase, _ in compared} == {"waiting", "scoring", "trial", "fading", "done"}
    assert ("trial", True) in compared


@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
@pytest.mark.parametrize("budget", [Budget(macs=0.4), Budget(units=0.5), Budget(params=0.5, macs=0.6)], ids=str)
def test_after_until_the_budget_is_met_by_zeros(net: str, budget: Budget) -> None:
    run = training(net, budget=budget)
    run.step(SCHEDULE.until)
    kept = run.space.cost(run.method.plan())
    for measure, limit in budget.absolute(run.space).items():
        assert (run.space.num_units - run.marked().sum() if measure == "units" else getattr(kept, measure)) <= limit
    for _ in range(3):
        for name, mask in run.driven(run.marked()).items():
            assert (run.parameters()[name][mask] == 0).all()
        run.step()
    assert run.method.plan().provenance["method"] == "hesso-cric" and run.method.progress.phase == "done"


def test_with_one_period_the_final_scores_alone_decide() -> None:
    torch.manual_seed(0)
    run = Training(
        "conv",
        sgd,
        Budget(units=0.5),
        Schedule(3, 36, 1),
        kind=CRIC,
        window=3,
        cycle=4,
        cycles=3,
        loss=lambda: run.loss(),
    )
    while trials_of(run).ended is None:
        run.step()
    means, everything = (
        trials_of(run).total / trials_of(run).count,
        np.ones(run.space.num_units, dtype=bool),
    )
    assert trials_of(run).count == 3 + 4 * trials_of(run).cycle
    scores = run.method.selector.scores
    expected = scores._redundant(scores.sampler.weighted(means, everything, run.method.step))
    assert (run.marked() == expected).all()
    run.step(SCHEDULE.until)
    assert (run.marked() == expected).all()


def test_windows_take_part_more_and_more(monkeypatch: pytest.MonkeyPatch) -> None:
    run = training()
    parts: list[np.ndarray] = []
    shares: list[float] = []
    scores = run.method.selector.scores
    weighted, saliency = scores.sampler.weighted, scores.saliency

    def told(means: Tensor, keep: np.ndarray, step: int) -> np.ndarray:
        parts.append(weighted(means, keep, step))
        return parts[-1]

    def checked(step: int, keep: np.ndarray) -> np.ndarray:
        parts.clear()
        found = saliency(step, keep)
        share = scores.timeline.borders.index(step) / SCHEDULE.periods
        expected = parts[0] if share == 0 else (1 - share) * parts[0] + share * parts[1]
        assert np.allclose(found, expected) and len(parts) == 1 + (share > 0)
        assert np.allclose(parts[0], weighted(scores.trials.mean(), keep, step))
        shares.append(share)
        return found

    monkeypatch.setattr(scores.sampler, "weighted", told)
    monkeypatch.setattr(scores, "saliency", checked)
    run.step(SCHEDULE.until)
    assert shares == [0, 1 / 3, 2 / 3]


# ---------------------------------------------------------------- layers


def test_losses_of_layers_by_hand() -> None:
    for kind in (FastUnits, PlainUnits):
        run = Training("conv", sgd)
        units = kind(run.space, run.optimizer)
        saliency = np.random.default_rng(0).random(run.space.num_units)
        before = everything(run)
        losses = layer_losses(run.space, units, saliency, run.loss)
        same(everything(run), before)
        for number, group in enumerate(run.space.groups):
            for column, share in enumerate((0, 0.25, 0.5, 0.75)):
                gone = np.zeros(run.space.num_units, dtype=bool)
                gone[group.first + np.argsort(saliency[group.numbers])[: int(share * group.units)]] = True
                other = Training("conv", sgd)
                with torch.no_grad():
                    for name, mask in other.driven(gone).items():
                        dict(other.model.named_parameters())[name][mask] = 0
                assert losses[number, column] == pytest.approx(other.loss().item(), rel=1e-6)


def test_the_sensitivity_is_the_growth_of_the_loss_over_its_mean() -> None:
    losses = np.array([[2.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 2.0], [2.0, 1.0, 2.0, 11.0]])
    assert np.allclose(sensitivity(losses), np.array([1, 0, 3]) / (4 / 3))
    assert np.allclose(sensitivity(losses - 10), sensitivity(losses))  # a negative reference ranks as well
    assert np.allclose(sensitivity(np.ones((2, 4))), 0)
    losses[0, 3] = np.inf
    assert np.allclose(sensitivity(losses), np.array([10 / 3, 0, 3]) / (19 / 9))


def test_sensitive_layers_keep_more() -> None:
    space = mlp_space(MLP(6, 40, 40))
    scores = np.ones(80)

    def kept(weight: np.ndarray | None) -> list[int]:
        keep = select(space, scores, {"units": 40.0}, weight=weight)
        return [int(keep[group.numbers].sum()) for group in space.groups]

    assert kept(None) == kept(np.ones(2)) == [20, 20]
    assert kept(np.array([3.0, 1.0])) == [30, 10]
    run = training("mlp", budget=Budget(units=0.5), layers=0.9)
    run.step(OPENS)
    trials_of(run).layers = np.array([2.0, 0.0])
    run.step(SCHEDULE.until)
    alone = training("mlp", budget=Budget(units=0.5), layers=0)
    alone.step(SCHEDULE.until)
    first = [~training.marked()[run.space.groups[0].numbers] for training in (run, alone)]
    assert first[0].sum() > first[1].sum()


def test_the_loss_is_asked_once_and_for_each_part_of_each_layer() -> None:
    asked: list[tuple[int, bool, bool]] = []

    def loss() -> Tensor:
        asked.append((run.method.step, torch.is_grad_enabled(), run.model.training))
        return run.loss()

    run = training(loss=loss)
    bare = Training("conv", sgd)
    run.step(OPENS)
    bare.step(OPENS)
    assert asked == [(OPENS, False, True)] * (1 + 3 * len(run.space.groups))
    same(everything(run), everything(bare))  # until then nothing differs from bare training, the buffers neither
    run.step(SCHEDULE.until)
    assert len(asked) == 1 + 3 * len(run.space.groups)


def test_dropout_sees_the_same_numbers_every_time() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    space = niwaki.search_space(model, torch.randn(1, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, seen = torch.randn(16, 4), []

    def loss() -> Tensor:
        seen.append(torch.rand(3))
        return model(x).square().mean()

    state = torch.get_rng_state()
    layer_losses(space, FastUnits(space, optimizer), np.ones(8), loss)
    assert torch.equal(state, torch.get_rng_state()) and len(seen) == 4
    assert all(torch.equal(numbers, seen[0]) for numbers in seen)


@pytest.mark.parametrize("build", [lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2), adamw])
def test_a_closure_serves_as_the_loss(build: Build) -> None:
    run = training("mlp", build, loss=None)

    def closure() -> Tensor:
        run.optimizer.zero_grad()
        loss = run.loss()
        loss.backward()
        return loss

    while run.method.progress.phase != "done":
        run.optimizer.step(closure)
        run.done += 1
    assert trials_of(run).layers.sum() == pytest.approx(len(run.space.groups))
    assert run.method.progress.macs <= 0.4 and run.method.units.closure is None


def test_without_a_loss_it_says_so_at_once() -> None:
    run = training("mlp", loss=None)
    before = everything(run)
    with pytest.raises(MethodError, match=r"knows no loss. Pass loss=lambda: loss_fn\(model\(x\), y\), .* layers=0"):
        run.step()
    same(everything(run), before)
    run = training(loss=None, layers=0)
    run.step(SCHEDULE.until)
    assert run.method.progress.macs <= 0.4


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda: torch.ones(3), r"The loss must be a scalar, but a tensor of shape \[3\] was returned"),
        (lambda: None, "must be a scalar, but a NoneType was returned. Reduce it to its mean, and return it"),
        (lambda: float("nan"), "The loss is nan, so nothing can be compared with it: the training has diverged"),
    ],
)
def test_a_loss_that_is_none(loss: Callable[[], Any], message: str) -> None:
    run = training(loss=loss)
    bare = Training("conv", sgd)
    bare.step(OPENS)
    with pytest.raises(MethodError, match=message):
        run.step(OPENS)
    same(everything(run), everything(bare))


def test_an_error_in_the_loss_leaves_the_weights_alone() -> None:
    calls = iter([1.0, 2.0])
    run, bare = training(loss=lambda: next(calls)), Training("conv", sgd)
    bare.step(OPENS)
    with pytest.raises(StopIteration):
        run.step(OPENS)
    same(everything(run), everything(bare))


# ---------------------------------------------------------------- both paths, resuming, other loops


def agree(net: str, build: Build) -> None:
    plain, fast = (training(net, build, vectorised=vectorised, dtype=torch.float64) for vectorised in (False, True))
    for _ in range(END):
        plain.step()
        fast.step()
        same(plain.parameters(), fast.parameters())
        states = [run.optimizer.state_dict()["niwaki"]["state"] for run in (plain, fast)]
        for name in ("total", "looks", "window"):
            sums = [(state if name == "window" else state["trials"]).pop(name, []) for state in states]
            torch.testing.assert_close(*sums, rtol=1e-9, atol=1e-12)
        same(*states)  # the snapshots, too
    assert fast.method.progress.phase == "done" and trials_of(fast).cycle >= 1


@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
@pytest.mark.parametrize("build", [sgd, adamw, partial(two_rates, build=adamw)])
def test_plain_and_vectorised_agree(net: str, build: Build) -> None:
    agree(net, build)


@pytest.mark.parametrize("name", ["Adam amsgrad", "AdamW fused", "Rprop", "ASGD", "Adafactor", "SGD maximize"])
def test_plain_and_vectorised_agree_for_other_optimizers(name: str) -> None:
    kind, options = OPTIMIZERS[name]
    agree("mlp", lambda p: kind(p, **options))


@pytest.mark.parametrize("vectorised", [True, False])
@pytest.mark.parametrize("build", [sgd, adamw])
def test_resumed_at_every_step(build: Build, vectorised: bool) -> None:
    whole, saved, phases = training(build=build, vectorised=vectorised), [], []
    for _ in range(END):
        file = io.BytesIO()
        torch.save({"model": whole.model.state_dict(), "optimizer": whole.optimizer.state_dict()}, file)
        saved.append(file)
        phases.append(whole.method.progress.phase)
        whole.step()
    assert set(phases) == {"waiting", "scoring", "trial", "fading", "done"}
    for done in range(0, END, 1 if vectorised else 9):
        saved[done].seek(0)
        state = torch.load(saved[done], weights_only=True)
        resumed = training(build=build, vectorised=vectorised)
        resumed.model.load_state_dict(state["model"])
        resumed.optimizer.load_state_dict(state["optimizer"])
        resumed.done = done
        assert resumed.method.step == done and resumed.method.progress.phase == phases[done]
        resumed.step(END - done)
        same(everything(resumed), everything(whole))
        assert resumed.method.plan().to_json() == whole.method.plan().to_json(), f"resumed after step {done}"
        assert resumed.method.progress == whole.method.progress


def test_saving_is_a_snapshot() -> None:
    run = training()
    run.step(OPENS + 2)
    state = run.optimizer.state_dict()["niwaki"]["state"]
    kept = copy.deepcopy(state)
    run.step(SCHEDULE.until)
    same(state, kept)


def test_a_damaged_state_is_refused() -> None:
    run, other = training(), training()
    run.step(OPENS + 2)
    for change, message in (
        (lambda s: s.pop("snapshot"), "its cycle and its snapshot contradict one another"),
        (lambda s: s["trials"].update(trial=torch.zeros(3, dtype=torch.bool)), "its trial is not .* one per unit"),
        (lambda s: s["trials"].pop("tried"), "it lacks 'tried'"),
        (lambda s: s["trials"].pop("total"), "its samples and their number contradict one another"),
        (lambda s: s["trials"].update(looks=[torch.zeros(2, 2)]), "its samples have not the shape"),
        (lambda s: s["trials"].update(layers=torch.zeros(9)), "its layers are not 3, one per group"),
        (lambda s: s["trials"].update(ended=1, cycle=99), "contradict one another"),
        (lambda s: s["snapshot"]["weights"].pop(), "holds the weights of another optimizer"),
        (lambda s: s["snapshot"]["state"].pop(), "holds the state of another optimizer"),
        (lambda s: s["snapshot"]["buffers"].update(x=torch.zeros(1)), "holds the buffers of another model"),
    ):
        state = copy.deepcopy(run.optimizer.state_dict())
        change(state["niwaki"]["state"])
        with pytest.raises(MethodError, match=message):
            other.optimizer.load_state_dict(state)
        assert other.method.step == 0 and not trials_of(other).trial.any()
    with pytest.raises(MethodError, match="made by hesso-cric with cycle = 4, but here it is 5"):
        training(cycle=5).optimizer.load_state_dict(run.optimizer.state_dict())


@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
def test_no_step_waits_for_the_device(net: str) -> None:
    run = training(net)
    waiting = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select", "unique"}
    for step in range(1, END):
        run.optimizer.zero_grad()
        run.loss().backward()
        before = run.method.progress
        cycle = trials_of(run).cycle
        with Calls() as calls:
            run.optimizer.step()
        after = run.method.progress
        boundary = (before.phase, before.marked, before.zero) != (after.phase, after.marked, after.zero)
        if not boundary and trials_of(run).cycle == cycle:
            assert not waiting & set(calls.counts), f"step {step}: {calls.counts}"


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_on_overflow_is_skipped(fused: bool) -> None:
    run = training("mlp", lambda p: adamw(p, fused=fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for attempt in range(SCHEDULE.until + 4):
        run.optimizer.zero_grad()
        scaler.scale(run.loss()).backward()
        overflow = attempt in (1, OPENS, OPENS + 3, SCHEDULE.until)  # in the window, in cycles, and while fading
        if overflow:
            run.model.a.weight.grad[0, 0] = float("inf")
        before, state = everything(run), copy.deepcopy(run.method.state())
        scaler.step(run.optimizer)
        scaler.update()
        if overflow:
            same(everything(run)["model"], before["model"])
            same(run.method.state(), state)
    assert run.method.step == SCHEDULE.until and run.method.progress.macs <= 0.4


def test_detached_within_a_cycle_it_takes_the_cycle_back() -> None:
    run = training()
    run.step(OPENS)
    start = everything(run)
    run.step(2)
    run.method.detach()
    same(everything(run), start)


def test_what_optimizers_keep_is_copied_deeply_and_put_back() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model.a.weight
    optimizer.state[weight] = {"step": 3, "old": [torch.ones(2), None], "at": (torch.zeros(1), "x"), "on": True}
    kept = TrainingSnapshot.of(model, optimizer)
    optimizer.state[weight]["old"][0].add_(1)
    optimizer.state[weight].update(step=4, new=torch.ones(1))
    kept.restore(model, optimizer)
    same(optimizer.state[weight], {"step": 3, "old": [torch.ones(2), None], "at": (torch.zeros(1), "x"), "on": True})
    optimizer.state[weight]["old"][0].add_(1)  # and the snapshot can be used again
    kept.restore(model, optimizer)
    assert torch.equal(optimizer.state[weight]["old"][0], torch.ones(2))


def test_the_cut_is_exact_on_a_real_space() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    x, y = torch.randn(64, 6).double(), torch.randint(0, 3, (64,))
    space, optimizer = niwaki.search_space(model, x), adamw(model.parameters())
    method = niwaki.CRIC(
        space, optimizer, Budget(macs=0.4, round_to=4), SCHEDULE, loss=lambda: nn.functional.cross_entropy(model(x), y)
    )
    for _ in range(SCHEDULE.until):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    small = niwaki.cut(model, method.plan())
    torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
    assert all(len(kept) % 4 == 0 for kept in method.plan().kept.values())
    assert space.cost(method.plan()).macs <= 0.4 * space.cost().macs


def test_errors_are_sentences() -> None:
    def build(**options: Any) -> None:
        training("mlp", **options)

    for options, message in (
        ({"cycles": 0}, "cycles=0 must be a whole number of steps, 1 or more"),
        ({"cycle": 1}, "cycle=1 must be a whole number of steps, 2 or more: a trial fades in them"),
        ({"cycle": 2.5}, "cycle=2.5 must be a whole number of steps"),
        ({"cycle": 40}, "has 31 steps after its first window, which ends with step 5: too few for a cycle of 40"),
        ({"tolerance": -0.1}, "tolerance=-0.1 must be a finite number, from 0 to below 1"),
        ({"layers": 1.0}, "layers=1.0 must be a finite number, from 0 to below 1"),
        ({"loss": 3.0}, r"loss=3.0 is not a function. Pass loss=lambda: loss_fn\(model\(x\), y\)"),
    ):
        with pytest.raises(MethodError, match=message):
            build(**options)


def test_as_many_cycles_as_there_is_room_for() -> None:
    assert training("mlp", cycle=9, cycles=10).method.settings()["cycles"] == 3
    one = training("mlp", cycle=None, cycles=10).method.settings()  # an eighth of its 31 steps is less than one cycle
    assert (one["cycle"], one["cycles"]) == (4, 1)
    assert fitting_cycles(Schedule(1, 9, 5), 1, None, 10) == (3, 1), "as long as there is room for"


@pytest.mark.parametrize("cycles", [1, 3, 10])
@pytest.mark.parametrize("until", [14, 40, 130, 20_000])
def test_cycles_take_at_most_an_eighth_of_the_schedule(until: int, cycles: int) -> None:
    opens = 5
    cycle, count = fitting_cycles(Schedule(1, until, 5), opens, None, cycles)
    assert cycle >= 4 and 1 <= count <= cycles
    assert cycle * count <= max(4, (until - opens) // 8)
    assert cycle == 4 or cycle * count > (until - opens) // 8 - cycles, "they take what they may"
