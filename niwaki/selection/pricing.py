"""What a choice costs, and what each unit in it does."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from niwaki.core.cost import CostModel
from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray

# What a group is worth goes with what it computes and what it holds, and not with the time that this takes somewhere:
# else the slowest groups were worth most, and what their units cost would cancel. MACs alone would give away the late
# layers of convolutional networks, which have few MACs, and whose weights take long to come from memory.
WORTH_BY = {"latency": ("macs", "params")}


def costs(model: CostModel, keep: BoolArray, measures: Collection[str]) -> dict[str, float]:
    """The cost of ``keep`` [num_units] in each of ``measures``: fields of `Cost`, or ``units``."""
    alive = model.counts(keep.astype(np.float64))
    return {
        measure: float(keep.sum()) if measure == "units" else float(round(model.terms(measure).total(alive)))
        for measure in measures
    }


def prices(model: CostModel, keep: BoolArray, measures: Collection[str]) -> dict[str, FloatArray]:
    """What each unit alone costs beside ``keep``, [num_units] per measure; never more than its return would cost."""
    gates = keep.astype(np.float64)
    return {measure: np.ones(len(keep)) if measure == "units" else model.price(gates, measure) for measure in measures}


def mixed(price: Mapping[str, FloatArray], dense: Mapping[str, float], weight: Mapping[str, float]) -> FloatArray:
    """One price from those of several measures, as a weighted sum of shares of the dense cost, [num_units], all above 0
    (and equal, where no unit alone saves anything)."""
    total = np.zeros(len(next(iter(price.values()))))
    for measure, factor in weight.items():
        total += factor / dense[measure] * price[measure] / dense[measure]
    most = float(total.max(initial=0.0))
    return np.asarray(total.clip(min=1e-9 * most), np.float64) if most > 0 else np.ones_like(total)


def worth_weight(weight: Mapping[str, float], dense: Mapping[str, float]) -> dict[str, float]:
    """``weight`` of measures, in amounts, with those that say nothing of worth replaced by others (`WORTH_BY`), which
    have equal parts."""
    found: dict[str, float] = {}
    for measure, factor in weight.items():
        others = [other for other in WORTH_BY.get(measure, ()) if dense[other] > 0] or [measure]
        for other in others:
            part = factor if other == measure else factor / dense[measure] * dense[other] / len(others)
            found[other] = found.get(other, 0.0) + part
    return found
