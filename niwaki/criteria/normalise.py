"""The units among which each unit is compared, and saliencies of different criteria or layers on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from niwaki.core.counts import FloatArray, IntArray
from niwaki.core.isomorphic import classes_of, group_of, peer_groups
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import MethodError, NiwakiError

Compare = Literal["group", "layer", "isomorphic", "space"]
COMPARE: tuple[Compare, ...] = ("group", "layer", "isomorphic", "space")


def check_compare(value: object, allowed: Sequence[Compare] = COMPARE, error: type[NiwakiError] = MethodError) -> None:
    """Raise an ``error`` that says what ``value`` may be, unless it is one of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise error(
            f"compare={value!r} must be one of {', '.join(map(repr, allowed))}: it says with which others each unit is "
            "compared."
        )


def peers_of(space: SearchSpace, compare: Compare) -> IntArray:
    """The number of the set of units within which each unit is compared, [num_units]. Scores that were taken layer by
    layer are compared within the group. Structures are one set, however other units are compared."""
    if compare == "space":
        return np.zeros(space.num_units, np.int64)
    if compare != "isomorphic":
        return peer_groups(space)
    classes, whole = classes_of(space), np.array([group.structure is not None for group in space.groups], dtype=bool)
    return np.where(whole, len(classes), classes)[group_of(space)]


def normalise(space: SearchSpace, values: FloatArray, keep: BoolArray, compare: Compare = "group") -> FloatArray:
    """``values`` [num_units] over their mean among the units of ``keep``: of each group, of each class of isomorphic
    groups, or of the whole space.

    Values that are all zero remain zero. If some are negative, as only functions of the user return, they count from
    the lowest of ``keep``: a mean near zero is no measure of their scale. With a global mean, layers of different scale
    cannot be compared (a network can lose a whole layer), so ``group`` is the default.
    """
    where = peers_of(space, compare)
    values = values - min(0.0, float(values[keep].min(initial=0.0)))
    kinds = int(where.max(initial=-1)) + 1
    total = np.bincount(where, weights=np.where(keep, values, 0.0), minlength=kinds)
    mean = total / np.maximum(np.bincount(where, weights=keep, minlength=kinds), 1)
    return values / np.where(mean > 0, mean, 1.0)[where]
