"""Compute parameters, multiply-accumulates and memory of any choice of units, within microseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from niwaki.core.counts import BoolArray, Counts, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a network.

    ``params``: trainable and frozen parameters (tied ones once). ``macs``: multiply-accumulates of one forward pass in
    eval mode on the first example input. ``memory``: bytes of parameters and buffers. ``activations``: the largest
    number of bytes of computed tensors that are alive at once in this pass; 0 if unknown.
    """

    params: int
    macs: int
    memory: int
    activations: int = 0

    def __str__(self) -> str:
        return f"{self.params:,} parameters, {self.macs:,} MACs, {self.memory / 2**20:.2f} MiB"


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """A sum of terms, each a constant times a product of axis counts.

    ``axes[t]`` lists the axes of term t, padded with the sentinel ``num_axes`` (an axis of one position).
    """

    constant: FloatArray  # [T]
    axes: IntArray  # [T, D]

    def each(self, counts: FloatArray) -> FloatArray:
        """The value of each term for ``counts`` [num_axes], [T]."""
        return np.asarray(self.constant * np.append(counts, 1.0)[self.axes].prod(axis=1), np.float64)

    def total(self, counts: FloatArray) -> float:
        """The value of the sum for ``counts`` [num_axes]."""
        return float(self.each(counts).sum())

    def renamed(self, number: IntArray) -> Terms:
        """The same terms with the axes renumbered by ``number`` [num_axes + 1], which includes the sentinel."""
        return Terms(self.constant, number[self.axes])

    def slopes(self, counts: FloatArray) -> FloatArray:
        """The derivative of the sum by each axis count, [num_axes]."""
        extended = np.append(counts, 1.0)
        slope = np.zeros(len(extended))
        for column in range(self.axes.shape[1]):
            others = np.delete(self.axes, column, axis=1)
            np.add.at(slope, self.axes[:, column], self.constant * extended[others].prod(axis=1))
        return slope[:-1]


