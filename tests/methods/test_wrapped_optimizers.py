"""Optimizers that wrap or extend others, loops that write weights by themselves, and checkpoints at odd moments."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from every_method import BUDGET, KINDS, SCHEDULE, flat, training
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from training import adamw, sgd

import niwaki
from niwaki.errors import MethodError
from niwaki.methods import HESSO, HSPG
from niwaki.methods.hooks import TRACE
from niwaki.methods.method import Method


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [5, 14])
def test_weights_may_move_to_other_memory(kind: str, stop: int) -> None:
    """SAM, averages that are swapped in and out, a change of memory format: all give ``param.data`` other memory."""
    run, moved = training(kind), training(kind)
    run.step(SCHEDULE.until)
    moved.step(stop)
    for parameter in moved.model.parameters():
        parameter.data = parameter.data.clone()
    moved.step(SCHEDULE.until - stop)
    assert torch.equal(flat(run), flat(moved))


class Centred(SGD):
    """Its step calls that of its parent: both call hooks, once any plain SGD has been built."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Wavering(Centred):
    """What it does after the step of its parent is part of its own step."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_within_a_step_is_one_step(kind: str) -> None:
    sgd([nn.Parameter(torch.ones(1))])
    run, nested = training(kind), training(kind, lambda p: Centred(p, lr=0.05, momentum=0.9, weight_decay=1e-2))
    for _ in range(SCHEDULE.until):
        run.step()
        nested.step()
        assert nested.method.step == run.method.step
    assert not nested.method.selector.removable().all() and nested.marked().any()
    torch.testing.assert_close(flat(nested), flat(run))


def test_zeros_are_kept_to_the_end_of_the_outermost_step() -> None:
    sgd([nn.Parameter(torch.ones(1))])
    Centred([nn.Parameter(torch.ones(1))], lr=0.1)
    run = training("hesso", lambda p: Wavering(p, lr=0.05))
    run.step(SCHEDULE.until + 2)
    assert run.method.step == SCHEDULE.until + 2
    gone = run.driven(run.marked())
    assert all((value[gone[name]] == 0).all() for name, value in run.parameters().items())


def test_a_step_that_was_cut_short_is_forgotten() -> None:
    sgd([nn.Parameter(torch.ones(1))])
    run = training("hesso", lambda p: Centred(p, lr=0.05))

    def interrupted() -> Tensor:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run.optimizer.step(interrupted)
    assert run.method.step == 0
    run.step(3)
    assert run.method.step == 3


class Deaf(Optimizer):
    """A wrapper like accelerate's, and timm's Lookahead: it does not call the constructor of its parent."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}  # type: ignore[assignment]

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


@pytest.mark.parametrize("kind", KINDS)
def test_optimizers_without_hooks_are_refused(kind: str) -> None:
    with pytest.raises(
        MethodError, match="Deaf is an optimizer that calls no hooks .* Build the method with the optim"
    ):
        training(kind, lambda p: Deaf(sgd(p)))
    with pytest.raises(MethodError, match=r"optimizer is a list, but .* needs a torch\.optim\.Optimizer"):
        training(kind, list)  # type: ignore[arg-type]


