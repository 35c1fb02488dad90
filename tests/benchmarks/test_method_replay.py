"""`benchmarks/replay.py`: the networks train in each method, and what is compared is told apart."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.replay import METHODS, NETWORKS, WITHIN, compared, train


@pytest.fixture(scope="module")
def trained() -> dict[str, object]:
    return train(NETWORKS["signals"], "HESSO", steps=12)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_removes_units_of_a_network(method: str) -> None:
    network = list(NETWORKS)[list(METHODS).index(method) % len(NETWORKS)]
    found = train(NETWORKS[network], method, steps=12)
    assert 0 < sum(len(kept) for kept in found["kept"].values()) < found["units"]


def test_the_same_training_is_equal_bit_by_bit(trained: dict) -> None:
    same, how = compared(trained, train(NETWORKS["signals"], "HESSO", steps=12))
    assert same and how.startswith("equal bit by bit, ")


@pytest.mark.parametrize(("times", "said"), [(0.5, "equal plans, parameters within 5e-10"), (2.0, "is 2e-09 of the")])
def test_round_off_is_told_from_another_result(trained: dict, times: float, said: str) -> None:
    other = copy.deepcopy(trained)
    largest = max(float(value.abs().max()) for value in trained["tensors"].values())
    other["tensors"]["head.bias"][0] += times * WITHIN * largest
    same, how = compared(trained, other)
    assert same is (times < 1) and said in how


def test_other_plans_tensors_and_entries_are_named(trained: dict) -> None:
    other = copy.deepcopy(trained)
    other["kept"]["hidden"] = [0]
    assert "of group 'hidden' the old one keeps [" in compared(trained, other)[1]
    other = copy.deepcopy(trained)
    other["tensors"]["more"] = torch.zeros(1)
    assert compared(trained, other) == (False, "the network has other tensors: 'more'")
    other = copy.deepcopy(trained)
    other["tensors"]["head.bias"][0] = torch.nan
    assert compared(trained, other) == (False, "head.bias has another shape, or entries that are not finite")
