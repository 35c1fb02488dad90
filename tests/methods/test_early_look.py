"""A controller's step when a forward pass begins: no gradient is held then, and it is the same step."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from ato_run import SCHEDULE, Run, loss_fn
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from niwaki.errors import MethodError
from niwaki.methods.early_look import EarlyLook
from niwaki.methods.stages import Stages

STAGES = Stages.of(SCHEDULE)


class Watched(Run):
    """``held``: for each step of the controller, whether a parameter had a gradient. ``late``: zero_grad comes behind
    the forward pass."""

    def __init__(self, late: bool = False, **options: Any) -> None:
        self.late, self.held = late, list[bool]()

        def loss(model: nn.Module, batch: Any) -> Tensor:
            self.held.append(
                any(one.grad is not None for group in self.optimizer.param_groups for one in group["params"])
            )
            return loss_fn(model, batch)

        super().__init__(**{"loss_fn": loss} | options)
        self.held.clear()  # of the constructor's check

    def step(self, number: int = 1) -> Watched:
        for _ in range(number):
            self.model.train()
            if not self.late:
                self.optimizer.zero_grad()
            loss = loss_fn(self.model, self.batch(self.done))
            if self.late:
                self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.done += 1
        return self


def same(one: Run, other: Run) -> bool:
    theirs = other.parameters()
    return all(torch.equal(value, theirs[name]) for name, value in one.parameters().items())


def resumed(run: Watched) -> Watched:
    again = Watched(late=run.late)
    again.model.load_state_dict(copy.deepcopy(run.model.state_dict()))
    again.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    again.done = run.done
    return again


def test_no_gradient_is_held_and_the_run_is_the_same() -> None:
    early, late = Watched().step(SCHEDULE.until), Watched(late=True).step(SCHEDULE.until)
    looks = sum(early.method.selector.controller.training.looks(STAGES.progress(n)) for n in range(3, 28))
    assert early.held == [False] * looks and late.held == [True] * looks
    assert same(early, late)
    assert not early.model._forward_pre_hooks, "nothing is left in the model"


@pytest.mark.parametrize("late", [False, True])
def test_a_resumed_run_looks_where_it_would_have_looked(late: bool) -> None:
    """Its first pass finds no gradients in either case."""
    first = Watched(late=late).step(10)
    again = resumed(first)
    random = torch.get_rng_state()
    place = again.method.selector._early
    assert place is not None and place.usual is not late
    first.step(SCHEDULE.until - 10)
    torch.set_rng_state(random)
    assert same(again.step(SCHEDULE.until - 10), first)
    assert again.held and set(again.held) == {late}, "a gradient is held in the first look, too, if in all others"


def test_passes_that_are_not_the_trainings_do_not_look() -> None:
    run = Watched().step(10)
    run.optimizer.zero_grad()
    x, _ = run.batch(3)
    taken = run.method.selector.controller.taken
    run.model.eval()(x)
    run.model.train()
    with torch.no_grad():
        run.model(x)
    copy.deepcopy(run.model)(x)
    torch.func.functional_call(run.model, {n: p.detach() for n, p in run.model.named_parameters()}, (x,))
    run.model[1].eval()  # whose buffers no function of torch.func may write
    torch.func.grad(lambda y: run.model(y).sum())(x)
    run.model.train()
    torch.compile(run.model, backend="eager", fullgraph=True)(x)
    assert run.method.selector.controller.taken == taken
    run.model(x)
    run.model(x)
    assert run.method.selector.controller.taken == taken + 1, "once"


def test_it_runs_in_full_precision_under_autocast() -> None:
    run, seen = Run(), []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return loss_fn(model, batch)

    run.method.selector.controller._loss_fn = loss
    for _ in range(8):
        run.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            found = loss_fn(run.model, run.batch(run.done))
        found.backward()
        run.optimizer.step()
    assert seen == [False] * 6


def test_what_goes_wrong_is_said_before_the_step() -> None:
    run = Watched().step(10)
    data = run.method.selector.controller.data
    taken = run.method.selector.controller.taken
    data._batches = []
    data.move(1, 0)
    run.optimizer.zero_grad()
    loss_fn(run.model, run.batch(10)).backward()
    with pytest.raises(MethodError, match="batches gave no batch in pass"):
        run.optimizer.step()
    assert run.method.selector.controller.taken == taken


def test_nothing_looks_once_the_method_is_detached() -> None:
    run = Watched().step(10)
    run.method.detach()
    assert not run.model._forward_pre_hooks
    run.method.attach()
    run.step(4)
    assert run.held[-1] is False


@pytest.mark.parametrize("kind", ["checkpoint", "cached", "saved on the CPU"])
def test_what_keeps_a_pass_for_later_keeps_none_of_the_controllers(kind: str) -> None:
    """A checkpoint around the model compares what two passes save; a cache of weights would train on masked ones."""

    class Kept(Watched):
        around = False

        def step(self, number: int = 1) -> Kept:
            for _ in range(number):
                self.optimizer.zero_grad()
                x, labels = self.batch(self.done)
                if not self.around:
                    nn.functional.cross_entropy(self.model.train()(x), labels).backward()
                elif kind == "checkpoint":
                    outputs = checkpoint(self.model.train(), x, use_reentrant=False)
                    nn.functional.cross_entropy(outputs, labels).backward()
                else:
                    with parametrize.cached() if kind == "cached" else torch.autograd.graph.save_on_cpu():
                        nn.functional.cross_entropy(self.model.train()(x), labels).backward()
                self.optimizer.step()
                self.done += 1
            return self

    def run(around: bool) -> Kept:
        run = Kept()
        run.around = around
        return run.step(12)

    kept, plain = run(True), run(False)
    assert all(kept.held) and not any(plain.held) and len(kept.held) == len(plain.held) > 0
    theirs = dict(plain.model.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in kept.model.named_parameters())


def test_only_the_first_pass_of_a_step_looks() -> None:
    """Before a second one somebody may have moved the weights for a while, as sharpness-aware minimisation does."""
    run = Watched().step(10)
    taken = run.method.selector.controller.taken
    x, _ = run.batch(3)
    run.model.train()(x)  # with the gradients of the last step
    run.optimizer.zero_grad()
    run.model(x)
    assert run.method.selector.controller.taken == taken


@pytest.mark.parametrize("at", [0, 12])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Using .torch.compile.module:UserWarning")
def test_a_model_that_is_scripted_copied_or_compiled_meanwhile(at: int) -> None:
    """It can be, at any time, so can its copies, and the training goes on as if nobody had."""
    run, plain = Watched(dropout=0.0).step(at), Watched(dropout=0.0).step(at)
    x, _ = run.batch(at)
    run.model.eval()
    with torch.no_grad():
        expected = run.model(x)
        copies = [copy.deepcopy(run.model), pickle.loads(pickle.dumps(run.model))]
        forms = [*copies, torch.compile(run.model, backend="eager"), *map(torch.jit.script, [*copies, run.model])]
        for form in forms:
            assert torch.equal(form(x), expected)
    assert not any(one._forward_pre_hooks for one in (run.model, *copies))
    holder = nn.Sequential(run.model, nn.Identity())
    torch.jit.script(holder)
    assert holder[0] is run.model
    assert same(run.step(8), plain.step(8))
    assert run.model._forward_pre_hooks and "__prepare_scriptable__" in run.model.__dict__
    run.step(SCHEDULE.until - run.done)
    assert not run.model._forward_pre_hooks and "__prepare_scriptable__" not in run.model.__dict__


class Prepared(nn.Sequential):
    """Says itself what stands for it in a script."""

    def __prepare_scriptable__(self) -> nn.Module:
        return nn.Sequential(*self, nn.Tanh())


def test_a_model_that_prepares_itself_for_scripts_still_does() -> None:
    model, x = Prepared(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2)), torch.randn(8, 4)
    EarlyLook(model, lambda: None).watch(True)
    assert torch.equal(torch.jit.script(model)(x), model(x).tanh())
