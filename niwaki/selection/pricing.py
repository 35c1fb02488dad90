"""What a choice costs, and what each unit in it does."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from niwaki.core.cost import CostModel
from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray


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
