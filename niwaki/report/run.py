"""The report of a run, as data and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from niwaki.performance.measure import Latency

REPORT_FORMAT = 2  # 1 gave latencies in milliseconds


@dataclass(frozen=True, slots=True)
class Figures:
    """One network in numbers. ``accuracy``: the fraction of correctly classified test images. ``memory``: bytes of
    parameters and buffers. ``macs``: multiply-accumulates for one image. ``latency``: of one image and of a training
    batch."""

    accuracy: float
    params: int
    macs: int
    memory: int
    latency: tuple[Latency, ...]


@dataclass(frozen=True, slots=True)
class RunReport:
    """The settings and the results of a run.

    ``check``: the result of `niwaki.check`. ``kept``: kept units and all units, by group. ``history``: one entry per
    epoch. ``data``: names, sizes and the normalisation that inputs need: ``(pixel - mean) / std``, pixels in 0 to 255.
    ``repair``: of a network that was trained before, accuracy and loss before and after the repair; None otherwise.
    """

    recipe: Mapping[str, Any]
    data: Mapping[str, Any]
    versions: Mapping[str, str]
    dense: Figures
    small: Figures
    coverage: float
    check: Mapping[str, Any]
    kept: Mapping[str, tuple[int, int]]
    history: tuple[Mapping[str, float], ...]
    seconds: float
    repair: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """The report as JSON text with a format number."""
        values = dataclasses.asdict(self)
        if self.repair is None:
            del values["repair"]
        return json.dumps({"format": REPORT_FORMAT, **values}, indent=1)
