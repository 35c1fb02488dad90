"""Plans one after the other: what is still to do of a plan, and what two have done together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from niwaki.core.edits import Edit, ReplacingEdit
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
    edits, names, erased = [], Renaming.of(done), Renaming.of(plan)
    for place in {**plan.at, **done.at}:
        first, whole = done.at.get(place), plan.at.get(place)
        if whole is None and first is not None and erased and first.renamed(erased.after) is None:
            continue  # what it has changed goes
        one = whole or first
        left = one and one.left(first, whole, done, plan)
        edits.append(left and left.renamed(names.after) if names else left)
    groups = {name: _left_of(name, done, plan) for name in plan.kept}
    return Plan(
        kept={name: kept for name, (kept, _) in groups.items()},
        units={name: units for name, (_, units) in groups.items()},
        shapes=smaller_shapes(done),
        edits=tuple(edit for edit in edits if edit is not None),
        provenance=plan.provenance,
    )


def composed(done: Plan, plan: Plan) -> Plan:
    """The plan that does at once to the dense network what ``done`` did to it and ``plan`` then to the result.

    Raises:
        PlanError: an edit of the two cannot be said of the dense network.
    """
    edits, names = list[Edit | None](), Renaming.of(done)
    then = [edit.renamed(names.before) if names else edit for edit in plan.edits]
    said = [edit for edit in then if edit is not None]
    done_at = dict(done.at)
    for edit in (one for one in done.edits if isinstance(one, ReplacingEdit)):
        done_at[edit.place], said = edit.joined(said)
    said = [edit.before(done) if isinstance(edit, ReplacingEdit) else edit for edit in said]
    then_at = {edit.place: edit for edit in said}
    for place in {**done_at, **then_at}:
        first, later = done_at.get(place), then_at.get(place)
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


def _left_of(name: str, done: Plan, plan: Plan) -> tuple[Sequence[int], int]:
    """The units of a group that stay, and how many ``done`` left; as ``plan`` has them, where ``done`` numbers other
    units (a network that was analysed again has groups of its own)."""
    here, kept = np.asarray(done.kept.get(name, ())), np.asarray(plan.kept[name])
    if done.units.get(name) != plan.units[name] or not np.isin(kept, here).all():
        return plan.kept[name], plan.units[name]
    return Positions(np.searchsorted(here, kept)), len(here)
