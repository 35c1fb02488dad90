"""Units that have been set to zero and may return as they were: a copy of their weights and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from niwaki.core.names import named_buffers
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.per_unit.index import unit_parameters


@final
class SetAside:
    """What is zero in a unit that is set to zero, as it was when it was; and what norms had counted of it until then,
    since what they count afterwards is a unit of zeros."""

    def __init__(self, space: SearchSpace) -> None:
        self._space, self._parameters = space, unit_parameters(space)
        self._kept: dict[str, Tensor] | None = {}  # None once nothing will return

    @torch.no_grad()
    def put(self, units: BoolArray) -> None:
        """Copy that of ``units`` [num_units], which are about to be set to zero."""
        self._kept, tensors = self._kept or {}, self._tensors()
        for name, dim, rows in self._rows(units):
            own = tensors[name]
            kept, at = self._kept.setdefault(name, torch.zeros_like(own)), rows.to(own.device)
            kept.index_copy_(dim, at, own.index_select(dim, at))

    @torch.no_grad()
    def back(self, units: BoolArray) -> None:
        """Write that of ``units`` [num_units] into the model again. What other units that are at zero hold of the same
        positions is written as well, and has to be set to zero afterwards."""
        tensors = self._tensors()
        for name, dim, rows in self._rows(units):
            own, kept = tensors[name], (self._kept or {})[name].to(tensors[name])
            at = rows.to(own.device)
            own.index_copy_(dim, at, kept.index_select(dim, at))

    @property
    def dropped(self) -> bool:
        """Whether nothing can return any more."""
        return self._kept is None

    def drop(self) -> None:
        """Nothing will return."""
        self._kept = None

    def state(self) -> dict[str, Any] | None:
        """The copies, by the names of parameters and buffers; None once nothing will return."""
        return None if self._kept is None else {name: value.clone() for name, value in self._kept.items()}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Continue from `state`."""
        tensors = self._tensors()
        self._kept = None if state is None else {name: v.to(tensors[name]).clone() for name, v in state.items()}

    def check_state(self, state: Mapping[str, Any] | None, zero: BoolArray) -> None:
        """Raise `ValueError` unless the copies are of this model, and of all that is ``zero`` [num_units]."""
        if state is None:
            return
        tensors = self._tensors()
        for name, value in state.items():
            if name not in tensors or not isinstance(value, Tensor) or value.shape != tensors[name].shape:
                raise ValueError(f"its copy of {name!r} is of another network")
        lost = next((name for name, _, _ in self._rows(zero) if name not in state), None)
        if lost is not None:
            raise ValueError(f"it has units at zero that may return, and no copy of {lost!r}")

    def _tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers of units, as they are in the model now."""
        names = {place.tensor for place in self._space.dims if not place.parameter}
        found = {name: value for name, value in named_buffers(self._space.model) if name in names}
        return found | {name: value.detach() for name, value in self._parameters.items()}

    def _rows(self, units: BoolArray) -> list[tuple[str, int, Tensor]]:
        """The positions of ``units`` in what a method sets to zero, and in buffers: name, dimension, positions."""
        inside, found = np.append(units, False), []
        for place in self._space.dims:
            if place.role.zeroed_by_method or not place.parameter:
                rows = np.flatnonzero(inside[place.units].any(axis=1))
                if len(rows):
                    found.append((place.tensor, place.dim, torch.from_numpy(rows)))
        return found
