"""The objective of a choice: what units are worth, and what removing one more of them saves (its marginal cost)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from niwaki.core.cost import CostModel
from niwaki.core.counts import FloatArray, IntArray
from niwaki.core.isomorphic import group_of
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import Compare, peers_of

_LEAST = 1e-6  # a fraction below it counts as zero


_TINY = 1e-300


class Worth:
    """The worth of units, relative to the remaining ones of their peers: their group, all isomorphic groups, or for
    ``compare="space"`` none, where the worth is the saliency itself. ``share`` [num_units]: the saliency of each over
    that of all its peers, or of all units.

    ``start`` [num_units] are the present units; units removed before are assumed to have been like them. ``weight``
    [groups]: of two equal groups, one of twice the weight keeps twice the fraction (its worth counts four times);
    with ``compare="space"``, its saliency counts twice.
    """

    def __init__(
        self,
        space: SearchSpace,
        saliency: FloatArray,
        start: BoolArray,
        compare: Compare = "group",
        weight: FloatArray | None = None,
    ) -> None:
        self._by_itself = compare == "space"
        self._weight = np.ones(space.num_units) if weight is None else weight[group_of(space)]
        self._peers = peers_of(space, compare)
        if self._by_itself:
            saliency = saliency * self._weight
        present = np.bincount(self._peers, weights=start)
        total = np.bincount(self._peers, weights=np.where(start, saliency, 0.0))
        whole = np.maximum(total / np.maximum(present, 1) * np.bincount(self._peers), _TINY)
        self.share = saliency / whole[self._peers]  # so that sums over several peers keep small saliencies

    def __call__(self, units: IntArray, before: FloatArray, after: FloatArray, price: FloatArray) -> FloatArray:
        """The worth of each of ``units``; its peers keep the fraction ``before`` with it and ``after`` without it.

        ``price`` [num_units]: the cost of units in the dense network.
        """
        if self._by_itself:
            return self.share[units]
        peers = self._peers[units]
        cost = np.bincount(self._peers, weights=price)[peers]
        more, less = (np.maximum(share, _LEAST) for share in (before, after))
        return np.asarray(self._weight[units] ** 2 * cost**1.5 * (1 / less - 1 / more), np.float64)

    def of(self, keep: BoolArray, price: FloatArray) -> float:
        """The worth of the choice ``keep`` [num_units] as a whole."""
        kept = np.bincount(self._peers, weights=np.where(keep, self.share, 0.0))
        if self._by_itself:
            return float(kept.sum())
        weight = np.bincount(self._peers, weights=self._weight**2) / np.maximum(np.bincount(self._peers), 1)
        cost = np.bincount(self._peers, weights=price)
        return -float((weight * cost**1.5 / np.maximum(kept, _LEAST)).sum())

    def total(self, keep: BoolArray) -> FloatArray:
        """The kept fraction of the peers of each unit, [num_units]."""
        kept = np.bincount(self._peers, weights=np.where(keep, self.share, 0.0))
        return np.asarray(kept[self._peers], np.float64)

    def held(self, which: BoolArray, key: FloatArray, way: int) -> FloatArray:
        """The summed share of each unit in ``which`` and of its peers there that come before it (``way`` 1) or after it
        (-1) in the order of ``key``, [num_units]."""
        held = np.zeros(len(key))
        units = np.flatnonzero(which)
        if len(units):
            units = units[np.lexsort((key[units], self._peers[units]))][::way]
            total = np.cumsum(self.share[units])
            first = np.append(True, np.diff(self._peers[units]) != 0)
            before = (total - self.share[units])[first]
            held[units] = total - before[np.cumsum(first) - 1]
        return held


# A group is worth what it computes and holds, not the time that this takes on some device: otherwise the slowest groups
# would be worth most, and the cost of their units would cancel. By MACs alone, the late layers of convolutional
# networks would be removed: they have few MACs, but their weights take long to load from memory.
WORTH_BY = {"latency": ("macs", "params")}


def costs(model: CostModel, keep: BoolArray, measures: Collection[str]) -> dict[str, float]:
    """The cost of ``keep`` [num_units] in each of ``measures``: fields of `Cost`, or ``units``."""
    alive = model.counts(keep.astype(np.float64))
    return {
        measure: float(keep.sum()) if measure == "units" else float(round(model.terms(measure).total(alive)))
        for measure in measures
    }


def prices(model: CostModel, keep: BoolArray, measures: Collection[str]) -> dict[str, FloatArray]:
    """The cost of each unit alone beside ``keep``, [num_units] per measure; never above the cost of its return."""
    gates = keep.astype(np.float64)
    return {measure: np.ones(len(keep)) if measure == "units" else model.price(gates, measure) for measure in measures}


def mixed(price: Mapping[str, FloatArray], dense: Mapping[str, float], weight: Mapping[str, float]) -> FloatArray:
    """One price from the prices of several measures: a weighted sum of fractions of the dense cost, [num_units], all
    above 0 (and equal if no unit alone saves anything)."""
    total = np.zeros(len(next(iter(price.values()))))
    for measure, factor in weight.items():
        total += factor / dense[measure] * price[measure] / dense[measure]
    most = float(total.max(initial=0.0))
    return np.asarray(total.clip(min=1e-9 * most), np.float64) if most > 0 else np.ones_like(total)


def worth_weight(weight: Mapping[str, float], dense: Mapping[str, float]) -> dict[str, float]:
    """``weight`` of measures, in amounts, with measures that do not define worth replaced by others in equal parts
    (`WORTH_BY`)."""
    found: dict[str, float] = {}
    for measure, factor in weight.items():
        others = [other for other in WORTH_BY.get(measure, ()) if dense[other] > 0] or [measure]
        for other in others:
            part = factor if other == measure else factor / dense[measure] * dense[other] / len(others)
            found[other] = found.get(other, 0.0) + part
    return found
