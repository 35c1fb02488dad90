"""Methods that let units leave while training goes on: when, on the same path, resumable; in numbers of the dense."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shrinking_run import END, SCHEDULE, Run
from small import images
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import Keep
from niwaki.errors import MethodError, ShrinkError
from niwaki.methods.shrinking import LiveSpace


def discard(run: Run) -> None:
    """What the optimizer remembers of entries at zero is discarded in the run that keeps them, too."""
    gone = run.method.selector.removable()
    plan = run.method.space.plan(~gone)
    for name, parameter in run.model.named_parameters():
        for dim, stays in plan.tensors.get(name, {}).items():
            lost = torch.tensor(sorted(set(range(parameter.shape[dim])) - set(stays)))
            for value in run.optimizer.state[parameter].values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.index_fill_(dim, lost, 0)
            if isinstance(plan.at["keep", name, dim], Keep):
                with torch.no_grad():  # consumers, which the zeros make unheard
                    parameter.index_fill_(dim, lost, 0)


@pytest.mark.parametrize("vectorised", [True, False])
@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("name", ["hesso", "hesso-cric", "hspg"])
def test_the_same_path(name: str, adam: bool, vectorised: bool) -> None:
    """As soon as it may, or never: the losses agree, and so do the plans and the networks that are cut."""
    soon, never = (
        Run(name, adam, shrink=shrink, vectorised=vectorised) for shrink in (niwaki.ShrinkPolicy(cost=1e-9), False)
    )
    dense, sizes = soon.size, set()
    for _ in range(END):
        ours, theirs = soon.steps(1), never.steps(1)
        discard(never)
        assert ours == pytest.approx(theirs, rel=1e-10)
        sizes.add(soon.size)
    assert len(sizes) > (1 if name == "hspg" else 3) and never.size == dense
    assert soon.method.plan().to_json() == never.method.plan().to_json()
    assert soon.method.progress == never.method.progress
    expected = niwaki.cut(never.model, never.method.plan())
    for network in (soon.model, niwaki.cut(soon.model, soon.method.plan())):
        for (path, left), right in zip(network.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-12, msg=path)


@pytest.mark.parametrize("name", ["hesso", "hesso-cric", "hspg"])
def test_resumed_at_every_step(name: str) -> None:
    """Into a dense model: first the optimizer, which makes it as small, then the model."""

    def fresh() -> Run:
        return Run(name, adam=True, shrink=niwaki.ShrinkPolicy(cost=0.5))

    whole, saved = fresh(), []
    for _ in range(END):
        file = io.BytesIO()
        torch.save({"model": whole.model.state_dict(), "optimizer": whole.optimizer.state_dict()}, file)
        saved.append(file)
        whole.steps(1)
    for done in range(0, END, 3):
        saved[done].seek(0)
        state = torch.load(saved[done], weights_only=True)
        resumed = fresh()
        resumed.optimizer.load_state_dict(state["optimizer"])
        resumed.model.load_state_dict(state["model"])
        resumed.done = done
        resumed.steps(END - done)
        for (path, ours), theirs in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(ours, theirs), f"{path}, resumed after step {done}"
        assert resumed.method.plan().to_json() == whole.method.plan().to_json()


def test_checkpoints_of_a_shrunk_run(tmp_path: Path) -> None:
    """The model is brought to the size of the checkpoint; the method finds it so."""
    whole = Run(shrink=niwaki.ShrinkPolicy(cost=0.5))
    whole.steps(15)
    niwaki.Checkpoints(tmp_path).save(15, {"model": whole.model, "optimizer": whole.optimizer})
    resumed = Run(shrink=niwaki.ShrinkPolicy(cost=0.5))
    plan = niwaki.Checkpoints(tmp_path).plan()
    assert plan is not None and whole.size < resumed.size
    niwaki.shrink(resumed.model, plan)
    niwaki.Checkpoints(tmp_path).load({"model": resumed.model, "optimizer": resumed.optimizer})
    resumed.done = 15
    assert resumed.steps(END - 15) == whole.steps(END - 15)
    assert resumed.method.plan().to_json() == whole.method.plan().to_json()


def test_a_function_scores_what_is_left() -> None:
    """A criterion of the user's is given the space of the model as it is."""
    asked = []

    def norms(space: niwaki.SearchSpace) -> Any:
        asked.append(space.num_units)
        return niwaki.score(space, "magnitude").values

    run = Run(shrink=niwaki.ShrinkPolicy(cost=1e-9), criteria=norms)
    run.steps(END)
    assert asked == sorted(asked, reverse=True) and asked[-1] < asked[0] == run.method.space.num_units


