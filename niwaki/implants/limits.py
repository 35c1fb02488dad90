"""Which limits choices with implants can follow, and whether they are met."""

from __future__ import annotations

from collections.abc import Mapping

from niwaki.core.space import BoolArray
from niwaki.errors import BudgetError
from niwaki.implants.layers import ImplantLayers
from niwaki.selection.budget import Budget, check_budget
from niwaki.selection.objective import costs

MEASURES = ("macs", "params")


def limits_of(layers: ImplantLayers, budget: Budget) -> Mapping[str, float]:
    """The limits of ``budget`` as amounts.

    Raises:
        BudgetError: ``budget`` is not a budget, or sets a limit other than ``macs`` and ``params``.
    """
    check_budget(budget, training=False)
    others = sorted(set(budget.limits) - set(MEASURES))
    if others:
        raise BudgetError(
            f"With implants a budget limits {' and '.join(MEASURES)}, and this one limits {others[0]}, which implants "
            "change in ways that are not modelled."
        )
    return budget.absolute(layers.space, MEASURES)


def meets(layers: ImplantLayers, keep: BoolArray, slim: BoolArray, limits: Mapping[str, float]) -> bool:
    """Whether every limit is met by the units ``keep`` [num_units], of which ``slim`` are implants."""
    found = costs(layers.space.cost_model, keep, limits)
    return all(round(found[name] - layers.saved(keep, slim, name)) <= limit for name, limit in limits.items())
