"""What DHSPG and H2SPG drive to zero: the units that matter least by the scores of one window, chosen once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, final

import numpy as np
import torch
from torch import Tensor

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray
from niwaki.criteria.normalise import Compare
from niwaki.methods.checks import check_mask
from niwaki.methods.parts import Target
from niwaki.methods.schedule import Schedule
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.vanishing import Choice
from niwaki.selection import SelectionRequest, costs

CHECK = 10  # steps between two looks at whether the target is reached


class OnceScores(Protocol):
    """What every unit is worth, from samples that are averaged over the steps of a window."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Of a sample."""

    @property
    @abstractmethod
    def compare(self) -> Compare:
        """With which others each unit is compared."""

    @property
    @abstractmethod
    def ranks(self) -> bool:
        """Whether structures go in the order of their saliency over cost, since sums of it mean nothing."""

    @abstractmethod
    def sample(self) -> Tensor:
        """After a step of the window: [rows, num_units]."""

    @abstractmethod
    def saliency(self, means: Tensor, step: int) -> FloatArray:
        """What the samples say in the mean, [rows, num_units], after the last ``step`` of the window: [num_units], none
        negative.

        Raises:
            MethodError: they are not finite.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What must be the same when a run is resumed, as plain data."""


@final
class ChosenOnce(Choice):
    """G_p: as many of the units that matter least by ``scores`` as bring the network ``tolerance`` below the budget.

    Samples are averaged over ``window`` steps from ``schedule.start``. ``memory``: the share w of an average
    s <- w s + (1 - w) s_t that goes on forgetting, from s = 0, so that no sample counts for more than a later one; 0
    for the mean.
    """

    def __init__(
        self,
        units: TrainedUnits,
        target: Target,
        schedule: Schedule,
        scores: OnceScores,
        tolerance: float,
        window: int,
        memory: float = 0.0,
    ) -> None:
        self._units, self._target, self._schedule, self._by = units, target, schedule, scores
        self._tolerance, self._memory = tolerance, memory
        self._window = max(1, min(window, (schedule.until - schedule.start) // 2))
        self._scores: Tensor | None = None  # [rows, num_units], the sum or the average of samples so far
        self.units: BoolArray | None = None

    def scores(self, step: int) -> bool:
        """In the window."""
        return self.units is None and step >= self._schedule.start

    def observe(self, step: int) -> None:
        """Add a sample to the window; at its end choose G_p."""
        sample = self._by.sample()
        kept, added = (self._memory, 1 - self._memory) if self._memory else (1.0, 1.0)
        before = torch.zeros_like(sample) if self._scores is None else kept * self._scores.to(sample)
        self._scores = before + added * sample
        if step >= self._schedule.start + self._window - 1:
            weight = 1 - self._memory**self._window if self._memory else self._window  # of all samples together
            self._choose(step, self._scores / weight)

    def _choose(self, step: int, means: Tensor) -> None:
        """G_p, from the averages [rows, num_units]."""
        space, target = self._units.space, self._target
        saliency = self._by.saliency(means, step)
        dense = costs(space.cost_model, np.ones(space.num_units, dtype=bool), target.limits)
        limits = {m: max(0.0, limit - self._tolerance * dense[m]) for m, limit in target.limits.items()}
        request = SelectionRequest(limits, steps=target.steps, compare=self._by.compare, in_order=self._by.ranks)
        self.units = ~target.removal.select(space, saliency, request)
        self._scores = None
        self._units.engine.forget()

    def chosen(self, step: int) -> BoolArray | None:
        """G_p, once it is known."""
        return self.units

    def marked(self) -> int | None:
        """The units of G_p."""
        return None if self.units is None else int(self.units.sum())

    def may_end(self, step: int) -> bool:
        """Every few steps it is looked whether the target is reached."""
        return (step - self._schedule.start) % CHECK == 0

    def preference(self) -> FloatArray | float:
        """What is left of G_p goes before anything else."""
        return 1.0 if self.units is None else np.where(self.units, 1e-6, 1.0)

    def settings(self) -> dict[str, Any]:
        """Tolerance, window, and what is scored."""
        memory = {"memory": self._memory} if self._memory else {}
        return {"tolerance": self._tolerance, "window": self._window, **self._by.settings(), **memory}

    def state(self) -> dict[str, Any]:
        """The open window, or G_p."""
        scores = {} if self._scores is None else {"scores": self._scores.clone()}
        return scores if self.units is None else scores | {"chosen": torch.from_numpy(self.units.copy())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        scores, chosen = state.get("scores"), state.get("chosen")
        self._scores = None if scores is None else scores.to(self._units.device).clone()
        self.units = None if chosen is None else chosen.cpu().numpy().copy()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Perhaps a mask, and a window of one row per criterion."""
        units = self._units.space.num_units
        if "chosen" in state:
            check_mask("choice", state["chosen"], units)
        if "scores" in state and tuple(state["scores"].shape) != (self._by.rows, units):
            raise ValueError(f"its window has not the shape {[self._by.rows, units]}")
