"""Choices by a predicted latency, corrected by the latency that cut networks are measured to have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from niwaki.core.plan import Plan
from niwaki.core.scalars import is_number
from niwaki.errors import BudgetError
from niwaki.surgery.cut import cut

_TRIALS = 7
_GAP = 0.05  # of the limit: so much may be left
_LEAST_SAVED = 0.02  # of the dense latency; a smaller saving says nothing of how much more is saved than predicted

Measured = Callable[[nn.Module], float]


def corrected(at: Callable[[float], Plan], model: nn.Module, limit: float, measured: Measured) -> Plan:
    """The plan of ``at``, for a limit of the predicted latency, whose network takes up to ``limit`` of the dense
    network's as ``measured`` says, both as fractions: the slowest of those that were found.

    Raises:
        BudgetError: none was found, or what was measured is not a number above 0.
    """
    share, best, told = limit, None, ""
    low, high = 0.0, 1.0  # shares whose networks are fast enough, and too slow
    for _ in range(_TRIALS):
        try:
            plan = at(share)
        except BudgetError:
            if best is None and share < low + _GAP * limit:
                break
            low, share = share, (share + high) / 2
            continue
        found = measured(cut(model, plan))
        if not is_number(found) or not found > 0:
            raise BudgetError(
                f"measured= gave {found!r}, and must give what share of the dense network's latency a network takes: "
                "lambda small: niwaki.latency({'dense': model, 'small': small}, x).ratios['small'].median."
            )
        told = f"the last network took {found:.1%}, of a predicted {plan.provenance['predicted']['latency']:.1%}"
        if found <= limit:
            low = max(low, share)
            if best is None or found > best[0]:
                best = found, plan
            if found >= (1 - _GAP) * limit:
                break
        else:
            high = min(high, share)
        said = plan.provenance["predicted"]["latency"]
        factor = (1 - found) / max(1 - said, _LEAST_SAVED)  # how much more is saved than predicted
        aim = 1 - (1 - (1 - _GAP / 2) * limit) / factor if factor > _LEAST_SAVED else 0.0
        share = aim if low < aim < high else (low + high) / 2
    if best is None:
        raise BudgetError(
            f"No choice was found that is measured to take {limit:.1%} of the latency ({told or 'none could be made'})."
            " Raise the limit, or leave out measured= and look with niwaki.latency."
        )
    taken, plan = best
    budget = {**plan.provenance["budget"], "latency": limit}
    return replace(plan, provenance={**plan.provenance, "budget": budget, "measured": {"latency": taken}})
