"""What terms without parameters are worth: as much as structures of weights that have the same effect on the loss.

A pooled picture or a shortcut has a gate, a number of value 1, and so an effect of first and of second order on the
loss, as weights have (``taylor1``, ``taylor2``). Other criteria look at weights, of which it has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.dying import structure_units
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.registry import Criterion

EFFECTS = ("taylor1", "taylor2")


def terms_worth(
    space: SearchSpace, rows: FloatArray, criteria: Sequence[Criterion], gated: BoolArray, keep: BoolArray
) -> FloatArray:
    """``rows`` [criteria, num_units], those of `EFFECTS` among them, with values of all criteria for the units
    ``gated``, which nothing but a gate makes. Criteria of the gradient have their own. ``keep``: what is compared."""
    names = [one.name for one in criteria]
    effects = rows[[names.index(name) for name in EFFECTS]]
    return np.stack(
        [
            row if one.knows_terms else worth_by_effect(space, row, effects, gated, keep)
            for row, one in zip(rows, criteria, strict=True)
        ]
    )


def worth_by_effect(
    space: SearchSpace, values: FloatArray, effects: FloatArray, gated: BoolArray, keep: BoolArray
) -> FloatArray:
    """``values`` [num_units] where the units ``gated`` have the mean of the structures of ``keep`` that weights make,
    times their own effect over the mean effect of these: the mean of that over the rows of ``effects`` [2, num_units].
    Where no structure is made of weights, the mean is 1, and that of the gates themselves."""
    whole = np.isin(np.arange(space.num_units), list(structure_units(space).values())) & keep
    others = whole & ~gated
    usual = float(values[others].mean()) if others.any() else 1.0
    peers = others if others.any() else whole
    mean = effects[:, peers].mean(axis=1, keepdims=True) if peers.any() else np.ones((len(effects), 1))
    share = (effects / np.where(mean > 0, mean, 1.0)).mean(axis=0)
    return np.where(gated, usual * share, values)