@dataclass(frozen=True, slots=True, eq=False)
class PeakMemory:
    """The largest sum of terms that are alive at the same moment. Term t is alive from moment ``born[t]`` up to, not
    including, ``died[t]``; both are [T], and moments count from 0."""

    terms: Terms
    born: IntArray
    died: IntArray

    def total(self, counts: FloatArray) -> float:
        """The largest sum over all moments for ``counts`` [num_axes]."""
        return float(self._moments(counts).max())

    def slopes(self, counts: FloatArray) -> FloatArray:
        """The derivative by each axis count of the sum at the moment when it is largest, [num_axes]. When an axis
        grows, the largest sum grows at least as fast."""
        moment = int(self._moments(counts).argmax())
        here = (self.born <= moment) & (self.died > moment)
        return Terms(self.terms.constant[here], self.terms.axes[here]).slopes(counts)

    def _moments(self, counts: FloatArray) -> FloatArray:
        each = self.terms.each(counts)
        length = int(self.died.max(initial=0)) + 1
        change = np.bincount(self.born, each, length) - np.bincount(self.died, each, length)
        return np.asarray(change.cumsum(), np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class OperatorWork:
    """The work of each operator of the first run: its multiply-accumulates, or, if it has none, the entries of the
    largest tensor that it reads or writes. Views are left out.

    ``names`` [N] are the operators in their order; term t belongs to number ``operator[t]``.
    """

    names: tuple[str, ...]
    terms: Terms  # [T]
    operator: IntArray  # [T]

    def amounts(self, counts: FloatArray) -> FloatArray:
        """The work of each operator for ``counts`` [num_axes], [N]."""
        return np.bincount(self.operator, self.terms.each(counts), len(self.names)).astype(np.float64)


@dataclass(frozen=True, slots=True)
class ImplantTimes:
    """The nanoseconds of a layer with implants, given all ``inputs``: ``whole`` for each output that stays as it is,
    ``slim`` for each implant, and ``fixed`` as soon as there is one, for a second layer and for putting outputs in
    their order. ``rank``: of the implants, as in `niwaki.core.edits.Implant`."""

    inputs: int
    whole: float
    slim: float
    fixed: float
    rank: int | None = None

    def saved(self, inputs: int, slim: int) -> float:
        """What ``slim`` implants save, in a layer that is given ``inputs``; below 0 if they cost more."""
        return (slim * (self.whole - self.slim) * inputs / self.inputs - self.fixed) if slim else 0.0

    def price(self, inputs: int, alive: int) -> float:
        """What one more implant saves. Of the fixed part it is taken to bear as much as if half of the ``alive``
        outputs were implants; never below 0."""
        return max(0.0, (self.whole - self.slim) * inputs / self.inputs - 2 * self.fixed / max(alive, 1))


@dataclass(frozen=True, slots=True, eq=False)
class CostModel:
    """Cost as a function of unit gates: gates give axis counts, and costs are multilinear sums of products of counts.
    Of ``activations`` (None if unknown), the largest of several such sums.

    ``work`` is None if no run was recorded. ``macs_of``: which of the terms of ``macs`` multiply by each parameter, by
    its name. ``latency``, in nanoseconds, has to be measured first: see `timed`; so has ``latency_merged``, that of the
    network whose low-rank adapters are merged into the weights beside them, and so have the ``implant_times``, by the
    names of weights.
    """

    counts: Counts
    params: Terms
    macs: Terms
    memory: Terms
    activations: PeakMemory | None = None
    work: OperatorWork | None = None
    latency: Terms | None = None
    macs_of: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    latency_merged: Terms | None = None
    implant_times: Mapping[str, ImplantTimes] = field(default_factory=dict)

    def __call__(self, gates: FloatArray | BoolArray) -> Cost:
        """The cost for ``gates`` [num_units] (1 = kept, 0 = removed), which may be a mask."""
        alive = self.counts(gates)
        params, macs, memory = (round(terms.total(alive)) for terms in (self.params, self.macs, self.memory))
        return Cost(params, macs, memory, 0 if self.activations is None else round(self.activations.total(alive)))

    def price(self, gates: FloatArray, measure: str) -> FloatArray:
        """The derivative [num_units] of ``measure`` (a field name of `Cost`, or ``latency``) by the gates: what
        removing each unit alone would save."""
        alive = self.counts(gates)
        by_axis = self.terms(measure).slopes(alive)
        axis, unit, value = self.counts.slopes(gates)
        saved = np.bincount(unit, weights=value * by_axis[axis], minlength=self.counts.num_units)
        return saved.astype(np.float64)

    def timed(self, rate: FloatArray, rest: float) -> CostModel:
        """Add a ``latency``: ``rate`` [N] nanoseconds for each operator's work in the dense network, proportionally
        less for less work, and ``rest`` nanoseconds that do not depend on the units."""
        assert self.work is not None, "no run was recorded"
        work, dense = self.work, self.work.amounts(self.counts(np.ones(self.counts.num_units)))
        constant = np.append(work.terms.constant * (rate / np.maximum(dense, 1.0))[work.operator], rest)
        none = np.full((1, work.terms.axes.shape[1]), self.counts.num_axes)
        return replace(self, latency=Terms(constant, np.concatenate([work.terms.axes, none])))

    def merged(self) -> CostModel:
        """The same costs, many times faster: axes whose positions depend on the same units are counted once."""
        fewer, merged = self.counts.merge()
        peaks, work, latency = self.activations, self.work, self.latency
        return CostModel(
            fewer,
            self.params.renamed(merged),
            self.macs.renamed(merged),
            self.memory.renamed(merged),
            None if peaks is None else PeakMemory(peaks.terms.renamed(merged), peaks.born, peaks.died),
            None if work is None else replace(work, terms=work.terms.renamed(merged)),
            None if latency is None else latency.renamed(merged),
            self.macs_of,
            None if self.latency_merged is None else self.latency_merged.renamed(merged),
            self.implant_times,
        )

    def terms(self, measure: str) -> Terms | PeakMemory:
        """The terms of one field of `Cost`, or of the ``latency``."""
        if measure == "activations":
            assert self.activations is not None, "these activations are not known: see Budget.absolute"
            return self.activations
        if measure == "latency":
            assert self.latency is not None, "no operator was timed: see `timed`"
            return self.latency
        return {"params": self.params, "macs": self.macs, "memory": self.memory}[measure]
