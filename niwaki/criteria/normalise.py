"""Saliencies of different criteria, or of different layers, on one scale."""

from __future__ import annotations

from typing import Literal

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace

Among = Literal["group", "space"]


def group_of(space: SearchSpace) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The number of the group of each unit, [num_units]."""
    numbers = np.empty(space.num_units, np.int64)
    for number, group in enumerate(space.groups):
        numbers[group.numbers] = number
    return numbers


def normalise(space: SearchSpace, values: FloatArray, keep: BoolArray, among: Among = "group") -> FloatArray:
    """``values`` [num_units] over their mean among the units of ``keep``: of each group, or of the whole space.

    A group whose values are all zero stays zero. Global means make layers of different scale incomparable (a network
    can lose a whole layer), therefore ``group`` is the default.
    """
    where = group_of(space) if among == "group" else np.zeros(space.num_units, np.int64)
    kinds = len(space.groups) if among == "group" else 1
    total = np.bincount(where, weights=np.where(keep, values, 0.0), minlength=kinds)
    mean = total / np.maximum(np.bincount(where, weights=keep, minlength=kinds), 1)
    return values / np.where(mean > 0, mean, 1.0)[where]
