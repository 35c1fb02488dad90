"""The fast path does what the plain loop says, for every optimizer, and never waits for the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from handmade import MLP, mlp_space
from optimizers import OPTIMIZERS, Calls, same
from training import SCHEDULE, Training

import niwaki
from niwaki.methods import HESSO
from niwaki.selection.budget import Budget


@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_plain_and_vectorised_agree(name: str, net: str) -> None:
    kind, options = OPTIMIZERS[name]
    plain, fast = (
        Training(net, lambda p: kind(p, **options), Budget(macs=0.4), vectorised=vectorised)
        for vectorised in (False, True)
    )
    for _ in range(SCHEDULE.until + 2):
        plain.step()
        fast.step()
        same(plain.parameters(), fast.parameters())
        states = [run.optimizer.state_dict() for run in (plain, fast)]
        methods = [state.pop("niwaki") for state in states]
        same(*states)
        windows = [method["state"].pop("window", None) for method in methods]
        same(*methods)
        if windows[0] is not None:
            torch.testing.assert_close(windows[0], windows[1], rtol=2e-4, atol=2e-6)
    assert fast.method is not None and fast.method.progress.phase == "done"


@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
@pytest.mark.parametrize("criteria", [None, {"random": 1.0}])
def test_no_step_waits_for_the_device(net: str, criteria: dict[str, float] | None) -> None:
    options = {} if criteria is None else {"criteria": criteria}
    run = Training(net, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), Budget(macs=0.4), **options)
    assert run.method is not None
    phases = set()
    for step in range(1, SCHEDULE.until + 4):
        run.optimizer.zero_grad()
        run.loss().backward()
        phases.add(run.method.progress.phase)
        boundary = (
            run.method.selector.scores.timeline.selects(step) is not None
            or run.method.selector.scores.timeline.factor(step) == 0
        )
        with Calls() as calls:
            run.optimizer.step()
        if not boundary:  # a selection, and only that, brings scores to the host
            waiting = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select", "unique"}
            assert not waiting & set(calls.counts), f"step {step}: {calls.counts}"
    assert phases == {"waiting", "scoring", "fading", "done"}


def test_the_number_of_operations_does_not_grow_with_the_units() -> None:
    counts = []
    for width in (40, 400):
        model = MLP(6, width, width)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        HESSO(mlp_space(model), optimizer, Budget(macs=0.4), SCHEDULE, window=3)
        total = 0
        for _ in range(SCHEDULE.until):
            model.zero_grad()
            model(torch.randn(4, 6)).square().mean().backward()
            with Calls() as calls:
                optimizer.step()
            total += sum(calls.counts.values())
        counts.append(total)
    assert counts[0] == counts[1]


def test_scores_are_taken_only_in_windows() -> None:
    run = Training("conv", lambda p: torch.optim.SGD(p, lr=0.05), Budget(macs=0.4))
    assert run.method is not None
    sampled = []
    for step in range(1, SCHEDULE.until + 1):
        before = run.method.selector.scores.sampler.window.samples
        run.step()
        if run.method.selector.scores.sampler.window.samples != before:
            sampled.append(step)
    line = run.method.selector.scores.timeline
    assert sampled == [step for step in range(1, SCHEDULE.until + 1) if line.scores(step)]
    assert np.diff(line.borders).min() >= line.window


@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
def test_plain_and_vectorised_agree_on_every_criterion(net: str) -> None:
    known = niwaki.criteria.criteria().values()
    known = [c for c in known if not (c.needs_activations or c.needs_curvature or c.needs_absence)]
    names = {c.name: 1.0 for c in known if "scale" not in c.reads}
    windows = []
    for vectorised in (False, True):
        run = Training(
            net, lambda p: torch.optim.SGD(p, lr=0.05), Budget(macs=0.4), criteria=names, vectorised=vectorised
        )
        run.step(SCHEDULE.start)
        windows.append(run.optimizer.state_dict()["niwaki"]["state"]["window"])
        run.step(SCHEDULE.until - SCHEDULE.start)
        assert run.method.progress.macs <= 0.4
    torch.testing.assert_close(*windows, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("vectorised", [True, False])
def test_the_direction_is_known_at_rate_zero_and_without_weight_decay(vectorised: bool) -> None:
    """At rate 0 the gradient's; and decoupled decay, which shrinks all units alike, makes none look redundant."""

    def cosines(build: Any) -> torch.Tensor:
        run = Training("conv", build, Budget(macs=0.4), criteria={"cosine": 1.0}, vectorised=vectorised)
        run.step(SCHEDULE.start)
        return run.optimizer.state_dict()["niwaki"]["state"]["window"][0]

    tiny, zero = (cosines(lambda p, lr=lr: torch.optim.SGD(p, lr=lr)) for lr in (1e-3, 0.0))
    assert (zero != 1).all()
    torch.testing.assert_close(zero, tiny, atol=0.02, rtol=0)
    plain, decaying = (cosines(lambda p, w=w: torch.optim.AdamW(p, lr=1e-5, weight_decay=w)) for w in (0.0, 100.0))
    torch.testing.assert_close(plain, decaying, atol=0.02, rtol=0)
