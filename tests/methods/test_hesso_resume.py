"""A run that is stopped after any step and resumed in a fresh process ends with the same bits."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from training import SCHEDULE, Training, adamw, sgd

from niwaki.errors import MethodError
from niwaki.methods import Schedule
from niwaki.methods.scoring import WEIGHTS
from niwaki.selection.budget import Budget

END = SCHEDULE.until + 3


@pytest.mark.parametrize("vectorised", [True, False])
@pytest.mark.parametrize("build", [sgd, adamw])
def test_resumed_at_every_step(build: object, vectorised: bool) -> None:
    def fresh() -> Training:
        return Training("conv", build, Budget(macs=0.4), vectorised=vectorised)  # type: ignore[arg-type]

    whole, saved = fresh(), []
    for _ in range(END):
        file = io.BytesIO()
        torch.save({"model": whole.model.state_dict(), "optimizer": whole.optimizer.state_dict()}, file)
        saved.append(file)
        whole.step()
    for done in range(0, END, 1 if vectorised else 4):
        saved[done].seek(0)
        state = torch.load(saved[done], weights_only=True)
        resumed = fresh()
        resumed.model.load_state_dict(state["model"])
        resumed.optimizer.load_state_dict(state["optimizer"])
        resumed.done = done
        assert resumed.method is not None and resumed.method.step == done
        resumed.step(END - done)
        for name, value in resumed.parameters().items():
            assert torch.equal(value, whole.parameters()[name]), f"{name}, resumed after step {done}"
        assert resumed.method.plan().to_json() == whole.method.plan().to_json()  # type: ignore[union-attr]
        assert resumed.method.progress == whole.method.progress  # type: ignore[union-attr]


def test_saving_is_a_snapshot() -> None:
    run = Training("mlp", sgd, Budget(macs=0.4))
    run.step(4)
    state = run.optimizer.state_dict()["niwaki"]
    window, step = state["state"]["window"].clone(), state["step"]
    run.step(10)
    assert torch.equal(state["state"]["window"], window) and state["step"] == step == 4


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    run = Training("mlp", sgd, Budget(macs=0.4))
    run.step(6)
    state = run.optimizer.state_dict()
    bare = {key: value for key, value in state.items() if key != "niwaki"}
    with pytest.raises(
        MethodError, match="checkpoint holds no state of hesso, .* load the checkpoint first and attach"
    ):
        run.optimizer.load_state_dict(bare)
    for other in (
        Training("mlp", sgd, Budget(macs=0.5)),
        Training("mlp", sgd, Budget(macs=0.4), Schedule(start=3, until=17, periods=3)),
        Training("mlp", sgd, Budget(macs=0.4), criteria={"magnitude": 1.0}),
        Training("mlp", sgd, Budget(macs=0.4), criteria=dict(reversed(WEIGHTS.items()))),  # scores come in rows
        Training("mlp", sgd, Budget(macs=0.4), window=2),
        Training("mlp", sgd, Budget(macs=0.4, round_to=2)),
        Training("mlp", sgd, Budget(macs=0.4, min_units=2)),
    ):
        with pytest.raises(MethodError, match="The checkpoint was made by hesso with .* Build the method as it was"):
            other.optimizer.load_state_dict(state)
        assert other.method is not None and other.method.step == 0
    with pytest.raises(MethodError, match="with structure = "):
        Training("overlap", sgd, Budget(macs=0.5)).optimizer.load_state_dict(state)
    unattached = Training("mlp", sgd)
    unattached.optimizer.load_state_dict(state)  # niwaki's entry does not disturb an optimizer without a method


def test_a_refused_optimizer_state_leaves_the_method_alone() -> None:
    run, other = Training("mlp", sgd, Budget(macs=0.4)), Training("mlp", sgd, Budget(macs=0.4))
    run.step(6)
    state = run.optimizer.state_dict()
    state["param_groups"] = state["param_groups"] * 2
    with pytest.raises(ValueError, match="different number of parameter groups"):
        other.optimizer.load_state_dict(state)
    assert other.method is not None and other.method.step == 0


def test_a_damaged_state_is_refused() -> None:
    run, other = Training("mlp", sgd, Budget(macs=0.4)), Training("mlp", sgd, Budget(macs=0.4))
    run.step(4)
    for change, message in (
        (lambda saved: saved.clear(), "is damaged: it lacks 'format'"),
        (lambda saved: saved.pop("step"), "it lacks 'step'"),
        (lambda saved: saved.update(settings=None), "is damaged"),
        (lambda saved: saved["state"].pop("status"), "it lacks 'status'"),
        (
            lambda saved: saved["state"].update(status=torch.zeros(3, dtype=torch.int8)),
            "its status is not .* one per unit",
        ),
        (lambda saved: saved["state"]["status"].fill_(7), "values that mean nothing"),
        (lambda saved: saved["state"].update(samples=0), "contradict one another"),
        (lambda saved: saved["state"].update(window=torch.zeros(1, 2)), "its window has not the shape"),
    ):
        state = run.optimizer.state_dict()
        change(state["niwaki"])
        with pytest.raises(MethodError, match=message):
            other.optimizer.load_state_dict(state)
        assert other.method is not None and other.method.step == 0 and other.method.progress.marked == 0
