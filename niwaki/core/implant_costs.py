"""What a network costs less because some rows of its layers are implants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from niwaki.core.cost import Cost
from niwaki.core.counts import BoolArray
from niwaki.core.edits.implant import Implant
from niwaki.core.names import named_parameters
from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.space import SearchSpace


def with_implants(space: SearchSpace, cost: Cost, keep: BoolArray, edits: Iterable[Implant]) -> Cost:
    """``cost``, that of the units ``keep`` [num_units], with the implants of some ``edits``.

    Its activations are not known: the outputs of both layers are alive at once when they are interleaved.

    Raises:
        PlanError: no operator of the space multiplies by a weight, so that its multiply-accumulates are not known.
    """
    edits = tuple(edits)
    if not edits:
        return cost
    macs = macs_of_weights(space, keep, [edit.weight for edit in edits])
    itemsize = {name: parameter.itemsize for name, parameter in named_parameters(space.model)}
    params = {edit.weight: round(edit.saved_share * int(np.prod(edit.shape))) for edit in edits}
    return replace(
        cost,
        params=cost.params - sum(params.values()),
        macs=cost.macs - sum(round(edit.saved_share * macs[edit.weight]) for edit in edits),
        memory=cost.memory - sum(saved * itemsize[name] for name, saved in params.items()),
        activations=0,
    )


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
