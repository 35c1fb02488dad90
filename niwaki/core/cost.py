"""Parameters, multiply-accumulates and weight memory of any choice of units, in microseconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from niwaki.core.counts import BoolArray, Counts, FloatArray, IntArray, Runs


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs.

    ``params``: trainable and frozen parameters (tied ones once). ``macs``: multiply-accumulates of one forward pass in
    eval mode on the first example input. ``memory``: bytes of parameters and buffers.
    """

    params: int
    macs: int
    memory: int

    def __str__(self) -> str:
        return f"{self.params:,} parameters, {self.macs:,} MACs, {self.memory / 2**20:.2f} MiB"


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """A sum of terms, each a constant times a product of axis counts.

    ``axes[t]`` lists the axes of term t, padded with the sentinel ``num_axes`` (an axis of one position).
    """

    constant: FloatArray  # [T]
    axes: IntArray  # [T, D]

    def total(self, counts: FloatArray) -> float:
        """The value of the sum for ``counts`` [num_axes]."""
        return float((self.constant * np.append(counts, 1.0)[self.axes].prod(axis=1)).sum())

    def slopes(self, counts: FloatArray) -> FloatArray:
        """The derivative of the sum by each axis count, [num_axes]."""
        extended = np.append(counts, 1.0)
        slope = np.zeros(len(extended))
        for column in range(self.axes.shape[1]):
            others = np.delete(self.axes, column, axis=1)
            np.add.at(slope, self.axes[:, column], self.constant * extended[others].prod(axis=1))
        return slope[:-1]


@dataclass(frozen=True, slots=True, eq=False)
class CostModel:
    """Cost as a multilinear function of unit gates: axis counts, then sums of products of counts."""

    counts: Counts
    params: Terms
    macs: Terms
    memory: Terms

    def __call__(self, gates: FloatArray | BoolArray) -> Cost:
        """The cost for ``gates`` [num_units] (1 = kept, 0 = removed), a mask for choice."""
        alive = self.counts(gates)
        return Cost(*(round(terms.total(alive)) for terms in (self.params, self.macs, self.memory)))

    def price(self, gates: FloatArray, measure: str) -> FloatArray:
        """What removing each unit alone would save at ``gates``: the derivative [num_units] of ``measure``
        (a field name of `Cost`) by the gates."""
        alive = self.counts(gates)
        by_axis = self.terms(measure).slopes(alive)
        axis, unit, value = self.counts.slopes(gates)
        saved = np.bincount(unit, weights=value * by_axis[axis], minlength=self.counts.num_units)
        return saved.astype(np.float64)

    def merged(self) -> CostModel:
        """The same costs, with axes whose positions depend on the same units counted once: many times faster."""
        counts, runs = self.counts, self.counts.runs
        order, run_order = np.argsort(counts.axis, kind="stable"), np.argsort(runs.axis, kind="stable")
        numbers = np.arange(counts.num_axes + 1)
        ends = np.searchsorted(counts.axis[order], numbers)
        run_ends = np.searchsorted(runs.axis[run_order], numbers)
        same: dict[bytes, int] = {}
        merged = np.empty(counts.num_axes + 1, np.int64)
        first: list[IntArray] = [np.empty(0, np.int64)]
        first_runs: list[IntArray] = [np.empty(0, np.int64)]
        for number in range(counts.num_axes):
            rows = order[ends[number] : ends[number + 1]]
            own = run_order[run_ends[number] : run_ends[number + 1]]
            arrays = counts.units[rows], counts.times[rows], runs.first[own], runs.end[own], runs.times[own]
            key = b"".join(len(array).to_bytes(8) + array.tobytes() for array in arrays)
            merged[number] = same.setdefault(key, len(same))
            if merged[number] == len(first) - 1:
                first.append(rows)
                first_runs.append(own)
        merged[counts.num_axes] = len(same)
        rows, own = np.concatenate(first), np.concatenate(first_runs)
        fewer = Counts(
            counts.num_units,
            len(same),
            counts.units[rows],
            counts.times[rows],
            merged[counts.axis[rows]],
            Runs(runs.first[own], runs.end[own], runs.times[own], merged[runs.axis[own]]),
        )
        parts = (Terms(terms.constant, merged[terms.axes]) for terms in (self.params, self.macs, self.memory))
        return CostModel(fewer, *parts)

    def terms(self, measure: str) -> Terms:
        """The terms of one field of `Cost`."""
        return {"params": self.params, "macs": self.macs, "memory": self.memory}[measure]
