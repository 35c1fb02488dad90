"""What a network costs less, or more, because rows of its layers are implants, branches write some channels only,
modules are constants, or layers have got biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from niwaki.core.cost import Cost
from niwaki.core.counts import BoolArray
from niwaki.core.edits.implant import Implant
from niwaki.core.edits.make_constant import MakeConstant
from niwaki.core.edits.new_bias import NewBias
from niwaki.core.edits.placed import PlacedEdit
from niwaki.core.names import named_buffers, named_parameters
from niwaki.core.plan import Plan
from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.space import SearchSpace


def with_replacements(space: SearchSpace, cost: Cost, keep: BoolArray, plan: Plan) -> Cost:
    """``cost``, that of the units ``keep`` [num_units], with the implants, the narrower branches, the constants and
    the new biases of ``plan``. Constants cost no multiply-accumulates; those of an expert's are counted all the same,
    since how many tokens it gets follows from data.

    Activations are not known then: outputs of several layers are put together, which costs memory of its own.

    Raises:
        PlanError: no operator of the space multiplies by a weight, so that its multiply-accumulates are not known.
    """
    cost = _with_biases(space, _without_constants(space, cost, plan), plan)
    implants, narrower = plan.edits_of(Implant), _narrower(space, keep, plan) if _placed(plan) else {}
    if not implants and not narrower:
        return cost
    parameters = dict(named_parameters(space.model))
    itemsize = {name: t.itemsize for name, t in (*parameters.items(), *named_buffers(space.model))}
    matrices = [name for name in narrower if name in parameters and parameters[name].dim() > 1]
    macs = macs_of_weights(space, keep, {*matrices, *(edit.weight for edit in implants)})
    less = {name: round(macs[name] * (1 - narrower[name])) for name in matrices}
    saved: dict[str, int] = {}
    for name, share in narrower.items():
        entries = int(np.prod(plan.change_of(name).shape_of(plan.dense[name])))
        saved[name] = round(entries / share) - entries
    for edit in implants:
        saved[edit.weight] = saved.get(edit.weight, 0) + round(edit.saved_share * int(np.prod(edit.shape)))
        left = macs[edit.weight] - less.get(edit.weight, 0)
        less[edit.weight] = less.get(edit.weight, 0) + round(edit.saved_share * left)
    return replace(
        cost,
        params=cost.params - sum(entries for name, entries in saved.items() if name in parameters),
        macs=cost.macs - sum(less.values()),
        memory=cost.memory - sum(entries * itemsize[name] for name, entries in saved.items()),
        activations=0,
    )


def _without_constants(space: SearchSpace, cost: Cost, plan: Plan) -> Cost:
    """``cost`` without the tensors of modules that are constants, and with the constants."""
    edits = plan.edits_of(MakeConstant)
    if not edits:
        return cost
    parameters = dict(named_parameters(space.model))
    tensors = {**parameters, **dict(named_buffers(space.model))}
    gone = [name for name in tensors if any(name.startswith(f"{edit.module}.") for edit in edits)]
    sizes = {name: int(np.prod(plan.change_of(name).shape_of(plan.dense[name]))) for name in gone}
    added = sum(len(edit.value) for edit in edits) * max((tensors[name].itemsize for name in gone), default=0)
    return replace(
        cost,
        params=cost.params - sum(size for name, size in sizes.items() if name in parameters),
        memory=cost.memory - sum(size * tensors[name].itemsize for name, size in sizes.items()) + added,
    )


def _placed(plan: Plan) -> bool:
    """Whether layers have some channels of a stream only."""
    return any(isinstance(edit, PlacedEdit) for edit in plan.edits)


def _with_biases(space: SearchSpace, cost: Cost, plan: Plan) -> Cost:
    """``cost`` with the biases that layers get; adding costs no multiply-accumulates."""
    edits = plan.edits_of(NewBias)
    itemsize = {name: parameter.itemsize for name, parameter in named_parameters(space.model)} if edits else {}
    return replace(
        cost,
        params=cost.params + sum(len(edit.value) for edit in edits),
        memory=cost.memory + sum(len(edit.value) * itemsize[edit.weight] for edit in edits),
    )


def _narrower(space: SearchSpace, keep: BoolArray, plan: Plan) -> dict[str, float]:
    """The tensors that keep fewer rows or columns than the units ``keep`` have: the share of their entries."""
    alive = np.append(keep, True)
    stays: dict[tuple[str, int], BoolArray] = {}
    for place in space.dims:
        key = place.tensor, place.dim
        stays[key] = np.asarray(alive[place.units].all(axis=1) & stays.get(key, np.True_), bool)
    found: dict[str, float] = {}
    for (tensor, dim), rows in stays.items():
        number = int(rows.sum())
        length = plan.lengths.get((tensor, dim), number)
        if length < number:
            found[tensor] = found.get(tensor, 1.0) * length / number
    return found


def macs_of_weights(space: SearchSpace, keep: BoolArray, weights: Iterable[str]) -> Mapping[str, float]:
    """The multiply-accumulates by each of some weights, beside the units ``keep`` [num_units].

    Raises:
        PlanError: no operator multiplies by one of them.
    """
    model = space.cost_model
    each = model.macs.each(model.counts(keep.astype(np.float64)))
    found: dict[str, float] = {}
    for name in weights:
        if name not in model.macs_of:
            raise PlanError(
                f"Which operator multiplies by {name!r} is not known of this search space, so that implants there have "
                "no cost. Make the space with niwaki.search_space, of the layer that holds the weight itself."
            )
        found[name] = float(each[list(model.macs_of[name])].sum())
    return found
