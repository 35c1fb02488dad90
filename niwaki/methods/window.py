"""Scores that are averaged over the steps before a choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class Window:
    """The sums of ``samples`` scores of all units, [criteria, num_units] each."""

    def __init__(self) -> None:
        self.samples = 0
        self._sums: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """One more sample."""
        self._sums = values.clone() if self._sums is None else self._sums.to(values).add_(values)
        self.samples += 1

    def close(self) -> Tensor:
        """The mean of the samples; the next window is empty."""
        assert self._sums is not None
        mean = self._sums / self.samples
        self._sums, self.samples = None, 0
        return mean

    def state(self) -> dict[str, Any]:
        """The sums, if there are any."""
        return {"samples": self.samples} | ({} if self._sums is None else {"window": self._sums.clone()})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.samples, sums = int(state["samples"]), state.get("window")
        self._sums = None if sums is None else sums.clone()

    @staticmethod
    def check_state(state: Mapping[str, Any], criteria: int, units: int) -> None:
        """Raise ValueError unless there are sums of this shape if and only if there are samples."""
        sums = state.get("window")
        if int(state["samples"]) < 0 or (sums is None) != (int(state["samples"]) == 0):
            raise ValueError("its window and its number of samples contradict one another")
        if sums is not None and tuple(sums.shape) != (criteria, units):
            raise ValueError(f"its window has not the shape {[criteria, units]}")
