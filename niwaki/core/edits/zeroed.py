"""Which entries of a network a method has set to zero, as part of the plan that it makes: no change, but a record."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import numpy as np
from numpy.typing import NDArray

from niwaki.core.edits.base import Edit, Place, edited_by_hand, register_edit
from niwaki.core.positions import Positions, whole_number

if TYPE_CHECKING:
    from niwaki.core.plan import Plan
    from niwaki.core.space import SearchSpace


@final
@register_edit
@dataclass(frozen=True, slots=True)
class Zeroed(Edit):
    """Positions at which all entries are zero in the model that a method trained; `niwaki.cut` warns where they are not
    zero in the weights it is given.

    ``dims``: the dimensions of tensors that share them, as (tensor, dimension). ``units``: for each position, the
    number of a removed unit that it belongs to, counted through all groups of the plan.
    """

    kind: ClassVar[str] = "zeroed by method"

    dims: tuple[tuple[str, int], ...]
    positions: Sequence[int]
    units: Sequence[int]

    @property
    def place(self) -> Place:
        return "zeroed by method", self.dims

    def check(self, plan: Plan) -> None:
        for name, dim in self.dims:
            if dim not in plan.change_of(name).dims or self.positions[-1] >= plan.dense[name][dim]:
                raise edited_by_hand(f"calls positions in dimension {dim} of {name!r} zero, and does not remove them")

    @classmethod
    def then(cls, first: Self | None, later: Self | None) -> Self | None:
        """None: those of the later plan are numbered in the smaller network, and the first plan was carried out."""
        return None

    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        """What of ``whole`` has not left, in the positions and units of the smaller network."""
        if whole is None:
            return None
        groups = [Positions.of(done.kept.get(name, range(units))).array for name, units in plan.units.items()]
        firsts = np.cumsum([0, *plan.units.values()])[:-1]
        units_here = np.concatenate([first + here for first, here in zip(firsts, groups, strict=True)])
        name, dim = whole.dims[0]
        positions, units = np.asarray(whole.positions), np.asarray(whole.units)
        here = done.tensors.get(name, {}).get(dim)
        stays = np.ones(len(positions), dtype=bool) if here is None else np.isin(positions, np.asarray(here))
        if not stays.any():
            return None
        now = positions[stays] if here is None else np.searchsorted(np.asarray(here), positions[stays])
        return cls(whole.dims, Positions(now), Positions(np.searchsorted(units_here, units[stays])))

    def renamed(self, name: Callable[[str], str | None]) -> Self | None:
        dims = tuple((new, dim) for tensor, dim in self.dims if (new := name(tensor)) is not None)
        return replace(self, dims=dims) if dims else None

    def to_data(self) -> dict[str, Any]:
        return {"dims": [list(dim) for dim in self.dims], "positions": list(self.positions), "units": list(self.units)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        dims = tuple((str(tensor), whole_number(dim)) for tensor, dim in data["dims"])
        positions, units = (Positions.from_json(data[key]) for key in ("positions", "units"))
        if not dims or not len(positions) == len(units) > 0 or not positions.ascending:
            raise ValueError("what a method has set to zero does not belong together")
        return cls(dims, positions, units)

    def __str__(self) -> str:
        more = f" and {len(self.dims) - 1} more" if len(self.dims) > 1 else ""
        return f"{len(self.positions)} positions of {self.dims[0][0]} dim {self.dims[0][1]}{more}"


def zeroed_by_method(
    space: SearchSpace, zero: NDArray[np.bool_], cut: Container[tuple[str, int]] | None = None
) -> tuple[Zeroed, ...]:
    """The entries that a method sets to zero with the units ``zero`` [num_units]: all that compute these units, and the
    entries that read them where zeros do not remain zeros on the way. ``cut``: of these dimensions of tensors only,
    since others may have vanished with a structure around."""
    gone = np.append(zero, False)
    found: dict[int, tuple[Positions, Positions, list[tuple[str, int]]]] = {}
    for place in space.dims:
        if not (place.parameter and place.role.zeroed_by_method):
            continue
        if cut is not None and (place.tensor, place.dim) not in cut:
            continue
        if id(place.units) not in found:  # tied dimensions share their units
            owned = gone[place.units]
            rows = np.flatnonzero(owned.any(axis=1))
            units = place.units[rows, owned[rows].argmax(axis=1)] if len(rows) else rows
            found[id(place.units)] = Positions(rows), Positions(units), []
        found[id(place.units)][2].append((place.tensor, place.dim))
    return tuple(Zeroed(tuple(dims), rows, units) for rows, units, dims in found.values() if len(rows))
