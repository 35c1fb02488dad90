"""How many positions of an axis survive, for any choice of units: the arithmetic below costs and sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Surviving positions per axis as a function of unit gates.

    Positions of one axis that depend on the same units are one row; ``units[r]`` holds the units of row r (padded with
    the sentinel ``num_units``, which is always kept), ``times[r]`` the number of positions, ``axis[r]`` the axis.
    """

    num_units: int
    num_axes: int
    units: IntArray  # [R, K]
    times: FloatArray  # [R]
    axis: IntArray  # [R]

    def __call__(self, gates: FloatArray) -> FloatArray:
        """Surviving positions [num_axes] for ``gates`` [num_units] in [0, 1] (1 = kept)."""
        extended = np.append(gates, 1.0)
        alive = self.times * extended[self.units].prod(axis=1)
        return np.bincount(self.axis, weights=alive, minlength=self.num_axes).astype(np.float64)

    def slopes(self, gates: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
        """The derivative of each axis count by each unit gate, as (axis, unit, value) triplets."""
        extended = np.append(gates, 1.0)
        columns = self.units.shape[1]
        rows_axis, rows_unit, rows_value = [], [], []
        for column in range(columns):
            others = np.delete(self.units, column, axis=1)
            real = self.units[:, column] < self.num_units
            value = self.times * extended[others].prod(axis=1)
            rows_axis.append(self.axis[real])
            rows_unit.append(self.units[real, column])
            rows_value.append(value[real])
        return np.concatenate(rows_axis), np.concatenate(rows_unit), np.concatenate(rows_value)
