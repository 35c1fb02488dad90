"""HESSO's scores: a weighted sum of criteria, each averaged over a window of steps before every selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from niwaki.core.counts import FloatArray
from niwaki.core.scalars import whole_seed
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import Compare
from niwaki.errors import MethodError
from niwaki.methods.checks import check_steps
from niwaki.methods.fades import LINEAR
from niwaki.methods.portions import PortionScores
from niwaki.methods.schedule import Schedule, Timeline
from niwaki.methods.scoring import Criteria, Mix, Window
from niwaki.methods.trained_units import TrainedUnits
from niwaki.selection import UNITS


@final
class Sampler:
    """Scores all units of a training by a mix of criteria, one sample per step, into the open window."""

    def __init__(self, units: TrainedUnits, criteria: Criteria, window: int, seed: int, compare: Compare) -> None:
        check_steps("window", window, "scores are averaged over it")
        self.seed = whole_seed(seed)
        mix = Mix.of(criteria, units.space, compare)
        lonely = next((one.name for one in mix.registered if one.needs_peers), None)
        if lonely is not None and units.removal is not UNITS:
            raise MethodError(
                f"The criterion {lonely!r} compares units with the others of their group, and a structure is alone in "
                f"its own, so remove={units.removal.name!r} has no scores to choose by. Use another criterion, such as "
                "'magnitude', or remove='units'."
            )
        self.mix = mix if units.gated is None else mix.with_effects()
        self.units, self.window = units, Window()

    def remember(self) -> None:
        """Before a step that is scored: keep what its direction cannot be known without."""
        if self.mix.needs_direction:
            self.units.engine.remember()

    def sample(self, size: Tensor | None = None) -> Tensor:
        """Score all units as `measure` does, into the open window; the scores [criteria, num_units]."""
        values = self.measure(size)
        self.window.add(values)
        return values

    def measure(self, size: Tensor | None = None) -> Tensor:
        """The scores [criteria, num_units] of all units as they are, or as if they were ``size`` [num_units] times as
        large."""
        units, live, counted = self.units, self.units.live, None
        if self.mix.by_layer:  # by the mean of those that a selection would normalise by
            counted = units.on_device(~units.zero if size is not None else ~(units.zero | units.leaving))
        return self.mix.values(units.engine, self.seed, live.space, live.here, size, counted)

    def weighted(self, means: Tensor, keep: BoolArray, step: int) -> FloatArray:
        """The weighted sum of criteria [criteria, num_units], each over its mean: [num_units]; see `Mix.weighted`."""
        return self.mix.weighted(means, self.units.space, keep, step, self.units.gated)

    def settings(self) -> dict[str, Any]:
        """Criteria, how units are compared, and seed."""
        return {**self.mix.settings(), "seed": self.seed}


@final
class WindowScores(PortionScores):
    """The mean over the window that ends with the selection.

    With ``readmit`` every period of four steps or more has a second window before its middle, in which the weights that
    fade count as if they had not. ``acts_from``: the step from which the update acts on all units, before any is
    chosen, if it does.
    """

    def __init__(
        self,
        units: TrainedUnits,
        schedule: Schedule,
        criteria: Criteria,
        window: int,
        readmit: bool,
        seed: int,
        compare: Compare,
        acts_from: int | None = None,
    ) -> None:
        self._acts_from = acts_from
        self.sampler = Sampler(units, criteria, window, seed, compare)
        self._timeline = Timeline.of(schedule, int(window))
        if not isinstance(readmit, bool):
            raise MethodError(f"readmit={readmit!r} must be True or False: whether what has begun to fade may return.")
        if readmit and schedule.fade != LINEAR:
            raise MethodError(
                "readmit=True counts what has begun to fade as if it had not, which it can for a linear fade only, not "
                f"for the fade {schedule.fade!r} of the schedule. Leave one of the two out."
            )
        if readmit:
            self.sampler.mix.check_size("readmit=True")
        self._readmit = readmit

    @property
    def timeline(self) -> Timeline:
        """Known from the beginning."""
        return self._timeline

    @property
    def space(self) -> SearchSpace:
        """The whole space."""
        return self.sampler.units.space

    @property
    def compare(self) -> Compare:
        """As the criteria are."""
        return self.sampler.mix.compare

    def before(self, step: int) -> None:
        """Within a window: see that the direction of the step will be known."""
        if self._timeline.scores(step) or self._previews(step):
            self.sampler.remember()

    def observe(self, step: int, leaving: BoolArray) -> None:
        """Within a window: one sample."""
        faded = self._previews(step)
        if faded:
            self.sampler.sample(torch.where(self.sampler.units.on_device(leaving), faded, 1.0))
        elif self._timeline.scores(step):
            self.sampler.sample()

    def _previews(self, step: int) -> float | None:
        return self._timeline.previews(step) if self._readmit else None

    def ready(self, step: int) -> None:
        """The first window is like all others."""

    def saliency(self, step: int, keep: BoolArray) -> FloatArray:
        """From the mean over the window that ends with this step."""
        return self.sampler.weighted(self.sampler.window.close(), keep, step)

    def saliency_again(self, step: int, here: BoolArray) -> FloatArray | None:
        """In the middle of a period, if units may return."""
        return self.saliency(step, here) if self._readmit and self._timeline.reviews(step) else None

    def group_weight(self) -> None:
        """No group matters more than another."""

    def phase(self, step: int) -> str | None:
        """Before the first portion."""
        if self._acts_from is not None and step >= self._acts_from:
            return None
        return "scoring" if self._timeline.scores(step) else "waiting"

    def describe(self) -> str:
        """Nothing beside the portions."""
        return ""

    def take_back(self) -> None:
        """Nothing is only tried."""

    def settings(self) -> dict[str, Any]:
        """Criteria, over how many steps they are averaged, and whether units may return."""
        return {
            **self.sampler.settings(),
            "window": self._timeline.window,
            **({"readmit": True} if self._readmit else {}),
        }

    def state(self) -> dict[str, Any]:
        """The sums of the open window."""
        return self.sampler.window.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.sampler.window.restore(state)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """A window of one row per criterion, if there are samples."""
        Window.check_state(state, len(self.sampler.mix.weights), self.space.num_units)
