"""Optimizers that save and load by methods of their own, which call no hooks; those of bitsandbytes are such."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from every_method import BUDGET, KINDS, SCHEDULE, flat, training
from torch import nn
from torch.optim import SGD, Optimizer
from training import Training, sgd

from niwaki.errors import MethodError
from niwaki.methods import HESSO
from niwaki.methods.method import KEY


class OwnMethods(SGD):
    """Saves and loads by itself, as bitsandbytes does when it loads."""

    def state_dict(self, *, plainly: bool = True) -> dict[str, Any]:
        assert plainly
        states = [{"momentum": self.state[p].get("momentum_buffer")} for g in self.param_groups for p in g["params"]]
        groups = [{name: value for name, value in group.items() if name != "params"} for group in self.param_groups]
        return {"state": copy.deepcopy(states), "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any], plainly: bool = True) -> None:
        assert plainly
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for parameter, saved in zip(parameters, copy.deepcopy(state_dict["state"]), strict=True):
            self.state[parameter]["momentum_buffer"] = saved["momentum"]


def own_methods(parameters: Any) -> Optimizer:
    return OwnMethods(parameters, lr=0.1, momentum=0.9)


def eight_bits(parameters: Any) -> Optimizer:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    made: Optimizer = bitsandbytes.optim.AdamW8bit(parameters, lr=0.01)
    return made


def resumed(kind: str, build: Callable[..., Optimizer], stop: int, net: str) -> tuple[Training, Training]:
    """A run of 30 steps, and one that was saved, killed and resumed after ``stop``."""
    whole, first, second = (training(kind, build, net) for _ in range(3))
    whole.step(30)
    first.step(stop)
    file = io.BytesIO()
    torch.save({"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    second.done = stop
    second.step(30 - stop)
    return whole, second


@pytest.mark.parametrize("stop", [4, 9, 20, 27])
@pytest.mark.parametrize("kind", KINDS)
def test_a_method_is_saved_and_loaded_all_the_same(kind: str, stop: int) -> None:
    whole, second = resumed(kind, own_methods, stop, "mlp")
    assert torch.equal(flat(whole), flat(second))
    assert whole.method.progress == second.method.progress


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits(kind: str) -> None:
    whole, second = resumed(kind, eight_bits, 14, "wide")
    states = [value for state in whole.optimizer.state.values() for value in state.values()]
    assert any(isinstance(value, torch.Tensor) and value.dtype == torch.uint8 for value in states)
    assert torch.equal(flat(whole), flat(second))
    assert 0 < whole.method.progress.macs <= 0.5


def test_what_does_not_fit_is_refused_before_anything_is_loaded() -> None:
    plain, run = Training("mlp", own_methods), training("hesso", own_methods)
    plain.step(2)
    run.step(5)
    before = copy.deepcopy(run.optimizer.state_dict())
    with pytest.raises(MethodError, match="checkpoint holds no state of hesso, which is attached"):
        run.optimizer.load_state_dict(plain.optimizer.state_dict())
    after = run.optimizer.state_dict()
    assert after["state"][0]["momentum"].equal(before["state"][0]["momentum"]) and after[KEY]["step"] == 5


def test_detached_they_are_the_optimizers_own_again() -> None:
    run = training("hesso", own_methods)
    state = run.optimizer.state_dict()
    run.method.detach()
    assert not {"state_dict", "load_state_dict"} & vars(run.optimizer).keys()
    assert KEY not in run.optimizer.state_dict()
    run.optimizer.load_state_dict(state)  # and nobody minds what is in it


def test_a_wrapper_around_them_stays() -> None:
    run = training("hesso", own_methods)
    inner: Any = run.optimizer.state_dict

    def counted() -> dict[str, Any]:
        return {"calls": 1} | inner()

    run.optimizer.state_dict = counted  # type: ignore[method-assign]
    run.method.detach()
    assert run.optimizer.state_dict().keys() == {"calls", "state", "param_groups"}


def test_a_wrapper_inside_is_put_back() -> None:
    run = Training("mlp", own_methods)
    inner: Any = run.optimizer.state_dict
    run.optimizer.state_dict = counted = lambda: {"calls": 1} | inner()  # type: ignore[method-assign]
    method = HESSO(run.space, run.optimizer, BUDGET, SCHEDULE)
    assert {"calls", KEY} < run.optimizer.state_dict().keys()
    method.detach()
    assert run.optimizer.state_dict is counted


def test_torchs_own_are_left_alone() -> None:
    run = training("hesso", sgd)
    assert not {"state_dict", "load_state_dict"} & vars(run.optimizer).keys()
    assert isinstance(run.model, nn.Module) and KEY in run.optimizer.state_dict()
