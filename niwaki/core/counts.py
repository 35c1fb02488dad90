"""Count the surviving positions of axes for any choice of units; costs and sizes are computed from these counts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_LONG = 16  # units; shorter runs are stored as rows


@dataclass(frozen=True, slots=True, eq=False)
class RunLengths:
    """Runs of successive units that all have equally many positions on an axis: ``times[r]`` positions for each of the
    units from ``first[r]`` up to, not including, ``end[r]``."""

    first: IntArray  # [Q]
    end: IntArray  # [Q]
    times: FloatArray  # [Q]
    axis: IntArray  # [Q]

    def __getitem__(self, rows: IntArray | BoolArray) -> RunLengths:
        """Some of the runs."""
        return RunLengths(self.first[rows], self.end[rows], self.times[rows], self.axis[rows])

    def joined(self, other: RunLengths) -> RunLengths:
        """These runs and those of ``other``."""
        return RunLengths(
            np.concatenate([self.first, other.first]),
            np.concatenate([self.end, other.end]),
            np.concatenate([self.times, other.times]),
            np.concatenate([self.axis, other.axis]),
        )

    def __call__(self, gates: FloatArray | BoolArray) -> FloatArray:
        """The positions [Q] that survive ``gates``."""
        bounds, place = np.unique(np.concatenate([self.first, self.end]), return_inverse=True)
        add = np.count_nonzero if gates.dtype == bool else np.sum
        sums = np.array([add(gates[first:end]) for first, end in pairwise(bounds.tolist())], dtype=np.float64)
        before = np.append(0.0, sums.cumsum())[place]
        survive: FloatArray = self.times * (before[len(self.first) :] - before[: len(self.first)])
        return survive


_NO_UNITS: IntArray = np.zeros(0, dtype=np.int64)
_NONE = RunLengths(_NO_UNITS, _NO_UNITS, np.zeros(0), _NO_UNITS)


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Surviving positions per axis as a function of unit gates.

    Positions of one axis that depend on the same units are one row; ``units[r]`` holds the units of row r (padded with
    the sentinel ``num_units``, which is always kept), ``times[r]`` the number of positions, ``axis[r]`` the axis.
    Positions that depend on a single unit and are regular are stored in ``runs`` instead.
    """

    num_units: int
    num_axes: int
    units: IntArray  # [R, K]
    times: FloatArray  # [R]
    axis: IntArray  # [R]
    runs: RunLengths = _NONE

    @classmethod
    def of(cls, num_units: int, num_axes: int, units: IntArray, times: FloatArray, axis: IntArray) -> Counts:
        """Make counts from rows; long runs are stored as such."""
        unit = units.min(axis=1, initial=num_units)
        alone = (unit < num_units) & ((units < num_units).sum(axis=1) == 1)
        goes_on = alone[1:] & alone[:-1] & (unit[1:] == unit[:-1] + 1) & (times[1:] == times[:-1])
        goes_on &= axis[1:] == axis[:-1]
        first = np.flatnonzero(np.append(True, ~goes_on)) if len(unit) else np.zeros(0, dtype=np.int64)
        length = np.diff(np.append(first, len(unit)))
        long = (length >= _LONG) & alone[first]
        rest = np.repeat(~long, length)
        first, length = first[long], length[long]
        runs = RunLengths(unit[first], unit[first] + length, times[first], axis[first])
        return cls(num_units, num_axes, units[rest], times[rest], axis[rest], runs)

    def renumber(self, keep: BoolArray) -> Counts:
        """Drop the units that are not in ``keep`` [num_units] with their positions, and renumber the others in their
        order."""
        before = np.append(0, keep.cumsum())  # [num_units + 1]: the number of kept units before each
        number = np.append(np.where(keep, before[:-1], -1), before[-1])  # including the sentinel
        units = number[self.units]
        rows = (units >= 0).all(axis=1)
        runs = replace(self.runs, first=before[self.runs.first], end=before[self.runs.end])
        return Counts(
            int(before[-1]),
            self.num_axes,
            units[rows],
            self.times[rows],
            self.axis[rows],
            runs[runs.end > runs.first],
        )

    def merge(self) -> tuple[Counts, IntArray]:
        """Merge axes whose positions depend on the same units. Returns the new counts, and the new number of each axis,
        [num_axes + 1] including the sentinel."""
        order, run_order = np.argsort(self.axis, kind="stable"), np.argsort(self.runs.axis, kind="stable")
        numbers = np.arange(self.num_axes + 1)
        ends = np.searchsorted(self.axis[order], numbers)
        run_ends = np.searchsorted(self.runs.axis[run_order], numbers)
        same: dict[bytes, int] = {}
        merged = np.empty(self.num_axes + 1, np.int64)
        first: list[IntArray] = [np.empty(0, np.int64)]
        first_runs: list[IntArray] = [np.empty(0, np.int64)]
        for number in range(self.num_axes):
            rows = order[ends[number] : ends[number + 1]]
            own = run_order[run_ends[number] : run_ends[number + 1]]
            runs = self.runs[own]
            arrays = self.units[rows], self.times[rows], runs.first, runs.end, runs.times
            key = b"".join(len(array).to_bytes(8) + array.tobytes() for array in arrays)
            merged[number] = same.setdefault(key, len(same))
            if merged[number] == len(first) - 1:
                first.append(rows)
                first_runs.append(own)
        merged[self.num_axes] = len(same)
        rows, runs = np.concatenate(first), self.runs[np.concatenate(first_runs)]
        axis = merged[self.axis[rows]]
        runs = replace(runs, axis=merged[runs.axis])
        return Counts(self.num_units, len(same), self.units[rows], self.times[rows], axis, runs), merged

    def __call__(self, gates: FloatArray | BoolArray) -> FloatArray:
        """Surviving positions [num_axes] for ``gates`` [num_units] in [0, 1] (1 = kept), which may be a mask."""
        own = gates.take(self.units, mode="clip") if self.num_units else True  # without a copy of all gates
        alive = self.times * np.where(self.units < self.num_units, own, True).prod(axis=1)
        counts = np.bincount(self.axis, weights=alive, minlength=self.num_axes).astype(np.float64)
        if len(self.runs.axis):
            counts += np.bincount(self.runs.axis, weights=self.runs(gates), minlength=self.num_axes)
        return counts

    def varies(self) -> NDArray[np.bool_]:
        """The axes [num_axes] that depend on any unit."""
        varies = np.zeros(self.num_axes, dtype=bool)
        varies[self.axis[(self.units < self.num_units).any(axis=1)]] = True
        varies[self.runs.axis] = True
        return varies

    def depending(self, axes: Collection[int]) -> NDArray[np.bool_]:
        """The units [num_units] that some axes depend on."""
        some = np.zeros(self.num_axes, dtype=bool)
        some[list(axes)] = True
        which = np.zeros(self.num_units + 1, dtype=bool)
        which[self.units[some[self.axis]]] = True
        for run in np.flatnonzero(some[self.runs.axis]).tolist():
            which[self.runs.first[run] : self.runs.end[run]] = True
        return which[:-1]

    def slopes(self, gates: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
        """The non-zero derivatives of axis counts by unit gates, as arrays (axis, unit, value)."""
        extended = np.append(gates, 1.0)
        columns = self.units.shape[1]
        length = self.runs.end - self.runs.first
        shift = self.runs.first - np.append(0, length.cumsum())[:-1]
        rows_axis = [np.repeat(self.runs.axis, length)]
        rows_unit = [np.arange(length.sum()) + np.repeat(shift, length)]
        rows_value = [np.repeat(self.runs.times, length)]
        for column in range(columns):
            others = np.delete(self.units, column, axis=1)
            real = self.units[:, column] < self.num_units
            value = self.times * extended[others].prod(axis=1)
            rows_axis.append(self.axis[real])
            rows_unit.append(self.units[real, column])
            rows_value.append(value[real])
        return np.concatenate(rows_axis), np.concatenate(rows_unit), np.concatenate(rows_value)
