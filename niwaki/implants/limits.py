"""Which limits choices with implants can follow, and whether they are met."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from niwaki.core.space import BoolArray
from niwaki.errors import BudgetError
from niwaki.implants.layers import ImplantLayers
from niwaki.selection.budget import Budget, check_budget
from niwaki.selection.objective import costs

MEASURES = ("macs", "params")


def limits_of(layers: ImplantLayers, budget: Budget) -> Mapping[str, float]:
    """The limits of ``budget`` as amounts.

    Raises:
        BudgetError: ``budget`` is not a budget, sets a limit other than ``macs``, ``params`` and ``latency``, or the
            times of implants are not known.
    """
    check_budget(budget, training=False)
    others = sorted(set(budget.limits) - {*MEASURES, "latency"})
    if others:
        raise BudgetError(
            f"With implants a budget limits {' and '.join(MEASURES)}, and the latency in a space that is timed with "
            f"them, and this one limits {others[0]}, which implants change in ways that are not modelled."
        )
    if "latency" in budget.limits:
        _check_timed(layers)
    return budget.absolute(layers.space, (*MEASURES, "latency"))


def _check_timed(layers: ImplantLayers) -> None:
    """Raise `BudgetError` if the times of implants in one of the layers are not known."""
    model = layers.space.cost_model
    if model.latency is None and not layers.layers:
        raise BudgetError(
            "The latency of this space is not known, and no layer can have implants. Time it with niwaki.timed(space, "
            "x), and leave out implants: niwaki.choose(space, scores, budget)."
        )
    for layer in layers.layers:
        times = model.implant_times.get(layer.weight)
        if model.latency is None or times is None or times.rank != layer.rank:
            rank = "" if layer.rank is None else f", rank={layer.rank}"
            raise BudgetError(
                f"How long implants in {layer.module!r} take is not known. Time the space with them: "
                f"niwaki.timed(space, x, implants=niwaki.implants.ImplantLayers.of(space{rank}))."
            )


def meets(layers: ImplantLayers, keep: BoolArray, slim: BoolArray, limits: Mapping[str, float]) -> bool:
    """Whether every limit is met by the units ``keep`` [num_units], of which ``slim`` are implants."""
    found = costs(layers.space.cost_model, keep, limits)
    return all(round(found[name] - layers.saved(keep, slim, name)) <= limit for name, limit in limits.items())


def latency_left(layers: ImplantLayers, keep: BoolArray, slim: BoolArray) -> float:
    """What is left of the latency, as a fraction of the dense network's, by what was timed."""
    now, dense = (costs(layers.space.cost_model, units, ["latency"])["latency"] for units in (keep, np.ones_like(keep)))
    return (now - layers.saved(keep, slim, "latency")) / dense
