"""What `niwaki inspect` found out about a network, as data and as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from niwaki.core.cost import Cost
from niwaki.report.anatomy import GroupFigures, Reason

INSPECTION_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the network would cost when about ``keep_macs`` of its MACs stay; ``problem``: why it cannot get there."""

    keep_macs: float
    cost: Cost | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Law:
    """What `niwaki.testing.check_model` said: whether cut and zeroed networks agree, and how closely or where not.

    ``forward``, ``backward``: the largest deviations of outputs and gradients, None where they were not compared.
    """

    holds: bool
    verdict: str
    forward: float | None = None
    backward: float | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """A network and what could leave it.

    ``inputs``: the example inputs that the costs are for. ``coverage``: the share of the parameters that lie in at
    least one unit. ``least``: the cost with the fewest units left in every group. ``criterion``: by which the units of
    the predictions were chosen. ``notes``: what was not analysed. ``seconds``: of analysis.
    """

    model: str
    inputs: str
    coverage: float
    units: int
    dense: Cost
    least: Cost
    groups: tuple[GroupFigures, ...]
    reasons: tuple[Reason, ...]
    criterion: str
    predictions: tuple[Prediction, ...]
    law: Law | None
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> str:
        """The inspection as JSON text with a format number."""
        return json.dumps({"format": INSPECTION_FORMAT, **dataclasses.asdict(self)}, indent=1)
