"""The branches that write a residual stream, and which weights of theirs make or read which channel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from niwaki.core.counts import BoolArray, IntArray
from niwaki.core.names import named_modules, named_parameters
from niwaki.core.space import ChannelSpace, Group, SearchSpace, check_space
from niwaki.core.structures import Structure
from niwaki.core.tensor_dims import Role, TensorDim
from niwaki.errors import PlanError
from niwaki.unions.layers_behind import LayersBehind
from niwaki.unions.readers import DIMS, Reader, readers_of


@dataclass(frozen=True, slots=True, eq=False)
class Writer:
    """A branch that is added to a stream: its name, the number of the group of the stream's channels, its last layer,
    the dimension of that layer's result that has the channels, the unit [channels] of each (``num_units`` for one that
    always stays), and the dimensions of its tensors with these channels."""

    name: str
    group: int
    module: str
    dim: int
    units: IntArray
    dims: tuple[TensorDim, ...]


@dataclass(frozen=True, eq=False)
class Writers:
    """The writers of the streams of a search space, and why other branches are none, by their names. ``readers``: what
    the same branches read, if they choose that too, as in DISP-LLM (arXiv 2410.11988)."""

    space: SearchSpace
    writers: tuple[Writer, ...]
    refused: Mapping[str, str]
    readers: tuple[Reader, ...] = ()

    @classmethod
    def of(cls, space: SearchSpace, readers: bool = False) -> Writers:
        """Those of ``space``, made with ``niwaki.search_space(..., erase=True)``. With ``readers``, each branch chooses
        the channels that it reads, too.

        Raises:
            PlanError: the space knows of no branches.
        """
        check_space(space)
        if not isinstance(readers, bool):
            raise PlanError(f"readers={readers!r} must be True or False: whether branches choose what they read.")
        if space.erasures is None:
            raise PlanError(
                "Which branches are added to which stream is known of search spaces that were made with "
                "niwaki.search_space(..., erase=True)."
            )
        modules = dict(named_modules(space.model))
        names = Counter(id(p) for _, p in named_parameters(space.model, remove_duplicate=False))
        shared = {name for name, p in named_parameters(space.model) if names[id(p)] > 1}
        order = LayersBehind.of(space.erasures)
        found: list[Writer] = []
        refused: dict[str, str] = {}
        taken: set[str] = set()
        for structure in space.structures:
            made = _writer(space, structure, modules, shared | taken, order)
            if isinstance(made, str):
                refused[structure.name] = made
            else:
                found.append(made)
                taken |= {place.tensor for place in made.dims}
        branches = [(writer.name, writer.group) for writer in found] if readers else []
        return cls(space, tuple(found), refused, readers_of(space, branches, modules, shared | taken))

    @property
    def ends(self) -> tuple[Writer | Reader, ...]:
        """The writers, and the readers after them: what has channels of its own."""
        return (*self.writers, *self.readers)

    @cached_property
    def scored_space(self) -> SearchSpace:
        """The space in which the channels of each writer and reader are units of their own, after all others, one after
        the other: to be scored, and for nothing else. Units of streams are then what no writer of ``writers`` makes. A
        channel that is read is scored by the weights that read it."""
        space = self.space
        number, sentinel = space.num_units, space.num_units + sum(len(one.units) for one in self.ends)
        dims = {
            id(place): replace(place, units=np.where(place.units == number, sentinel, place.units))
            for place in space.dims
        }
        groups = list(space.groups)
        for end, name in zip(self.ends, self.names, strict=True):
            own = np.arange(number, number + len(end.units))
            for place in end.dims:
                role = Role.PRODUCER if isinstance(end, Reader) else place.role
                dims[id(place)] = replace(place, units=own[:, None], role=role)
            groups.append(Group(name, number, len(own), ()))
            number += len(own)
        old = space.cost_model.counts
        counts = replace(old, num_units=sentinel, units=np.where(old.units == old.num_units, sentinel, old.units))
        changed: dict[str, Any] = {
            "groups": tuple(groups),
            "dims": tuple(dims[id(place)] for place in space.dims),
            "cost_model": replace(space.cost_model, counts=counts),
        }
        return ChannelSpace(**{one.name: changed.get(one.name, getattr(space, one.name)) for one in fields(space)})

    @property
    def names(self) -> list[str]:
        """What the channels of each of `ends` are called."""
        return [f"{end.name} (read)" if isinstance(end, Reader) else end.name for end in self.ends]

    def split(self, values: Sequence[float] | np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """``values`` of the units of `scored_space`, as those of the units of the space, and of the channels of each of
        `ends`."""
        ends = np.cumsum([self.space.num_units, *(len(end.units) for end in self.ends)])
        first, *others = np.split(np.asarray(values), ends[:-1])
        return first, others

    def alone(self) -> BoolArray:
        """The units [num_units] of streams that writers alone make, so that they leave when no writer keeps them."""
        made = np.zeros(self.space.num_units + 1, dtype=bool)
        for writer in self.writers:
            made[writer.units] = True
        own = {id(place) for writer in self.writers for place in writer.dims}
        for place in self.space.dims:
            if place.role.produces and place.parameter and id(place) not in own:
                made[place.units.reshape(-1)] = False
        return made[:-1]


def _writer(
    space: SearchSpace,
    structure: Structure,
    modules: Mapping[str, nn.Module],
    taken: set[str],
    order: LayersBehind,
) -> Writer | str:
    """The writer that a structure is, or why it is none."""
    if structure.concatenated or structure.gated or structure.layer is not None or structure.router is not None:
        return "it is not added to a stream by weights alone"
    if structure.refused is not None:
        return structure.refused
    paths = {name.rpartition(".")[0] for name in structure.producers}
    if any(path not in modules for path in paths):
        return "weights that make it are of no module"
    # Norms in front of the layer have the channels of the stream, too. They do not make the term.
    behind = order.of_term(structure, modules)
    norms, layers = behind[:-1], behind[-1:]
    if not layers or type(modules[layers[0]]) not in DIMS or len(norms) > 1 or not paths >= {*behind}:
        return "several layers make it, or others than a linear layer or convolution and a BatchNorm"
    last = norms[0] if norms else layers[0]
    if modules[last]._forward_hooks or modules[last]._forward_pre_hooks:
        return f"hooks on {last!r} would see other channels"
    dims = tuple(
        place
        for place in space.dims
        if place.tensor.rpartition(".")[0] in behind and (place.dim == 0 or place.tensor.rpartition(".")[0] in norms)
    )
    weight = next((place for place in dims if place.tensor == f"{layers[0]}.weight"), None)
    if weight is None or any(place.tensor in taken for place in dims):
        return "its weights are pinned, or make another branch too"
    width = sum(group.units for group in space.width_groups)  # structures are the units after these

    def channels(place: TensorDim) -> IntArray | None:
        real = place.units < width
        return np.where(real, place.units, -1).max(axis=1) if bool((real.sum(axis=1) == 1).all()) else None

    units = channels(weight)
    if units is None:
        return "some of its channels always stay, or belong to several units"
    if not all((own := channels(place)) is not None and np.array_equal(units, own) for place in dims):
        return "its tensors do not have the channels of the stream one by one"
    group = next(n for n, one in enumerate(space.groups) if one.first <= units[0] < one.first + one.units)
    first, end = space.groups[group].first, space.groups[group].first + space.groups[group].units
    if not ((units >= first) & (units < end)).all() or len(np.unique(units)) != len(units):
        return "its channels are of several groups, or several of one unit"
    dim = 1 if norms else DIMS[type(modules[layers[0]])]
    return Writer(structure.name, group, last, dim, units, dims)
