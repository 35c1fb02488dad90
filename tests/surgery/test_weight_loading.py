"""Weights of another size than the model's: they wait for the optimizer's state, are cut as they load, or refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from shrinking_run import END, Run
from small import images
from torch import nn

import niwaki
from niwaki.errors import MethodError, WeightsError


@pytest.mark.parametrize("shrink", [False, niwaki.ShrinkPolicy(cost=0.5)])
def test_weights_that_come_before_their_optimizer_wait(shrink: Any) -> None:
    """As Accelerate, Hugging Face's Trainer and Lightning load: the model first, which no forward pass may use yet."""
    whole = Run(adam=True, shrink=niwaki.ShrinkPolicy(cost=0.5))
    whole.steps(15)
    weights, state = copy.deepcopy((whole.model.state_dict(), whole.optimizer.state_dict()))
    resumed = Run(adam=True, shrink=shrink)
    before = {name: value.clone() for name, value in resumed.model.state_dict().items()}
    given = dict(weights)
    resumed.model.load_state_dict(given)
    assert given.keys() == weights.keys() and all(given[name] is value for name, value in weights.items())
    assert all(torch.equal(before[name], value) for name, value in resumed.model.state_dict().items())
    for use in (lambda: resumed.model(images().double()), resumed.optimizer.step):
        with pytest.raises(MethodError, match="had shrunk further. They wait for the state of its optimizer"):
            use()
    space = resumed.method.space
    cut = niwaki.cut(resumed.model, space.plan(np.arange(space.num_units) < space.num_units))
    for other in (copy.deepcopy(resumed.model), cut):  # they have the weights from before
        with pytest.raises(MethodError, match="a copy of a model whose weights were waiting for the state"):
            other(images().double())
    for value in weights.values():
        value.zero_()  # what a state dict holds is copied when it is loaded
    resumed.optimizer.load_state_dict(resumed.optimizer.state_dict())  # as accelerate does when it is prepared
    resumed.optimizer.load_state_dict(state)
    resumed.done = whole.done
    assert resumed.steps(END - 15) == whole.steps(END - 15) or not shrink
    if shrink:
        assert all(
            torch.equal(*pair) for pair in zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
        )
    assert not resumed.model._forward_pre_hooks
    resumed.method.detach()
    assert not resumed.model._load_state_dict_pre_hooks


def test_weights_that_wait_may_come_in_parts_and_be_replaced() -> None:
    whole = Run(shrink=niwaki.ShrinkPolicy(cost=0.5))
    whole.steps(END)
    weights, state = whole.model.state_dict(), whole.optimizer.state_dict()
    resumed = Run(shrink=niwaki.ShrinkPolicy(cost=0.5))
    dense = copy.deepcopy(resumed.model.state_dict())
    resumed.model.load_state_dict(weights)
    resumed.model.load_state_dict(dense)  # nothing waits any more
    resumed.model(images().double())
    names = list(weights)
    for part in (names[::2], names[1::2]):  # files of a checkpoint in several
        resumed.model.load_state_dict({name: weights[name] for name in part}, strict=False)
    resumed.optimizer.load_state_dict(state)
    assert all(torch.equal(value, weights[name]) for name, value in resumed.model.state_dict().items())
    assert resumed.method.done


def test_weights_that_wait_for_another_optimizer_are_refused() -> None:
    whole = Run(shrink=niwaki.ShrinkPolicy(cost=0.5))
    whole.steps(12)
    early = copy.deepcopy(whole.optimizer.state_dict())
    whole.steps(END - 12)
    resumed = Run(shrink=niwaki.ShrinkPolicy(cost=0.5))
    before = copy.deepcopy(resumed.model.state_dict())
    resumed.model.load_state_dict(whole.model.state_dict())
    with pytest.raises(MethodError, match="do not belong to this state of the optimizer: in them .* has another"):
        resumed.optimizer.load_state_dict(early)
    assert all(torch.equal(before[name], value) for name, value in resumed.model.state_dict().items())
    resumed.method.detach()
    resumed.model(images().double())


def test_weights_of_other_networks_are_left_to_torch() -> None:
    run = Run(shrink=niwaki.ShrinkPolicy(cost=0.5))
    dense = run.model.state_dict()
    head = list(dense)[-1]
    for other in (
        {name: value.new_zeros(7, *value.shape[1:]) for name, value in dense.items()},  # larger and smaller
        {name: value[None] for name, value in dense.items()},
        {**dense, head: dense[head][:1]},  # no unit can leave a network's outputs
    ):
        with pytest.raises(RuntimeError, match="size mismatch"):
            run.model.load_state_dict(other)
        run.model(images().double())


