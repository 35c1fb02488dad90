"""Recipes: their schedules and rates, and sentences for what cannot be trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from short_runs import SHORT, train

from niwaki.errors import RunError
from niwaki.train.loop import Silent
from niwaki.train.recipe import Recipe


def test_bad_recipes_are_sentences() -> None:
    for options, message in (
        (
            {"method": "magic"},
            "There is no method 'magic'. Choose adahspg, ato, dhspg, .* or none.",
        ),
        ({"epochs": 0}, "epochs is 0, but must be at least 1."),
        ({"lr": float("nan")}, "lr is nan, but must be a finite number above 0."),
        ({"prune_start": 0.6}, "from the fraction 0.6 of all steps until"),
        ({"keep_macs": None}, "needs to know what to keep"),
        ({"batch_size": 1}, "BatchNorm cannot train on single images"),
    ):
        with pytest.raises(RunError, match=message):
            Recipe(**options)  # type: ignore[arg-type]
    assert [Recipe().schedule(steps).periods for steps in (2, 20, 400)] == [1, 5, 10]
    with pytest.raises(RunError, match="1 optimizer step cannot prune a network: units leave after the first"):
        Recipe().schedule(1)
    with pytest.raises(RunError, match="There is no optimizer 'lion'. Choose sgd or adam or adamw."):
        Recipe(optimizer="lion")
    with pytest.raises(RunError, match="image_size is '64x'; write 64, or 64x96 for height and width"):
        Recipe(image_size="64x")
    assert (Recipe().peak_rate, Recipe(optimizer="adamw").peak_rate, Recipe(lr=0.1).peak_rate) == (0.02, 0.001, 0.1)


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    rates = [Recipe(lr=0.1).learning_rate(step, 200) for step in range(200)]
    assert max(rates) == rates[9] == 0.1
    assert rates[0] < rates[4] < rates[9] > rates[100] > rates[199] > 0
    assert rates[199] < 1e-4


def test_an_unknown_device_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="The device 'warp' cannot be used here"):
        train(SHORT, tmp_path / "out", Silent(), device="warp")
