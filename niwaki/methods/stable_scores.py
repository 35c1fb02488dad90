"""HESSO's scores, and a start that waits until it is clear what will leave (OCSPruner's criterion of stability)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch

from niwaki.core.counts import FloatArray
from niwaki.core.isomorphic import group_of
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import Compare
from niwaki.methods.parts import Target
from niwaki.methods.portions import PortionScores
from niwaki.methods.schedule import Schedule, Timeline
from niwaki.methods.scoring import Criteria
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.window_scores import WindowScores
from niwaki.selection import SelectionRequest

LOOKS = 40  # before the latest start, approximately
AGO = 2  # each look is compared with the last but one
MEAN_OF = 3
ENOUGH = 0.999


@dataclass(frozen=True, slots=True)
class Looks:
    """When the whole choice is made for trial: after the steps ``first``, ``first + every``, ..., and after ``latest``;
    ``width``: over how many steps scores are averaged before each."""

    first: int
    every: int
    latest: int
    width: int

    @classmethod
    def of(cls, schedule: Schedule, window: int) -> Looks:
        """Those of a schedule. At the latest start there is room for its periods.

        >>> Looks.of(Schedule("stable", until=400), window=10)
        Looks(first=9, every=9, latest=301, width=9)
        """
        room = max(schedule.periods, (schedule.until - schedule.start) // 4)
        width = max(1, min(window, room // (schedule.periods + 1)))
        first = schedule.start + width - 1
        latest = max(first, schedule.until - room)
        return cls(first, max(width, math.ceil((latest - first) / LOOKS)), latest, width)

    def at(self, step: int) -> bool:
        """Whether there is a look at the end of ``step``."""
        return step == self.latest or (self.first <= step < self.latest and (step - self.first) % self.every == 0)

    def scores(self, step: int) -> bool:
        """Whether ``step`` is in the window of a look."""
        return any(self.at(later) for later in range(step, step + self.width))


@final
class StableScores(PortionScores):
    """`WindowScores` that begin when the choice has settled.

    At each look the whole budget is met for trial. How much it keeps of what it kept two looks ago is the mean over the
    groups of |A and B| / |A or B|; the first portion leaves when the mean of the last three is 0.999 or more (as in
    OCSPruner, which looks after epochs), or at the latest look. The portions share the steps that are left.
    """

    def __init__(
        self,
        units: TrainedUnits,
        target: Target,
        schedule: Schedule,
        criteria: Criteria,
        window: int,
        readmit: bool,
        seed: int,
        compare: Compare,
    ) -> None:
        WindowScores(units, schedule, criteria, window, readmit, seed, compare)  # raises what it does not take
        self._looks = Looks.of(schedule, int(window))

        def beginning(step: int) -> WindowScores:
            begun = replace(schedule, start=step - self._looks.width + 1, stable=False)
            return WindowScores(units, begun, criteria, self._looks.width, readmit, seed, compare)

        self._beginning = beginning
        self._scores = beginning(self._looks.first)
        self._target, self._candidates = target, target.removal.candidates(units.space)
        self._groups = group_of(units.space)
        self._counted = np.bincount(self._groups, self._candidates) > 0
        self._began: int | None = None
        self._first: FloatArray | None = None  # the saliency of the look that decided
        self._kept: list[BoolArray] = []
        self.similarities: list[float] = []

    @property
    def timeline(self) -> Timeline | None:
        """Known when the choice has settled."""
        return None if self._began is None else self._scores.timeline

    @property
    def space(self) -> SearchSpace:
        """The whole space."""
        return self._scores.space

    @property
    def compare(self) -> Compare:
        """As the criteria are."""
        return self._scores.compare

    def before(self, step: int) -> None:
        """Within a window: see that the direction of the step will be known."""
        if self._began is not None:
            self._scores.before(step)
        elif self._looks.scores(step):
            self._scores.sampler.remember()

    def observe(self, step: int, leaving: BoolArray) -> None:
        """Within a window: one sample; at its end, a look."""
        if self._began is not None:
            self._scores.observe(step, leaving)
        elif self._looks.scores(step):
            self._scores.sampler.sample()
            if self._looks.at(step):
                self._look(step)

    def _look(self, step: int) -> None:
        sampler, target = self._scores.sampler, self._target
        saliency = sampler.weighted(sampler.window.close(), self._candidates, step)
        asked = SelectionRequest(target.limits, steps=target.steps, compare=self.compare)
        self._kept.append(target.removal.select(self.space, saliency, asked))
        if len(self._kept) > AGO:
            self.similarities.append(self._similar(self._kept.pop(0), self._kept[-1]))
        self.similarities = self.similarities[-MEAN_OF:]
        settled = len(self.similarities) == MEAN_OF and np.mean(self.similarities) >= ENOUGH
        if settled or step >= self._looks.latest:
            self._begin(step)
            self._first = saliency

    def _begin(self, step: int) -> None:
        self._began, self._scores = step, self._beginning(step)
        self._kept = []

    def _similar(self, one: BoolArray, other: BoolArray) -> float:
        """What both keep over what either keeps, 1 where neither does: the mean over the groups that can lose units."""
        both, either = (np.bincount(self._groups, found)[self._counted] for found in (one & other, one | other))
        return float(np.mean(np.where(either > 0, both / np.maximum(either, 1), 1.0)))

    def ready(self, step: int) -> None:
        """The window of the look that decided is that of the first portion."""

    def saliency(self, step: int, keep: BoolArray) -> FloatArray:
        """From the mean over the window that ends with this step."""
        if self._first is None:
            return self._scores.saliency(step, keep)
        first, self._first = self._first, None
        return np.where(keep, first, 0.0)

    def saliency_again(self, step: int, here: BoolArray) -> FloatArray | None:
        """In the middle of a period, if units may return."""
        return None if self._began is None else self._scores.saliency_again(step, here)

    def group_weight(self) -> None:
        """No group matters more than another."""

    def phase(self, step: int) -> str | None:
        """Before the first portion."""
        if self._began is not None:
            return self._scores.phase(step)
        return "scoring" if self._looks.scores(step) else "waiting"

    def describe(self) -> str:
        """How near the choice is to settling."""
        if self._began is not None:
            return f"; begun at step {self._began}"
        return f"; {self.similarities[-1]:.1%} of the last choice but one kept" if self.similarities else ""

    def take_back(self) -> None:
        """Nothing is only tried."""

    def settings(self) -> dict[str, Any]:
        """Those of the scores."""
        return self._scores.settings()

    def state(self) -> dict[str, Any]:
        """When it began; before, what the last looks kept; and the open window."""
        looks = {"looks": torch.from_numpy(np.stack(self._kept))} if self._kept else {}
        return {"began": self._began or 0, "similarities": list(self.similarities), **looks, **self._scores.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._began, self._first = None, None
        if state["began"]:
            self._begin(int(state["began"]))
        else:
            self._scores = self._beginning(self._looks.first)
            self._kept = [row.copy() for row in state["looks"].cpu().numpy()] if "looks" in state else []
        self.similarities = [float(value) for value in state["similarities"]]
        self._scores.restore(state)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """A step that is a look, similarities, kept units, and what the scores ask for."""
        began, looks = int(state["began"]), state.get("looks")
        if began and not self._looks.at(began):
            raise ValueError(f"it began at step {began}, after which there is no look")
        if len(state["similarities"]) > MEAN_OF or not all(isinstance(one, float) for one in state["similarities"]):
            raise ValueError(f"its similarities are not up to {MEAN_OF} numbers")
        shape = () if looks is None else tuple(looks.shape)
        if looks is not None and (looks.dtype != torch.bool or len(shape) != 2 or shape[1] != self.space.num_units):
            raise ValueError(f"what looks kept is not rows of {self.space.num_units} truth values")
        if looks is not None and len(looks) > AGO:
            raise ValueError(f"it has more than {AGO} looks")
        self._scores.check_state(state)
