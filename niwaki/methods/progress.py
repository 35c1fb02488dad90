"""Where a method stands."""

from __future__ import annotations

from collections.abc import Mapping
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


def share(measure: str, left: Mapping[str, float], dense: Mapping[str, float]) -> float:
    """How much of ``measure`` is left; all of it where there never was any, as of MACs in a network of look-ups."""
    return left[measure] / dense[measure] if dense[measure] else 1.0
