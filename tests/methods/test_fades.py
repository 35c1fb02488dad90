"""Ramps and fades: how many units leave when, and how they come to zero."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
import torch
from training import Training, adamw, sgd

from niwaki.errors import MethodError, UnknownName
from niwaki.methods import CRIC, DHSPG, HSPG, Schedule
from niwaki.methods.angle_safe import SHARE, AngleSafe
from niwaki.methods.fades import fade, fades
from niwaki.methods.linear_fade import LinearFade
from niwaki.per_unit import blocks
from niwaki.per_unit.protocol import UnitIterates
from niwaki.selection.budget import Budget

SAFE = Schedule(start=3, until=22, periods=3, fade="angle-safe")


def units(count: int) -> list[UnitIterates]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        x, d = torch.randn(2, 7, generator=generator, dtype=torch.float64)
        lr = torch.full((7,), 0.05, dtype=torch.float64)
        if number % 2:
            lr[4:] = 0.2  # of another param group
        made.append(UnitIterates(x, x - lr * d, d, lr))
    return made


@pytest.mark.parametrize("factor", [0.05, 0.5, 0.9])
def test_a_safe_fade_descends(factor: float) -> None:
    """The whole step, fading included, never goes against d where the unit wants to grow; the linear fade does."""
    rule, wrong = AngleSafe(factor), 0
    for unit in units(60):
        keep = float(rule.of_unit(unit).keep)
        cosine = float(unit.y @ unit.d / (unit.y.norm() * unit.d.norm()))
        if cosine >= 0:
            assert keep == pytest.approx(factor)
            continue
        assert float((keep * unit.y - unit.x) @ unit.d) < 0
        wrong += float((factor * unit.y - unit.x) @ unit.d) >= 0
        if len(set(unit.lr.tolist())) == 1:
            rate = -SHARE * float(unit.lr[0]) * float(unit.d.norm()) / (cosine * float(unit.y.norm()))  # GETA
            assert keep == pytest.approx(1 - min(rate, 1 - factor), rel=1e-12)
    assert wrong > 5 or factor == 0.9


def test_never_faster_than_linear() -> None:
    rule = AngleSafe(0.9)
    d, lr = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.full((2,), 1.0, dtype=torch.float64)
    y = torch.tensor([-1e-9, 0.0], dtype=torch.float64)
    assert float(rule.of_unit(UnitIterates(y + d, y, d, lr)).keep) == 0.9
    still = torch.zeros(2, dtype=torch.float64)
    assert float(rule.of_unit(UnitIterates(y, y, still, lr)).keep) == 0.9


@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
@pytest.mark.parametrize(("build", "block"), [(sgd, 40), (adamw, 2**19)])
def test_plain_and_vectorised_agree(net: str, build: object, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", block)
    size = {"magnitude": 1.0}  # such units may well want to grow
    plain, fast = (
        Training(net, build, Budget(macs=0.4), SAFE, torch.float64, criteria=size, vectorised=vectorised)  # type: ignore[arg-type]
        for vectorised in (False, True)
    )
    linear = Training(net, build, Budget(macs=0.4), Schedule(3, 22, 3), torch.float64, criteria=size)  # type: ignore[arg-type]
    differs = False
    for _ in range(SAFE.until + 2):
        plain.step()
        fast.step()
        linear.step()
        for name, value in plain.parameters().items():
            torch.testing.assert_close(fast.parameters()[name], value, rtol=1e-9, atol=1e-12)
        differs |= any(not torch.equal(v, fast.parameters()[n]) for n, v in linear.parameters().items())
    assert differs and fast.method.progress.phase == "done"
    assert fast.space.cost(fast.method.plan()).macs <= 0.4 * fast.space.cost().macs
    for name, mask in fast.driven(fast.marked()).items():
        assert (fast.parameters()[name][mask] == 0).all()


def test_unmarked_units_take_the_bare_step() -> None:
    bare, run = Training("conv", adamw), Training("conv", adamw, Budget(macs=0.4), SAFE)
    run.step(5)
    marked = run.marked()
    bare.model.load_state_dict(run.model.state_dict())
    state = {key: value for key, value in run.optimizer.state_dict().items() if key != "niwaki"}
    bare.optimizer.load_state_dict(copy.deepcopy(state))
    bare.done = run.done
    assert marked.any()
    bare.step()
    run.step()
    masks = run.driven(marked)
    for name, value in bare.parameters().items():
        assert torch.equal(run.parameters()[name][~masks[name]], value[~masks[name]])
    assert any(not torch.equal(run.parameters()[name], value) for name, value in bare.parameters().items())


@pytest.mark.parametrize("build", [sgd, adamw])
def test_resumed_at_every_step(build: object) -> None:
    def fresh() -> Training:
        return Training("conv", build, Budget(macs=0.4), SAFE)  # type: ignore[arg-type]

    whole, saved, end = fresh(), [], SAFE.until + 2
    for _ in range(end):
        file = io.BytesIO()
        torch.save({"model": whole.model.state_dict(), "optimizer": whole.optimizer.state_dict()}, file)
        saved.append(file)
        whole.step()
    for done in range(0, end, 2):
        saved[done].seek(0)
        state = torch.load(saved[done], weights_only=True)
        resumed = fresh()
        resumed.model.load_state_dict(state["model"])
        resumed.optimizer.load_state_dict(state["optimizer"])
        resumed.done = done
        resumed.step(end - done)
        for name, value in resumed.parameters().items():
            assert torch.equal(value, whole.parameters()[name]), f"{name}, resumed after step {done}"
    settings = whole.optimizer.state_dict()["niwaki"]["settings"]
    assert settings["schedule"] == [3, 22, 3, "linear", "angle-safe"]


def test_cric_fades_safely_once_its_trials_are_over() -> None:
    schedule = Schedule(start=1, until=30, periods=2, fade="angle-safe")
    run = Training("mlp", sgd, Budget(macs=0.5), schedule, kind=CRIC, layers=0, cycle=3, cycles=2, window=2)
    run.step(30)
    assert run.method.progress.phase == "done" and run.method.progress.macs <= 0.5


def test_a_cubic_ramp_takes_most_early() -> None:
    left: dict[str, list[float]] = {}
    for ramp in ("linear", "cubic"):
        run = Training("wide", sgd, Budget(macs=0.4), Schedule(start=1, until=40, periods=4, ramp=ramp))
        taken = [run.method.progress.macs]
        for _ in range(40):
            run.step()
            if run.method.progress.macs != taken[-1]:
                taken.append(run.method.progress.macs)
        left[ramp] = [(macs - 0.4) / 0.6 for macs in taken]
    np.testing.assert_allclose(left["linear"], [1, 0.75, 0.5, 0.25, 0], atol=0.01)
    np.testing.assert_allclose(left["cubic"], [(1 - p / 4) ** 3 for p in range(5)], atol=0.02)


def test_portions_add_up_to_the_ramp() -> None:
    for ramp, power in (("linear", 1), ("cubic", 3)):
        schedule, rest = Schedule(1, 20, 7, ramp=ramp), 1.0
        for p in range(7):
            rest *= 1 - schedule.portion(7 - p)
            assert math.isclose(rest, (1 - (p + 1) / 7) ** power, abs_tol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(MethodError, match=r"Schedule\(ramp='steep'\) is not a ramp. Choose one of: linear, cubic"):
        Schedule(1, 20, 2, ramp="steep")
    for odd in (3, None, ["linear"]):
        with pytest.raises(MethodError, match="is not a ramp. Choose one of"):
            Schedule(start=1, until=9, periods=2, ramp=odd)  # type: ignore[arg-type]
        with pytest.raises(UnknownName, match="There is no fade"):
            Schedule(start=1, until=9, periods=2, fade=odd)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="There is no fade 'slow'. Registered are: angle-safe, linear"):
        Schedule(1, 20, 2, fade="slow")
    assert set(fades()) == {"linear", "angle-safe"}
    with pytest.raises(MethodError, match="There is already a fade 'linear'. Give the new one another name"):
        fade("linear")(LinearFade)
    with pytest.raises(MethodError, match="has the fade 'angle-safe', but HSPG does not fade what leaves"):
        Training("mlp", sgd, Budget(macs=0.5), SAFE, kind=HSPG)
    with pytest.raises(MethodError, match="has the ramp 'cubic', but DHSPG does not choose units in portions"):
        Training("mlp", sgd, Budget(macs=0.5), Schedule(1, 20, 2, ramp="cubic"), kind=DHSPG)
    with pytest.raises(MethodError, match="which it can for a linear fade only, not for the fade 'angle-safe'"):
        Training("mlp", sgd, Budget(macs=0.5), SAFE, readmit=True)

    class Rateless(torch.optim.Optimizer):
        def __init__(self, parameters: object) -> None:
            super().__init__(parameters, {})  # type: ignore[arg-type]

    with pytest.raises(MethodError, match="measured in steps of the optimizer, but .*Rateless has no learning rate"):
        Training("mlp", Rateless, Budget(macs=0.5), SAFE)
    run, other = Training("mlp", sgd, Budget(macs=0.4)), Training("mlp", sgd, Budget(macs=0.4), SAFE)
    with pytest.raises(MethodError, match="was made by hesso with schedule = "):
        other.optimizer.load_state_dict(run.optimizer.state_dict())
