"""Sums over units without a loop over units: every unit is a segment of rows of the parameters.

A row is one position of one dimension that produces units, with all entries behind it (a filter of a convolution, a
scale of a norm). A sum over a unit is the sum of its rows; rows of several units count for each of them. A structure is
made of all rows of all parameters that die with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.counts import IntArray
from niwaki.core.dying import dying_parameters
from niwaki.core.names import named_parameters
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError


def as_real(x: Tensor) -> Tensor:
    """Complex numbers as two real ones each, along one more dimension at the end: torch's optimizers step these, and
    norms and products of directions are theirs. Real tensors as they are."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def unit_parameters(space: SearchSpace) -> dict[str, torch.nn.Parameter]:
    """The parameters that methods and criteria touch, by name: those with a producing or a driven dimension.

    Raises:
        MethodError: the model has been shrunk since the space was found, whose positions would mean others now.
    """
    return _unchanged(space, {place.tensor for place in space.dims if place.parameter and place.role.zeroed_by_method})


def scored_parameters(space: SearchSpace, readers: bool = False) -> dict[str, torch.nn.Parameter]:
    """The same, and those that die with structures without being of any unit themselves; with ``readers`` those that
    read units, too.

    Raises:
        MethodError: the model has been shrunk since.
    """
    found = unit_parameters(space)
    if readers:
        found |= _unchanged(space, {place.tensor for place in space.dims if place.parameter and place.role.consumes})
    dying = _unchanged(space, dying_parameters(space))
    return found | {name: p for name, p in dying.items() if p.is_floating_point() or p.is_complex()}


def trained(parameters: Mapping[str, torch.nn.Parameter], optimizer: Optimizer) -> dict[str, torch.nn.Parameter]:
    """Those of ``parameters`` that ``optimizer`` holds: what it does not hold has no direction."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in held}


def _unchanged(space: SearchSpace, names: Collection[str]) -> dict[str, torch.nn.Parameter]:
    expected = {shape.name: shape.shape for shape in space.shapes}
    found = {name: value for name, value in named_parameters(space.model) if name in names}
    for name, value in found.items():
        if tuple(value.shape) != expected[name]:
            raise MethodError(
                f"The model has changed since this search space was found: {name!r} had the shape "
                f"{list(expected[name])} and has {list(value.shape)}. If it was shrunk, take the space of what is "
                "left, niwaki.reindex(space, plan), or analyse the model anew with niwaki.search_space."
            )
    return found


@dataclass(frozen=True, slots=True)
class Bundle:
    """Parameters that are reduced together: one tensor with its producing dimensions, or many vectors in a row."""

    names: tuple[str, ...]
    dims: tuple[int, ...]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensor of a bundle of one, or all vectors as one."""
        return tensors[0] if len(tensors) == 1 else torch.cat(tuple(tensors))


@dataclass(frozen=True, slots=True, eq=False)
class UnitIndex:
    """Which rows make up which unit.

    ``bundles`` in the order of the rows; for each bundle the rows of its first dimension, then of its second, ... Pair
    i says that row ``row[i]`` belongs to unit ``unit[i]``. ``entries`` [num_units]: the number of weights |x_g| of
    each unit.
    """

    num_units: int
    bundles: tuple[Bundle, ...]
    row: Tensor  # [pairs] int64
    unit: Tensor  # [pairs] int64
    entries: Tensor  # [num_units]

    @classmethod
    def of(cls, space: SearchSpace, parameters: Mapping[str, Tensor], readers: bool = False) -> UnitIndex:
        """The index of all producing dimensions of the parameters of ``space``, and of all that die with structures
        and are among ``parameters``; with ``readers`` of all dimensions that read units, too."""
        by_tensor = _rows_of(space, parameters, readers)
        vectors: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        bundles: list[Bundle] = []
        for name, places in by_tensor.items():
            value = parameters[name]
            if value.dim() == 1:
                vectors.setdefault((value.device, value.dtype), []).append(name)
            else:
                bundles.append(Bundle((name,), tuple(dim for dim, _ in places)))
        bundles += [Bundle(tuple(names), (0,)) for names in vectors.values()]

        sentinel, first = space.num_units, 0
        rows, units, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
        for bundle in bundles:
            for name in bundle.names:
                for _, owners in by_tensor[name]:
                    position, column = np.nonzero(owners < sentinel)
                    rows.append(first + position)
                    units.append(owners[position, column])
                    sizes.append(np.full(len(position), parameters[name].numel() / len(owners)))
                    first += len(owners)
        unit = np.concatenate(units)
        entries = np.bincount(unit, weights=np.concatenate(sizes), minlength=sentinel)
        device, dtype = _home(parameters.values())
        return cls(
            num_units=sentinel,
            bundles=tuple(bundles),
            row=torch.from_numpy(np.concatenate(rows)).to(device),
            unit=torch.from_numpy(unit).to(device),
            entries=torch.from_numpy(entries).to(device, dtype),
        )

    def total(self, rows: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """Sums per unit [num_units] of row quantities, each given bundle by bundle, dimension by dimension."""
        if not rows:
            return {}
        home = self.entries
        table = torch.stack([torch.cat([part.to(home) for part in parts]) for parts in rows.values()])  # [S, rows]
        sums = table.new_zeros(len(rows), self.num_units)
        sums.index_add_(1, self.unit, table.index_select(1, self.row))
        return dict(zip(rows, sums, strict=True))


def _rows_of(
    space: SearchSpace, parameters: Mapping[str, Tensor], readers: bool
) -> dict[str, list[tuple[int, IntArray]]]:
    """The dimensions of each parameter that sums are taken behind, each with the units [n, K] of its positions. All
    rows of one dimension of a parameter that dies with a structure are that structure's, once."""
    found: dict[str, list[tuple[int, IntArray]]] = {}
    for place in space.dims:
        if place.parameter and (place.role.produces or (readers and place.role.consumes)):
            found.setdefault(place.tensor, []).append((place.dim, place.units))
    for name, owners in dying_parameters(space).items():
        if name in parameters:
            places = found.get(name, [(0, np.empty((len(parameters[name]), 0), np.int64))])
            others = [(dim, np.where(np.isin(units, owners), space.num_units, units)) for dim, units in places]
            dim, units = others[0]
            others[0] = dim, np.column_stack([units, np.tile(np.array(owners, np.int64), (len(units), 1))])
            found[name] = others
    return found


def _home(parameters: Iterable[Tensor]) -> tuple[torch.device, torch.dtype]:
    """Where sums over units are kept: on the first parameter's device, in float32 or the widest type there is (of
    complex numbers, that of their parts)."""
    device, dtype = torch.device("cpu"), torch.float32
    for place, value in enumerate(parameters):
        device = value.device if place == 0 else device
        dtype = torch.promote_types(dtype, value.dtype.to_real())
    return device, dtype
