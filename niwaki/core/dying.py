"""What dies with a structure: parameters that nothing reads any more without it, and units that they make."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from niwaki.core.counts import IntArray
from niwaki.core.space import SearchSpace


def structure_units(space: SearchSpace) -> dict[int, int]:
    """The unit of every structure that is a group of ``space``, by the number of the structure."""
    return {group.structure: group.first for group in space.groups if group.structure is not None}


def dying_parameters(space: SearchSpace) -> dict[str, list[int]]:
    """The units of the structures that each parameter dies with as a whole, by its name: those of a branch inside of
    another belong to both. Parameters without dimensions are left out: no position of theirs could belong to a unit."""
    shaped = {shape.name for shape in space.shapes if shape.shape}
    found: dict[str, list[int]] = {}
    for number, unit in structure_units(space).items():
        for name in space.structures[number].parameters:
            if name in shaped:
                found.setdefault(name, []).append(unit)
    return found


def homes(space: SearchSpace, structures: Collection[int]) -> IntArray:
    """The number of the smallest of ``structures`` that each unit is inside of, [num_units]; -1 for units outside, and
    for structures themselves. A unit is inside where all that produces it dies with the structure."""
    found = np.full(space.num_units, -1)
    by_size = sorted(structures, key=lambda number: len(space.structures[number].parameters))
    owned = [(number, frozenset(space.structures[number].parameters)) for number in by_size]
    for group in space.width_groups:
        makers = {piece.tensor for piece in group.slices if piece.role.produces and piece.parameter}
        if makers:
            found[group.numbers] = next((number for number, names in owned if names >= makers), -1)
    return found
