"""Saliencies of different criteria, or of different layers, on one scale."""

from __future__ import annotations

from typing import Literal

import numpy as np

from niwaki.core.counts import FloatArray, IntArray
from niwaki.core.isomorphic import classes_of, group_of
from niwaki.core.space import BoolArray, SearchSpace

Among = Literal["group", "isomorphic", "space"]
AMONG: tuple[Among, ...] = ("group", "isomorphic", "space")


def peers_of(space: SearchSpace, among: Among) -> IntArray:
    """The number of the set of units within which each unit is compared, [num_units]."""
    if among == "space":
        return np.zeros(space.num_units, np.int64)
    groups = group_of(space)
    return groups if among == "group" else classes_of(space)[groups]


def normalise(space: SearchSpace, values: FloatArray, keep: BoolArray, among: Among = "group") -> FloatArray:
    """``values`` [num_units] over their mean among the units of ``keep``: of each group, of each class of isomorphic
    groups, or of the whole space.

    Where the values are all zero they stay zero. Negative ones, which only functions of the user's return, count from
    the lowest of ``keep``: a mean near zero would say nothing of their scale. Global means make layers of different
    scale incomparable (a network can lose a whole layer), therefore ``group`` is the default.
    """
    where = peers_of(space, among)
    values = values - min(0.0, float(values[keep].min(initial=0.0)))
    kinds = int(where.max(initial=-1)) + 1
    total = np.bincount(where, weights=np.where(keep, values, 0.0), minlength=kinds)
    mean = total / np.maximum(np.bincount(where, weights=keep, minlength=kinds), 1)
    return values / np.where(mean > 0, mean, 1.0)[where]
