"""From the units that stay to a plan: positions of tensors, numbers in Python, repairs, and what vanishes whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from niwaki.core.counts import BoolArray
from niwaki.core.edits import Edit, Keep, KeepDirection, SetAttribute
from niwaki.core.edits.numbers import derived_attributes
from niwaki.core.plan import Plan
from niwaki.core.positions import Positions
from niwaki.core.tensor_dims import Role, TensorDim
from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.space import SearchSpace


def planned(space: SearchSpace, keep: BoolArray, provenance: Mapping[str, Any] | None = None) -> Plan:
    """As `SearchSpace.plan`."""
    keep = np.array(keep, dtype=bool)
    if keep.shape != (space.num_units,):
        raise PlanError(f"keep must be a mask of {space.num_units} units, but has the shape {keep.shape}.")
    erased = _Erased.of(space, keep)
    for group in space.groups:
        if group.structure is None and group.first not in erased.groups and not keep[group.numbers].any():
            raise PlanError(
                f"The plan would remove all {group.units} units of the group {group.name!r}, and the network "
                "with them. Keep at least one unit of every group."
            )
    keeps = _kept(space.dims, erased)
    counts = space.cost_model.counts(erased.solvable.astype(np.float64))
    values, failing = space.numbers.solve(counts)
    if failing:
        equation = space.numbers.equations[failing[0]]
        raise PlanError(
            f"This choice of units cannot be built: {equation.what} needs {equation.expression} to follow the cut, "
            f"at {equation.location}, and no value of the attributes does. Choose other units, or pin that "
            "parameter with `ignored`."
        )
    edits = [
        SetAttribute(attribute.module, attribute.name, attribute.where, value)
        for attribute, value in values.items()
        if value != attribute.value
    ]
    lengths = {key: len(one.kept) for key, one in keeps.items() if key[0] not in erased.tensors}
    edits += derived_attributes(space.model, lengths, edits)
    repairs, scalars = space.repairs.solve(counts)
    repairs = [repair for repair in repairs if repair.tensor not in erased.tensors]
    return Plan(
        kept={g.name: Positions(np.flatnonzero(erased.keep[g.numbers])) for g in space.groups},
        units={g.name: g.units for g in space.groups},
        shapes=space.shapes,
        edits=(*keeps.values(), *repairs, *erased.edits, *edits, *scalars),
        provenance=dict(provenance or {}),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Erased:
    """What goes with the structures that a choice erases.

    ``keep`` [num_units]: the units that stay, without those inside of what is erased. ``solvable`` [num_units]: the
    same, but with the dense network inside of it: code that nobody runs any more must not stop any number from
    following. ``outermost`` [num_units + 1]: everything but the structures that are erased, and are in no other that
    is. ``tensors``: those that vanish; ``groups``: the first units of groups that do; ``edits``: what the cut does.
    """

    keep: BoolArray
    solvable: BoolArray
    outermost: BoolArray
    tensors: frozenset[str] = frozenset()
    groups: frozenset[int] = frozenset()
    edits: tuple[Edit, ...] = ()

    @classmethod
    def of(cls, space: SearchSpace, keep: BoolArray) -> _Erased:
        """What ``keep`` erases.

        Raises:
            PlanError: these structures cannot be erased together.
        """
        outermost = np.ones(space.num_units + 1, dtype=bool)
        units = {group.structure: group.first for group in space.groups if group.structure is not None}
        asked = [number for number, unit in units.items() if not keep[unit]]
        if not asked or space.erasures is None:
            return cls(keep, keep, outermost)
        numbers = [number for number in asked if set(space.erasures.around(number)[1:]).isdisjoint(asked)]
        why = space.erasures.why_not(numbers)
        if why is not None:
            raise PlanError(why)
        outermost[[units[number] for number in numbers]] = False
        tensors = space.erasures.gone(numbers)
        gone = [
            number
            for number, group in enumerate(space.groups)
            if group.structure is None and all(piece.tensor in tensors for piece in group.slices)
        ]
        keep, solvable = keep.copy(), keep.copy()
        for number, unit in units.items():
            if not set(space.erasures.around(number)).isdisjoint(numbers):
                keep[unit] = False
                solvable[unit] = outermost[unit]
        for number in gone:
            keep[space.groups[number].numbers] = False
        _make_solvable(space, solvable, gone)
        first = frozenset(space.groups[number].first for number in gone)
        return cls(keep, solvable, outermost, tensors, first, space.erasures.edits(numbers))


def _make_solvable(space: SearchSpace, keep: BoolArray, gone: Sequence[int]) -> None:
    """Let groups that are ``gone`` keep all of their units, or as many as the ties to those that live want."""
    for number in gone:
        keep[space.groups[number].numbers] = True
    for tie in space.ties:
        living = [(space.groups[g], step) for g, step in zip(tie.groups, tie.steps, strict=True) if g not in gone]
        if living and len(living) < len(tie.groups):
            group, step = living[0]
            times = (group.units - int(keep[group.numbers].sum())) // step
            for number, step in zip(tie.groups, tie.steps, strict=True):
                if number in gone:
                    group = space.groups[number]
                    keep[group.first + group.units - step * times : group.first + group.units] = False


def _kept(dims: Sequence[TensorDim], erased: _Erased) -> dict[tuple[str, int], Keep | KeepDirection]:
    """What stays of each dimension; of tensors that vanish, nothing of those that make what is erased, which are zero
    in the zeroed network, and the others as they are."""
    alive = np.append(erased.keep, True)
    keeps: dict[tuple[str, int], Keep | KeepDirection] = {}
    left: dict[tuple[int, bool], Positions | None] = {}  # by the identity of the array, which tied dimensions share
    for place in dims:
        vanishes = place.tensor in erased.tensors
        key = id(place.units), vanishes
        if key not in left:
            stays = (erased.outermost if vanishes else alive)[place.units].all(axis=1)
            left[key] = None if stays.all() else Positions(np.flatnonzero(stays))
        positions = left[key]
        if positions is None:
            continue
        here = keeps.get((place.tensor, place.dim))
        if here is not None:  # units of a group, and a structure
            positions = Positions(np.intersect1d(np.asarray(here.kept), np.asarray(positions)))
        kind = KeepDirection if place.role is Role.DIRECTION else Keep
        keeps[place.tensor, place.dim] = kind(place.tensor, place.dim, positions)
    return keeps
