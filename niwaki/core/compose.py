"""Plans one after the other: what is still to do of a plan, and what two have done together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from niwaki.core.numbers import AttributeEdit
from niwaki.core.paths import Where
from niwaki.core.plan import Plan
from niwaki.core.positions import Positions
from niwaki.core.reindex import smaller_shapes
from niwaki.core.repairs import Repair
from niwaki.core.zeroed import Zeroed
from niwaki.errors import PlanError

_Tensors = dict[str, dict[int, Sequence[int]]]


def difference(done: Plan, plan: Plan) -> Plan:
    """What remains to be done of ``plan`` in a network that ``done`` has been carried out in; both were made for the
    same dense network.

    Raises:
        PlanError: the two are for different networks, or ``plan`` keeps what has left.
    """
    if done.shapes != plan.shapes:
        raise PlanError(
            "The plan is for another network than the one that this model was cut from. Make it from the search space "
            "of the dense network, or from that of the model as it is now."
        )
    sizes = {shape.name: shape.shape for shape in done.shapes}
    tensors: _Tensors = {}
    for name in {**done.tensors, **plan.tensors}:
        for dim in {**done.tensors.get(name, {}), **plan.tensors.get(name, {})}:
            everything = range(sizes[name][dim])
            here = np.asarray(done.tensors.get(name, {}).get(dim, everything))
            stays = np.asarray(plan.tensors.get(name, {}).get(dim, everything))
            found = np.searchsorted(here, stays).clip(max=len(here) - 1)
            if not np.array_equal(here[found], stays):
                lost = stays[here[found] != stays]
                raise PlanError(
                    f"The plan keeps {len(lost)} positions of {name!r} (dimension {dim}) that have left this model "
                    f"already, the first of them number {int(lost[0])}. What has left cannot come back: use a plan "
                    "that removes at least what the model was shrunk by."
                )
            if len(stays) < len(here):
                tensors.setdefault(name, {})[dim] = Positions(found)
    return Plan(
        kept={name: _relative(done.kept.get(name), kept) for name, kept in plan.kept.items()},
        units={name: len(done.kept.get(name, range(plan.units[name]))) for name in plan.kept},
        tensors=tensors,
        attributes=_edits_left(done, plan),
        shapes=smaller_shapes(done),
        provenance=plan.provenance,
        repairs=_repairs_left(done, plan),
        scalars=tuple(edit for edit in plan.scalars if edit not in done.scalars),
        directions=tuple((name, dim) for name, dim in plan.directions if dim in tensors.get(name, {})),
        zeroed_by_method=_zeroed_left(done, plan),
    )


def composed(done: Plan, plan: Plan) -> Plan:
    """The plan that does at once to the dense network what ``done`` did to it and ``plan`` then to the result."""
    sizes = {shape.name: shape.shape for shape in done.shapes}
    tensors: _Tensors = {}
    for name in {**done.tensors, **plan.tensors}:
        for dim in {**done.tensors.get(name, {}), **plan.tensors.get(name, {})}:
            here = np.asarray(done.tensors.get(name, {}).get(dim, range(sizes[name][dim])))
            stays = plan.tensors.get(name, {}).get(dim)
            tensors.setdefault(name, {})[dim] = Positions(here if stays is None else here[np.asarray(stays)])
    edits: dict[tuple[str, str, Where], AttributeEdit] = {
        (edit.module, edit.name, edit.where): edit for edit in (*done.attributes, *plan.attributes)
    }
    factors: dict[tuple[str, float], float] = {}
    for repair in (*done.repairs, *plan.repairs):
        factors[repair.tensor, repair.shift] = factors.get((repair.tensor, repair.shift), 1.0) * repair.factor
    scalars = {(edit.module, edit.name): edit for edit in (*done.scalars, *plan.scalars)}
    known = all(plan.units.get(name) == len(kept) for name, kept in done.kept.items())
    kept: Mapping[str, Sequence[int]] = (
        {name: Positions(np.asarray(done.kept[name])[np.asarray(plan.kept[name])]) for name in done.kept}
        if known
        else plan.kept
    )
    return replace(
        plan,
        kept=kept,
        units=done.units if known else plan.units,
        tensors=tensors,
        attributes=tuple(edits.values()),
        shapes=done.shapes,
        repairs=tuple(Repair(tensor, factor, shift) for (tensor, shift), factor in factors.items()),
        scalars=tuple(scalars.values()),
        directions=tuple(dict.fromkeys((*done.directions, *plan.directions))),
        zeroed_by_method=(),  # those of ``plan`` are numbered in the smaller network, and ``done`` has been carried out
    )


def _relative(here: Sequence[int] | None, kept: Sequence[int]) -> Positions:
    return Positions(kept) if here is None else Positions(np.searchsorted(np.asarray(here), np.asarray(kept)))


def _zeroed_left(done: Plan, plan: Plan) -> tuple[Zeroed, ...]:
    """What ``plan`` calls zero and ``done`` has not removed, in the positions and units of the smaller network."""
    if not plan.zeroed_by_method:
        return ()
    left = [Positions(done.kept.get(name, range(units))).array for name, units in plan.units.items()]
    firsts = np.cumsum([0, *plan.units.values()])[:-1]
    units_here = np.concatenate([first + here for first, here in zip(firsts, left, strict=True)])
    found = []
    for zeroed in plan.zeroed_by_method:
        name, dim = zeroed.dims[0]
        positions, units = np.asarray(zeroed.positions), np.asarray(zeroed.units)
        here = done.tensors.get(name, {}).get(dim)
        stays = np.ones(len(positions), dtype=bool) if here is None else np.isin(positions, np.asarray(here))
        if stays.any():
            now = positions[stays] if here is None else np.searchsorted(np.asarray(here), positions[stays])
            found.append(Zeroed(zeroed.dims, Positions(now), Positions(np.searchsorted(units_here, units[stays]))))
    return tuple(found)


def _edits_left(done: Plan, plan: Plan) -> tuple[AttributeEdit, ...]:
    """The numbers that are not yet what ``plan`` wants."""
    there = {(edit.module, edit.name, edit.where) for edit in plan.attributes}
    for edit in done.attributes:
        if (edit.module, edit.name, edit.where) not in there:
            raise PlanError(
                f"The plan leaves '{edit}' of the module {edit.module!r} as it was in the dense network, but this "
                f"model was shrunk and has {edit.value} there. Analyse the model as it is now with niwaki.search_space."
            )
    return tuple(edit for edit in plan.attributes if edit not in done.attributes)


def _repairs_left(done: Plan, plan: Plan) -> tuple[Repair, ...]:
    before = {repair.tensor: repair.factor for repair in done.repairs}
    after = {repair.tensor: repair for repair in plan.repairs}
    for repair in done.repairs:  # back to what it was, where nothing is left to repair
        after.setdefault(repair.tensor, replace(repair, factor=1.0))
    left = [replace(repair, factor=repair.factor / before.get(name, 1.0)) for name, repair in after.items()]
    return tuple(repair for repair in left if repair.factor != 1)
