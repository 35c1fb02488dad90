"""Which entries of a network a method has set to zero, as part of the plan that it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from niwaki.core.positions import Positions

if TYPE_CHECKING:
    from niwaki.core.space import SearchSpace


@dataclass(frozen=True, slots=True)
class Zeroed:
    """Positions at which all entries are zero in the model that a method trained.

    ``dims``: the dimensions of tensors that share them, as (tensor, dimension). ``units``: for each position, the
    number of a removed unit that it belongs to, counted through all groups of the plan.
    """

    dims: tuple[tuple[str, int], ...]
    positions: Sequence[int]
    units: Sequence[int]

    @property
    def data(self) -> dict[str, Any]:
        """As plain data; `of_data` reads it back."""
        return {"dims": [list(dim) for dim in self.dims], "positions": list(self.positions), "units": list(self.units)}

    @classmethod
    def of_data(cls, data: Mapping[str, Any]) -> Zeroed:
        """What `data` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        dims = tuple((str(tensor), int(dim)) for tensor, dim in data["dims"])
        positions, units = (Positions(map(int, data[key])) for key in ("positions", "units"))
        if not dims or not len(positions) == len(units) > 0 or not positions.ascending:
            raise ValueError("what a method has set to zero does not belong together")
        return cls(dims, positions, units)


def zeroed_by_method(space: SearchSpace, zero: NDArray[np.bool_]) -> tuple[Zeroed, ...]:
    """The entries that a method sets to zero with the units ``zero`` [num_units]: all that compute these units, and the
    entries that read them where zeros do not remain zeros on the way."""
    gone = np.append(zero, False)
    found: dict[int, tuple[Positions, Positions, list[tuple[str, int]]]] = {}
    for place in space.dims:
        if not (place.parameter and place.role.zeroed_by_method):
            continue
        if id(place.units) not in found:  # tied dimensions share their units
            owned = gone[place.units]
            rows = np.flatnonzero(owned.any(axis=1))
            units = place.units[rows, owned[rows].argmax(axis=1)] if len(rows) else rows
            found[id(place.units)] = Positions(rows), Positions(units), []
        found[id(place.units)][2].append((place.tensor, place.dim))
    return tuple(Zeroed(tuple(dims), rows, units) for rows, units, dims in found.values() if len(rows))
