"""What a choice costs, and what each unit in it does."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace


def costs(space: SearchSpace, keep: BoolArray, measures: Collection[str]) -> dict[str, float]:
    """The cost of ``keep`` in each of ``measures``: fields of `Cost`, or ``units``."""
    alive = space.cost_model.counts(keep.astype(np.float64))
    return {
        measure: float(keep.sum()) if measure == "units" else float(round(space.cost_model.terms(measure).total(alive)))
        for measure in measures
    }


def prices(space: SearchSpace, keep: BoolArray, measures: Collection[str]) -> dict[str, FloatArray]:
    """What each unit alone costs beside ``keep``, [num_units] per measure; never more than its return would cost."""
    gates = keep.astype(np.float64)
    return {
        measure: np.ones(space.num_units) if measure == "units" else space.cost_model.price(gates, measure)
        for measure in measures
    }