@pytest.mark.parametrize("name", ["hesso", "hspg"])
def test_weights_from_before_the_model_shrank(name: str) -> None:
    """At zero they are cut as they are loaded, from any moment of the run; what is not zero is refused."""
    run = Run(name, adam=True, shrink=niwaki.ShrinkPolicy(cost=0.5))
    saved, x = [], images().double()
    for _ in range(END):
        outputs = run.model.eval()(x).detach()
        run.model.train()
        saved.append((copy.deepcopy(run.model.state_dict()), run.size, run.method.done, outputs))
        run.steps(1)
    loaded = refused = 0
    for weights, size, done, outputs in saved:
        before = copy.deepcopy(run.model.state_dict())
        if size > run.size and not done:
            with pytest.raises(
                WeightsError, match=r"are from before the model shrank, .* that have left since are not"
            ):
                run.model.load_state_dict(weights)
            assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())
            refused += 1
        else:
            run.model.load_state_dict(weights)
            torch.testing.assert_close(run.model.eval()(x), outputs, rtol=1e-10, atol=1e-12)
            loaded += size > run.size
    assert refused and (loaded or name == "hspg")
    unknown = Run(name, adam=True, shrink=niwaki.ShrinkPolicy(cost=0.5))
    unknown.optimizer.load_state_dict(run.optimizer.state_dict())
    between = next((weights for weights, size, *_ in saved if run.size < size < saved[0][1]), None)
    assert between is not None or name == "hspg"  # which shrinks once
    with pytest.raises(
        RuntimeError, match="not known any more which units they have. Nothing was loaded|have left since are not zero"
    ):
        unknown.model.load_state_dict(between or saved[0][0])


def test_weights_of_networks_with_compiled_parts_and_tied_tensors_wait() -> None:
    """Their names have torch's wrappers in them, and some tensors have two names."""

    def run() -> tuple[nn.Module, torch.optim.Optimizer, niwaki.HESSO]:
        torch.manual_seed(0)
        hidden = nn.Linear(16, 16)
        model = nn.Sequential(nn.Linear(4, 16), torch.compile(hidden, backend="eager"), nn.ReLU(), nn.Linear(16, 2))
        model.add_module("tied", nn.Sequential())
        model.tied.again = hidden.weight  # type: ignore[union-attr]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        space, shrink = niwaki.search_space(model, torch.randn(2, 4)), niwaki.ShrinkPolicy(cost=0.1)
        schedule = niwaki.Schedule(start=2, until=8, periods=2)
        return model, optimizer, niwaki.HESSO(space, optimizer, niwaki.Budget(units=0.5), schedule, shrink=shrink)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()

    model, optimizer, method = run()
    dense = copy.deepcopy(model.state_dict())
    steps(model, optimizer)
    again, fresh, _ = run()
    again.load_state_dict(model.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert len(again[0].bias) < 16 and again.tied.again.shape == again[1].weight.shape  # type: ignore[index,arg-type]
    niwaki.zero_(again, method.plan())  # a no-op
    for name, value in niwaki.Plan.from_json(method.plan().to_json()).tensors.items():
        for dim, kept in value.items():
            gone = sorted(set(range(dense[name if name in dense else "1._orig_mod" + name[1:]].shape[dim])) - set(kept))
            dense[name if name in dense else "1._orig_mod" + name[1:]].index_fill_(dim, torch.tensor(gone), 0)
    dense["tied.again"] = dense["1._orig_mod.weight"]
    model.load_state_dict(dense)
    assert len(model[0].bias) < 16  # type: ignore[index,arg-type]


def test_a_step_that_was_refused_is_not_open_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two classes have hooks around one `step`, as AdamW and Adam have if they are first built in this order, the
    next step is not taken for a part of it."""
    bare = torch.optim.Adam.step
    while getattr(bare, "hooked", False):
        bare = bare.__wrapped__  # type: ignore[attr-defined]
    parent = type("Parent", (torch.optim.AdamW,), {"step": bare})
    child = type("Child", (parent,), {})
    for kind in (child, parent):
        kind([nn.Parameter(torch.zeros(1))])
    monkeypatch.setattr(torch.optim, "AdamW", child)
    test_weights_that_come_before_their_optimizer_wait(niwaki.ShrinkPolicy(cost=0.5))
