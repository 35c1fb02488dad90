"""A start that waits until it is clear what will leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training import Training, sgd

from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError
from niwaki.methods import CRIC, AdaHSPG, GReg1, Schedule
from niwaki.methods.stable_scores import Looks
from niwaki.selection.budget import Budget

STABLE = Schedule("stable", until=40, periods=3)


def settled(space: SearchSpace) -> np.ndarray:
    return np.arange(space.num_units, dtype=float) + 1


class Restless:
    """Never ranks twice alike."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __call__(self, space: SearchSpace) -> np.ndarray:
        return self.generator.random(space.num_units)


def run(criteria: object, steps: int = 40, **options: object) -> Training:
    training = fresh(criteria, **options)
    training.step(steps)
    return training


def fresh(criteria: object, **options: object) -> Training:
    return Training("mlp", sgd, Budget(macs=0.5), schedule=STABLE, criteria=criteria, **options)


def test_the_looks_of_a_schedule() -> None:
    for until in range(4, 60):
        for periods in (1, 3):
            looks = Looks.of(Schedule("stable", until=until, periods=periods), 5)
            at = [step for step in range(until + 1) if looks.at(step)]
            assert at[0] == looks.first and at[-1] == looks.latest and until - looks.latest >= periods
            assert {step for step in range(1, until) if looks.scores(step)} == {
                step for last in at for step in range(last - looks.width + 1, last + 1)
            }


def test_a_settled_choice_begins_with_the_fifth_look() -> None:
    looks = Looks.of(STABLE, 3)
    method = run(settled).method
    at = [step for step in range(41) if looks.at(step)]
    assert method.selector.scores.timeline.borders[0] == at[4]  # each is compared with the last but one, three times
    assert method.progress.phase == "done" and method.progress.macs <= 0.5
    assert f"; begun at step {at[4]}" in str(method)


def test_a_restless_one_with_the_last() -> None:
    method = run(Restless(), 40).method
    assert method.selector.scores.timeline.borders[0] == Looks.of(STABLE, 3).latest == 31
    assert method.progress.phase == "done" and method.progress.macs <= 0.5


class Alternating:
    """Ranks one way and the other in turn."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, space: SearchSpace) -> np.ndarray:
        self.calls += 1
        return settled(space)[:: 1 if self.calls % 2 else -1].copy()


def test_a_choice_is_compared_with_the_last_but_one() -> None:
    looks = Looks.of(STABLE, 1)
    assert looks.width == 1
    method = run(Alternating(), window=1).method
    assert method.selector.scores.timeline.borders[0] == [step for step in range(41) if looks.at(step)][4]


class Turning:
    """Ranks the other way from some call on."""

    def __init__(self, turn: int) -> None:
        self.calls, self.turn = 0, turn

    def __call__(self, space: SearchSpace) -> np.ndarray:
        self.calls += 1
        return settled(space)[:: -1 if self.calls > self.turn else 1].copy()


def test_later_portions_are_of_later_scores() -> None:
    turns = 5  # the looks until the first portion, at a window of one step
    same, turned = (run(Turning(turn), window=1).marked() for turn in (1000, turns))
    assert (same != turned).any()


def test_before_it_has_begun_nothing_leaves() -> None:
    method = run(Restless(), 29).method
    assert method.progress.marked == 0 and method.progress.phase in ("scoring", "waiting")
    assert "of the last choice but one kept" in str(method)


@pytest.mark.parametrize("stop", [1, 6, 8, 12, 25, 39])
def test_it_resumes_bit_identically(stop: int) -> None:
    mix = {"magnitude": 1.0, "taylor1": 1.0}
    whole, first, again = run(mix), run(mix, stop), fresh(mix)
    again.model.load_state_dict(first.model.state_dict())
    again.optimizer.load_state_dict(first.optimizer.state_dict())
    again.done = stop
    again.step(40 - stop)
    for name, value in whole.parameters().items():
        assert torch.equal(value, again.parameters()[name]), name
    assert str(again.method) == str(whole.method)


def test_other_methods_need_a_step() -> None:
    for kind, label in ((AdaHSPG, "AdaHSPG"), (GReg1, "GReg-1"), (CRIC, "HESSO-CRIC")):
        with pytest.raises(MethodError, match=rf"^{label}.* cannot start when choices are stable: only HESSO"):
            Training("mlp", sgd, Budget(macs=0.5), kind=kind, schedule=STABLE)


def test_a_schedule_of_a_length() -> None:
    for steps in (*range(10, 60), 1000, 12345):
        for pretrained in (False, True):
            schedule = Schedule.of(steps, pretrained=pretrained)
            assert 1 <= schedule.start < schedule.until <= steps * 0.4 + 1
    for steps, options in ((9, {}), ("100", {}), (100, {"pretrained": "no"})):
        with pytest.raises(
            MethodError, match=r"must be (a whole number, 10 or more: the optimizer|True or False: wheth)"
        ):
            Schedule.of(steps, **options)  # type: ignore[arg-type]


def test_looks_are_part_of_what_a_resumed_run_repeats() -> None:
    assert Schedule(5, until=40, stable=True).data != STABLE.data != Schedule(1, until=40, periods=3).data


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"similarities": ["x"]}, "its similarities are not up to 3 numbers"),
        ({"looks": torch.ones(1, 24)}, "what looks kept is not rows of .* truth values"),
        ({"looks": torch.ones(3, 0, dtype=torch.bool)}, "what looks kept is not rows of .* truth values"),
        ({"began": 3}, "it began at step 3, after which there is no look"),
    ],
)
def test_damaged_states_are_sentences(damage: dict[str, object], told: str) -> None:
    scores = run(Restless(), 12).method.selector.scores
    with pytest.raises(ValueError, match=told):
        scores.check_state(scores.state() | damage)
    scores.check_state(scores.state())
