"""Units that have been set to zero and may return as they were: a copy of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from niwaki.core.space import BoolArray, SearchSpace
from niwaki.per_unit.index import unit_parameters


@final
class SetAside:
    """The weights that are zero in a unit that is set to zero, as they were when it was."""

    def __init__(self, space: SearchSpace) -> None:
        self._space, self._parameters = space, unit_parameters(space)
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def put(self, units: BoolArray) -> None:
        """Copy those of ``units`` [num_units], which are about to be set to zero."""
        for name, dim, rows in self._rows(units):
            weight = self._parameters[name].detach()
            kept = self._kept.setdefault(name, torch.zeros_like(weight))
            kept.index_copy_(dim, rows, weight.index_select(dim, rows))

    @torch.no_grad()
    def back(self, units: BoolArray) -> None:
        """Write those of ``units`` [num_units] into the model again. What other units that are at zero hold of the same
        positions is written as well, and has to be set to zero afterwards."""
        for name, dim, rows in self._rows(units):
            self._parameters[name].detach().index_copy_(dim, rows, self._kept[name].index_select(dim, rows))

    @property
    def empty(self) -> bool:
        """Whether nothing can return."""
        return not self._kept

    def drop(self) -> None:
        """Nothing will return."""
        self._kept = {}

    def state(self) -> dict[str, Any]:
        """The copies, by the names of the parameters."""
        return {name: value.clone() for name, value in self._kept.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._kept = {name: value.to(self._parameters[name]).clone() for name, value in state.items()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `ValueError` unless the copies are of this model's parameters."""
        for name, value in state.items():
            if name not in self._parameters or value.shape != self._parameters[name].shape:
                raise ValueError(f"its copy of {name!r} is of another network")

    def _rows(self, units: BoolArray) -> list[tuple[str, int, Tensor]]:
        """The positions of ``units`` in what a method sets to zero: parameter, dimension, positions."""
        inside, found = np.append(units, False), []
        for place in self._space.dims:
            if place.parameter and place.role.zeroed_by_method:
                rows = np.flatnonzero(inside[place.units].any(axis=1))
                if len(rows):
                    device = self._parameters[place.tensor].device
                    found.append((place.tensor, place.dim, torch.from_numpy(rows).to(device)))
        return found