class Lookahead(Optimizer):
    """Every second step goes half of the way back."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner, self.param_groups = inner, inner.param_groups
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        self.done = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.inner.step(closure)
        self.done += 1
        parameters = [p for group in self.param_groups for p in group["params"]]
        for slow, parameter in zip(self.slow, parameters, strict=True) if self.done % 2 == 0 else ():
            slow.lerp_(parameter, 0.5)
            parameter.copy_(slow)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_behind_the_back_of_a_method_is_told(kind: str) -> None:
    run = training(kind)
    lookahead = Lookahead(run.optimizer)
    for _ in range(SCHEDULE.until):
        lookahead.zero_grad()
        run.loss().backward()
        lookahead.step()
    with pytest.warns(
        UserWarning, match="units that .* has set to zero are not zero in the model: up to .* where what stays"
    ):
        run.method.plan()
    run.step()  # as the warning says
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.method.plan()

    outside = training(kind, lambda p: Lookahead(sgd(p)))
    outside.step(SCHEDULE.until)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outside.method.plan()


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_before_the_end_is_told(kind: str) -> None:
    run = training(kind)
    with pytest.warns(UserWarning, match="has seen no step of its SGD, so this plan removes nothing"):
        run.method.plan()
    run.step(SCHEDULE.until - 1)
    if run.method.progress.phase != "done":  # DHSPG may have reached its target
        told = rf"has not reached the end of its schedule, step {SCHEDULE.until}, so this plan .* the budget, macs <= "
        with pytest.warns(UserWarning, match=told):
            run.method.plan()
    run.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.method.plan()


def test_without_a_budget_a_plan_is_never_early() -> None:
    run = training("hspg")
    run.method.detach()
    method = HSPG(run.space, run.optimizer, None, SCHEDULE, penalty=0.05)
    run.step(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.plan()


def test_a_step_that_a_scaler_skips_at_the_end_is_told() -> None:
    run, scaler = training("hesso"), torch.amp.GradScaler("cpu", init_scale=16.0)
    for step in range(SCHEDULE.until):
        run.optimizer.zero_grad()
        scaler.scale(run.loss() * (torch.inf if step == 2 else 1.0)).backward()
        scaler.step(run.optimizer)
        scaler.update()
    with pytest.warns(UserWarning, match=r"takes units that are not zero yet.* Steps that a gradient scaler skips"):
        run.method.plan()


def test_a_state_that_was_loaded_too_early_is_told() -> None:
    run = training("hesso")
    run.step(10)
    state = copy.deepcopy(run.optimizer.state_dict())
    assert all(TRACE not in group for group in run.optimizer.param_groups)

    def loaded(parameters: Any) -> Optimizer:
        optimizer = sgd(parameters)
        optimizer.load_state_dict(state)
        return optimizer

    with pytest.warns(UserWarning, match=r"before HESSO was built, .* \('hesso'\)\. .* build the method first"):
        early = training("hesso", loaded)
    assert early.method.step == 0 and all(TRACE not in group for group in early.optimizer.param_groups)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        late = training("hesso")
        late.optimizer.load_state_dict(state)
        assert late.method.step == 10 and all(TRACE not in group for group in late.optimizer.param_groups)
        late.method.detach()
        HESSO(late.space, late.optimizer, BUDGET, SCHEDULE)


@pytest.mark.parametrize("build", [sgd, adamw])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_cycle_goes_on_in_another_dtype(build: Callable[..., Optimizer], dtype: torch.dtype) -> None:
    run, other = training("cric", build), training("cric", build, dtype=dtype)
    run.step(10)
    assert run.method.progress.phase == "trial"
    other.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    other.model.load_state_dict(run.model.state_dict())
    other.done = run.done
    while other.method.progress.phase == "trial":
        other.step()
    held = [v for state in other.optimizer.state.values() for k, v in state.items() if k != "step"]
    assert held and all(value.dtype == dtype for value in held)
    other.step(SCHEDULE.until - other.method.step)
    assert other.method.progress.phase == "done"


def test_param_groups_may_come_within_a_cycle() -> None:
    run, more = training("cric"), nn.Parameter(torch.ones(2))
    run.step(10)
    assert run.method.progress.phase == "trial"
    run.optimizer.add_param_group({"params": [more], "lr": 0.5})
    state = copy.deepcopy(run.optimizer.state_dict())
    more.grad = torch.ones(2)
    run.optimizer.step()
    run.step(SCHEDULE.until - 11)
    assert run.method.progress.phase == "done" and (more != 1).all()
    again = training("cric")
    again.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.5})
    again.optimizer.load_state_dict(state)
    assert again.method.progress.phase == "trial"


def test_the_plan_of_a_shrunk_model_is_quiet() -> None:
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    space = niwaki.search_space(model, torch.randn(1, 4))
    optimizer = adamw(model.parameters())
    method = HESSO(space, optimizer, BUDGET, SCHEDULE, shrink=niwaki.ShrinkPolicy(cost=0.5))
    for _ in range(SCHEDULE.until + 1):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    assert model[0].weight.shape[0] < 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.plan()


@pytest.mark.parametrize("kind", ["hesso", "hspg"])
def test_a_compiled_step(kind: str) -> None:
    run, compiled = training(kind), training(kind)
    step = torch.compile(compiled.optimizer.step, backend="eager")
    for _ in range(SCHEDULE.until):
        run.step()
        compiled.optimizer.zero_grad()
        compiled.loss().backward()
        step()
        compiled.done += 1
    assert compiled.method.step == SCHEDULE.until
    torch.testing.assert_close(flat(compiled), flat(run))


class Both(Optimizer):
    """As docs/trainers.md has it."""

    def __init__(self, *optimizers: Optimizer) -> None:
        super().__init__([group for one in optimizers for group in one.param_groups], {})
        self.optimizers = optimizers
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for one in self.optimizers:
            one.param_groups, one.state = [next(groups) for _ in one.param_groups], self.state

    def step(self, closure: Any = None) -> Any:
        for one in self.optimizers:
            one.step(closure)

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self._share()


def muon_and_adamw(model: nn.Module) -> Both:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    return Both(torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=0.01))


@pytest.mark.parametrize("kind", KINDS)
def test_two_optimizers_as_one(kind: str) -> None:
    make, more = KINDS[kind]
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))

    def ready() -> tuple[nn.Module, Both, Method]:
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(6, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)
        )
        optimizer = muon_and_adamw(model)
        space = niwaki.search_space(model, x)
        return model, optimizer, make(space, optimizer, BUDGET, **{"schedule": SCHEDULE} | more)

    def train(model: nn.Module, optimizer: Both, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    model, optimizer, method = ready()
    train(model, optimizer, 10)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, SCHEDULE.until - 10)
    plan = method.plan()
    torch.testing.assert_close(niwaki.cut(model, plan)(x), model(x))

    resumed, optimizer, again = ready()
    optimizer.load_state_dict(state[1])
    resumed.load_state_dict(state[0])
    train(resumed, optimizer, SCHEDULE.until - 10)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    assert again.plan().kept == plan.kept


def test_one_of_two_optimizers_is_not_enough() -> None:
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    with pytest.raises(
        MethodError, match=r"lacks 1 of the 2 .* If another optimizer trains them .* with one that steps both"
    ):
        HESSO(niwaki.search_space(model, torch.randn(1, 6)), sgd([model[0].bias]), BUDGET, SCHEDULE)
