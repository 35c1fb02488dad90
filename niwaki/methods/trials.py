"""Where the trials of HESSO-CRIC stand: what is on trial, what was, and all that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray
from niwaki.methods.checks import check_mask


@dataclass(slots=True, eq=False)
class Trials:
    """``trial``: V, ``history``: H, both [num_units]. ``layers`` [groups]: their sensitivity.

    ``cycle``: the number of the cycle at hand, 0 before the first; ``began``: the step after which it began;
    ``ended``: the step after which the last one had ended. ``total`` [criteria, num_units]: the sum of ``count``
    samples. ``windows``: the means of the windows of the cycle at hand, each [criteria, num_units].
    """

    trial: BoolArray
    history: BoolArray
    layers: FloatArray
    cycle: int = 0
    began: int = 0
    ended: int | None = None
    total: Tensor | None = None
    count: int = 0
    windows: list[Tensor] = field(default_factory=list)

    @classmethod
    def none(cls, units: int, groups: int) -> Trials:
        """Before the first."""
        return cls(np.zeros(units, dtype=bool), np.zeros(units, dtype=bool), np.ones(groups))

    @property
    def running(self) -> bool:
        """Whether a cycle is at hand."""
        return self.cycle > 0 and self.ended is None

    def add(self, values: Tensor) -> None:
        """One sample of every unit, [criteria, num_units]."""
        self.total = values if self.total is None else self.total.to(values).add_(values)
        self.count += 1

    def mean(self) -> Tensor:
        """The mean of all samples, [criteria, num_units]."""
        assert self.total is not None
        return self.total / self.count

    def next(self, lowest: list[BoolArray]) -> None:
        """The trial is over: it is history, and those of ``lowest`` that are not come next."""
        self.history |= self.trial
        self.trial = np.logical_or.reduce(lowest) & ~self.history
        self.windows = []

    def data(self) -> dict[str, Any]:
        """Tensors and plain numbers."""
        data: dict[str, Any] = {
            "trial": torch.from_numpy(self.trial.copy()),
            "tried": torch.from_numpy(self.history.copy()),
            "layers": torch.from_numpy(self.layers.copy()),
            "cycle": self.cycle,
            "began": self.began,
            "ended": self.ended,
            "count": self.count,
            "looks": list(self.windows),
        }
        return data if self.total is None else data | {"total": self.total.clone()}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Trials:
        """The way back."""
        trial, history, layers = (data[name].cpu().numpy().copy() for name in ("trial", "tried", "layers"))
        ended = None if data["ended"] is None else int(data["ended"])
        total = data["total"].clone() if "total" in data else None
        windows = [mean.clone() for mean in data["looks"]]
        return cls(
            trial, history, layers, int(data["cycle"]), int(data["began"]), ended, total, int(data["count"]), windows
        )

    @staticmethod
    def check(data: Mapping[str, Any], criteria: int, units: int, groups: int) -> None:
        """Raise `ValueError`, `KeyError` or `TypeError` if ``data`` is not what `data` gives."""
        check_mask("trial", data["trial"], units)
        check_mask("set of tried units", data["tried"], units)
        if tuple(data["layers"].shape) != (groups,):
            raise ValueError(f"its layers are not {groups}, one per group")
        if (int(data["count"]) > 0) != ("total" in data):
            raise ValueError("its samples and their number contradict one another")
        samples = [*data["looks"], *([data["total"]] if "total" in data else [])]
        if any(tuple(one.shape) != (criteria, units) for one in samples):
            raise ValueError(f"its samples have not the shape {[criteria, units]}")
        if int(data["cycle"]) < 0 or int(data["began"]) < 0:
            raise ValueError("its cycle number is negative")
