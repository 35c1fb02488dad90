"""The group of each unit, and the classes of isomorphic groups: the same layers in the same arrangement
(arXiv:2407.04616)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np

from niwaki.core.counts import IntArray
from niwaki.core.names import named_modules
from niwaki.core.space import Group, SearchSpace


def group_of(space: SearchSpace) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The number of the group of each unit, [num_units]."""
    numbers = np.empty(space.num_units, np.int64)
    for number, group in enumerate(space.groups):
        numbers[group.numbers] = number
    return numbers


def peer_groups(space: SearchSpace) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The same, but all structures under one number: each is alone in its group, and they are compared together."""
    numbers = group_of(space)
    alone = [group.first for group in space.groups if group.structure is not None]
    numbers[alone] = len(space.width_groups)
    return numbers


def classes_of(space: SearchSpace) -> IntArray:
    """The number of the class of each group, [groups]; groups of one class are isomorphic.

    Two groups are isomorphic when their slices, in the order of the model's tensors, belong to modules of the same
    types, in the same parameters and dimensions of them, and have the same role in each (produced or consumed). The
    numbers of units and of positions per unit do not matter: the hidden layers of all blocks of a transformer are one
    class, and so are those of a convolutional network's stages, whatever their widths.
    """
    modules = dict(named_modules(space.model))
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(_signature(group, modules), len(known)) for group in space.groups], np.int64)


def _signature(group: Group, modules: Mapping[str, object]) -> Hashable:
    found = []
    owners: dict[str, int] = {}
    for piece in group.slices:
        owner, _, own = piece.tensor.rpartition(".")
        number = owners.setdefault(owner, len(owners))  # the slices that share a module
        found.append((number, type(modules.get(owner)), own, piece.dim, piece.role.produces, piece.parameter))
    return group.structure is not None, tuple(found)
