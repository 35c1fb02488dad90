"""What dies with a structure: parameters that nothing reads any more without it, and units that they make."""

from __future__ import annotations

import math
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


def uses_of_weights(space: SearchSpace) -> dict[str, float]:
    """How often an input is multiplied by each entry of the parameters that die with structures, over the mean of all
    these entries, by name. 1 where no operator multiplies by them (norms, biases), or none is known.

    An entry of a kernel is used at every position of a picture, those of early layers more often than those of late
    ones; entries of linear layers are used once for each token.
    """
    model, dying = space.cost_model, dying_parameters(space)
    entries = {shape.name: math.prod(shape.shape) for shape in space.shapes}
    each = model.macs.each(model.counts(np.ones(space.num_units)))
    macs = {name: float(each[list(model.macs_of[name])].sum()) for name in dying if name in model.macs_of}
    usual = sum(macs.values()) / max(sum(entries[name] for name in macs), 1)
    found = {name: total / (entries[name] * usual) for name, total in macs.items() if total and entries[name]}
    return {name: found.get(name, 1.0) for name in dying}


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