def test_by_hand_and_the_end() -> None:
    run = Run()
    assert not run.method.shrink()
    run.steps(END)
    dense, average = run.size, copy.deepcopy(run.model)
    x = images().double()
    run.model.eval()
    before = run.model(x)
    assert run.method.shrink(ema=[average]) and not run.method.shrink()
    assert run.size < dense and sum(p.numel() for p in average.parameters()) == run.size
    torch.testing.assert_close(run.model(x), before, rtol=1e-12, atol=1e-13)
    assert niwaki.check(run.model, run.method.plan(), x).holds


def test_the_space_of_the_dense_model_is_of_no_use_to_a_shrunk_one() -> None:
    """Its positions would mean other units; what is left of it is not."""
    run = Run(shrink=niwaki.ShrinkPolicy(cost=1e-9))
    run.steps(END)
    space = run.method.space
    run.method.detach()
    for use in (
        lambda: niwaki.score(space, "magnitude"),
        lambda: niwaki.HESSO(space, run.optimizer, niwaki.Budget(macs=0.3), SCHEDULE),
    ):
        with pytest.raises(MethodError, match=r"has changed since this search space was found: .*niwaki.reindex"):
            use()
    rest = niwaki.reindex(space, run.method.plan())
    assert len(niwaki.score(rest, "magnitude").values) == rest.num_units < space.num_units


def test_when_it_pays() -> None:
    """A shrink that costs two steps waits until zeros have cost as much."""
    run = Run()
    space, gone = run.method.space, np.zeros(run.method.space.num_units, dtype=bool)
    remains, policy = LiveSpace(space), niwaki.ShrinkPolicy(cost=2.0)
    assert not any(remains.pays(gone, policy) for _ in range(99)), "nothing to gain"
    gone[space.groups[0].numbers][: space.groups[0].units // 2] = True
    saved = 1 - space.cost_of(~gone).macs / space.cost().macs
    assert [remains.pays(gone, policy) for _ in range(99)].index(True) == int(np.ceil(2 / saved)) - 1


def test_the_ordinary_default_shrinks_too() -> None:
    run = Run(shrink=True)
    dense = run.size
    run.steps(END)
    assert run.size < dense


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: niwaki.ShrinkPolicy(cost=0), r"ShrinkPolicy\(cost=0\) must be a number of training steps above 0"),
        (lambda: niwaki.ShrinkPolicy(ema="model"), "must be a list or tuple of modules, copies of the model"),  # type: ignore[arg-type]
        (lambda: Run(shrink="often"), "shrink='often' is not a choice: True, False, or niwaki.ShrinkPolicy"),
    ],
)
def test_bad_choices(make: Any, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        make()


def test_checkpoints_that_do_not_fit_are_refused() -> None:
    run = Run(shrink=niwaki.ShrinkPolicy(cost=1e-9))
    run.steps(10)
    early = copy.deepcopy(run.optimizer.state_dict())
    run.steps(END - 10)
    with pytest.raises(MethodError, match="shrunk further than in the checkpoint, which has .* units more"):
        run.optimizer.load_state_dict(early)
    for change in ({"here": torch.ones(3, dtype=torch.bool)}, {"idle": float("nan")}):
        other, state = Run(), copy.deepcopy(run.optimizer.state_dict())
        state["niwaki"]["remains"] |= change
        with pytest.raises(MethodError, match="is damaged"):
            other.optimizer.load_state_dict(state)
        assert other.method.step == 0 and other.size == Run().size


def test_a_run_goes_on_where_states_cannot_follow() -> None:
    class Odd(torch.optim.SGD):
        """Keeps a vector of its own."""

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    optimizer = Odd(model.parameters(), lr=0.1)
    optimizer.state[model[0].weight]["odd"] = torch.zeros(3)
    space = niwaki.search_space(model, torch.randn(1, 4))
    method = niwaki.HESSO(
        space, optimizer, niwaki.Budget(macs=0.5), niwaki.Schedule(1, 5, 1), shrink=niwaki.ShrinkPolicy(cost=1e-9)
    )
    with pytest.warns(
        UserWarning, match="hesso goes on without shrinking the model. The state 'odd' .*register_state_layout"
    ):
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    assert model[0].weight.shape == (10, 4) and method.units.live.here.all() and method.progress.phase == "done"
    with pytest.raises(ShrinkError, match="register_state_layout"):
        method.shrink()
