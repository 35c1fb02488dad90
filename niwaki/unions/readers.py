"""What a branch reads of a stream: some channels, the same for all of its layers that read the stream."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from niwaki.core.counts import IntArray
from niwaki.core.space import SearchSpace
from niwaki.core.tensor_dims import TensorDim

DIMS: Mapping[type[nn.Module], int] = {nn.Linear: -1, nn.Conv1d: -2, nn.Conv2d: -3, nn.Conv3d: -4}


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """The layers of a branch that read a stream, each with the dimension of what it is given that has the channels.

    ``name``: of the branch; ``group``: the number of the group of the stream's channels; ``units`` [channels]: the unit
    of each channel; ``dims``: the dimensions of the layers' weights with these channels."""

    name: str
    group: int
    layers: tuple[tuple[str, int], ...]
    units: IntArray
    dims: tuple[TensorDim, ...]


def readers_of(
    space: SearchSpace,
    branches: Sequence[tuple[str, int]],
    modules: Mapping[str, nn.Module],
    others: Collection[str],
) -> tuple[Reader, ...]:
    """Those of ``branches``, each a name and the number of the group of its stream. A layer belongs to the smallest
    branch that it dies with. ``others``: the weights that cannot be of one: those of writers, and shared ones."""
    sizes = {structure.name: len(structure.parameters) for structure in space.structures}
    own = {structure.name: frozenset(structure.parameters) for structure in space.structures}
    candidates = {
        place.tensor: place
        for place in space.dims
        if place.dim == 1 and place.role.consumes and place.parameter and place.tensor not in others
    }
    taken: set[str] = set()
    found = {}
    for name, group in sorted(branches, key=lambda branch: sizes[branch[0]]):
        layers: list[tuple[str, IntArray, TensorDim]] = []
        for tensor, place in candidates.items():
            units = _channels(space, group, place)
            path, _, leaf = tensor.rpartition(".")
            layer = modules.get(path)
            fits = leaf == "weight" and type(layer) in DIMS and getattr(layer, "groups", 1) == 1 and tensor in own[name]
            if not fits or units is None or tensor in taken or _watched(modules[path]):
                continue
            if layers and not np.array_equal(layers[0][1], units):
                continue  # the same channels in another order
            layers.append((path, units, place))
            taken.add(tensor)
        if layers:
            found[name] = Reader(
                name,
                group,
                tuple((path, DIMS[type(modules[path])]) for path, _, _ in layers),
                layers[0][1],
                tuple(place for _, _, place in layers),
            )
    return tuple(found[name] for name, _ in branches if name in found)


def _watched(module: nn.Module) -> bool:
    """Whether hooks would see other channels."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _channels(space: SearchSpace, group: int, place: TensorDim) -> IntArray | None:
    """The unit of each position, if each is one channel of the group and no channel comes twice."""
    one = space.groups[group]
    inside = (place.units >= one.first) & (place.units < one.first + one.units)
    alone = place.units == space.num_units
    if not bool((inside.sum(axis=1) == 1).all()) or not bool((inside | alone).all()):
        return None
    units: IntArray = np.where(inside, place.units, -1).max(axis=1)
    return units if len(np.unique(units)) == len(units) else None
