"""Where a method stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["waiting", "scoring", "trial", "fading", "penalised", "proximal", "half-space", "done"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a method stands. ``macs``, ``params``: the share that is left once all marked units are gone."""

    step: int
    phase: Phase
    period: int
    periods: int
    units: int
    marked: int
    zero: int
    macs: float
    params: float
