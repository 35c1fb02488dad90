"""The mixture of data after pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from niwaki.errors import MethodError
from niwaki.methods import recovery_shares


def test_shares_follow_what_was_lost() -> None:
    before = {"code": 1.0, "prose": 2.0, "verse": 3.0}
    shares = recovery_shares(before, {"code": 1.3, "prose": 2.1, "verse": 2.5}, floor=0.3)
    assert shares == pytest.approx({"code": 0.1 + 0.7 * 0.75, "prose": 0.1 + 0.7 * 0.25, "verse": 0.1})
    assert sum(shares.values()) == pytest.approx(1)
    exact = recovery_shares(before, {"code": 1.3, "prose": 2.1, "verse": 2.5}, floor=0)
    assert exact["verse"] == 0 and exact["code"] == pytest.approx(0.75)


def test_nothing_lost_is_equal_shares() -> None:
    assert recovery_shares({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 0.5}) == {"a": 0.5, "b": 0.5}


def test_a_sampler_draws_the_shares() -> None:
    domains = ["a"] * 900 + ["b"] * 100
    shares = recovery_shares({"a": 1.0, "b": 1.0}, {"a": 1.1, "b": 1.3}, floor=0.2)
    weights = [shares[name] / domains.count(name) for name in domains]
    drawn = list(WeightedRandomSampler(weights, 20000, generator=torch.Generator().manual_seed(0)))
    assert sum(domains[i] == "b" for i in drawn) / 20000 == pytest.approx(shares["b"], abs=0.01)
    assert shares["b"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("before", "now", "floor", "message"),
    [
        ({"a": 1.0}, {"b": 1.0}, 0.1, r"before pruning are given of \['a'\], and now of \['b'\]. Measure the same"),
        ({}, {}, 0.1, "one at least"),
        ({"a": math.nan}, {"a": 1.0}, 0.1, "The loss of the domain 'a' is nan before pruning and 1.0 now, but must be"),
        ({"a": 1.0}, {"a": math.inf}, 0.1, "is 1.0 before pruning and inf now"),
        ({"a": 1.0}, {"a": 1.0}, 1.0, "floor=1.0 must be a finite number, from 0 to below 1"),
    ],
)
def test_what_makes_no_sense_is_refused(
    before: Mapping[str, float], now: Mapping[str, float], floor: float, message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        recovery_shares(before, now, floor=floor)
