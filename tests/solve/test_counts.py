"""Counts of surviving positions, against the plain sum over positions."""

from __future__ import annotations

import numpy as np
import pytest

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
