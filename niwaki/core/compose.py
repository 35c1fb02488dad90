"""Plans one after the other: what is still to do of a plan, and what two have done together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from niwaki.core.plan import Plan, smaller_shapes
from niwaki.core.positions import Positions
from niwaki.core.renaming import Renaming
from niwaki.errors import PlanError


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
    edits, names = [], Renaming.of(done)
    for place in {**plan.at, **done.at}:
        first, whole = done.at.get(place), plan.at.get(place)
        one = whole or first
        left = one and one.left(first, whole, done, plan)
        edits.append(left and left.renamed(names.after) if names else left)
    return Plan(
        kept={name: _relative(done.kept.get(name), kept) for name, kept in plan.kept.items()},
        units={name: len(done.kept.get(name, range(plan.units[name]))) for name in plan.kept},
        shapes=smaller_shapes(done),
        edits=tuple(edit for edit in edits if edit is not None),
        provenance=plan.provenance,
    )


def composed(done: Plan, plan: Plan) -> Plan:
    """The plan that does at once to the dense network what ``done`` did to it and ``plan`` then to the result.

    Raises:
        PlanError: an edit of the two cannot be said of the dense network.
    """
    edits, names = [], Renaming.of(done)
    then = [edit.renamed(names.before) if names else edit for edit in plan.edits]
    then_at = {edit.place: edit for edit in then if edit is not None}
    for place in {**done.at, **then_at}:
        first, later = done.at.get(place), then_at.get(place)
        one = later or first
        edits.append(one and one.then(first, later))
    known = not names.moves and all(plan.units.get(name) == len(kept) for name, kept in done.kept.items())
    kept: Mapping[str, Sequence[int]] = (
        {name: Positions(np.asarray(done.kept[name])[np.asarray(plan.kept[name])]) for name in done.kept}
        if known
        else plan.kept
    )
    return replace(
        plan,
        kept=kept,
        units=done.units if known else plan.units,
        shapes=done.shapes,
        edits=tuple(edit for edit in edits if edit is not None),
    )


def _relative(here: Sequence[int] | None, kept: Sequence[int]) -> Positions:
    return Positions(kept) if here is None else Positions(np.searchsorted(np.asarray(here), np.asarray(kept)))
