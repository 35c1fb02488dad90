"""Counts of surviving positions, against the plain sum over positions."""

from __future__ import annotations

import numpy as np
import pytest

from niwaki.core.counts import Counts
from niwaki.solve.axis_table import count_rows, merged


@pytest.mark.parametrize("seed", range(20))
def test_counts_of_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_units, num_axes, width = int(rng.integers(1, 60)), int(rng.integers(1, 6)), int(rng.integers(1, 4))
    axis = np.sort(rng.integers(0, num_axes, size=100))
    rows = rng.integers(0, num_units + 1, size=(100, width))
    if seed % 2:  # whole runs of units, as they mostly are
        rows = np.minimum(np.arange(100)[:, None] // int(rng.integers(1, 3)), num_units).repeat(width, axis=1)
    times = rng.integers(1, 4, size=100)
    counts = count_rows(*merged(rows, axis, times), num_axes, num_units)
    for _ in range(5):
        gates = rng.integers(0, 2, size=num_units).astype(np.float64)
        plain = np.zeros(num_axes)
        for row, number, many in zip(rows, axis, times, strict=True):
            plain[number] += many * np.prod([np.append(gates, 1.0)[unit] for unit in set(row.tolist())])
        assert counts(gates).tolist() == counts(gates.astype(bool)).tolist() == plain.tolist()
    assert counts.varies().tolist() == [bool((rows[axis == number] < num_units).any()) for number in range(num_axes)]


def test_counts_of_nothing() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert count_rows(none[:, None], none, none, 2, 3)(np.ones(3)).tolist() == [0.0, 0.0]


def _drawn(rng: np.random.Generator, num_units: int, num_axes: int) -> Counts:
    """Rows of one and of two units, and runs; some axes are alike."""
    alone = np.arange(num_units)[:, None].repeat(2, axis=1)
    alone[:, 1] = num_units
    pairs = rng.integers(0, num_units + 1, size=(20, 2))
    which = [[alone, pairs, alone[::-1]][number % 3] for number in range(num_axes)]
    axis = np.concatenate([np.full(len(rows), number) for number, rows in enumerate(which)])
    rows = np.concatenate(which)
    return count_rows(*merged(rows, axis, np.ones(len(rows), dtype=np.int64)), num_axes, num_units)


@pytest.mark.parametrize("seed", range(10))
def test_renumbered_counts_are_those_of_the_units_that_are_left(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts, keep = _drawn(rng, 50, 7), rng.random(50) < 0.7
    assert len(counts.runs.axis)
    fewer = counts.renumber(keep)
    assert (fewer.num_units, fewer.num_axes) == (keep.sum(), 7)
    for _ in range(5):
        gates = np.zeros(50)
        gates[keep] = rng.random(int(keep.sum()))
        np.testing.assert_allclose(fewer(gates[keep]), counts(gates), atol=1e-12)
    assert counts.renumber(~np.ones(50, dtype=bool))(np.zeros(0)).tolist() == counts(np.zeros(50)).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_merged_counts_have_each_axis_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = _drawn(rng, 50, 7)
    fewer, number = counts.merge()
    assert fewer.num_axes == number[7] == len(set(number[:7].tolist())) < 7
    for _ in range(5):
        gates = rng.random(50)
        assert np.append(fewer(gates), 1.0)[number].tolist() == np.append(counts(gates), 1.0).tolist()
