"""A sparse network of which one part after the other is grown to its full width, trained, and pruned again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch

from niwaki.core.space import BoolArray, Group, SearchSpace
from niwaki.errors import MethodError
from niwaki.methods.checks import check_mask
from niwaki.methods.parts import Selector, Stateless, Target, Update
from niwaki.methods.schedule import Schedule, Timeline
from niwaki.methods.scoring import Criteria
from niwaki.methods.set_aside import SetAside
from niwaki.methods.status import Progress, share
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.window_scores import Sampler
from niwaki.selection import SelectionRequest, costs

GROWING = "growing"  # the phase


def bundles_of(space: SearchSpace) -> list[list[Group]]:
    """The groups of units of ``space``, those together that lose units only together; no structures, which stay."""
    home = list(range(len(space.groups)))
    for tie in space.ties:
        first = min(home[number] for number in tie.groups)
        joined = {home[number] for number in tie.groups}
        home = [first if one in joined else one for one in home]
    listed = [(home[number], group) for number, group in enumerate(space.groups) if group.structure is None]
    return [[group for one, group in listed if one == first] for first in dict.fromkeys(one for one, _ in listed)]


def parts_of(space: SearchSpace, parts: int) -> list[BoolArray]:
    """The bundles of groups in ``parts`` runs of about as many units, as masks [num_units].

    Raises:
        MethodError: there are not as many bundles.
    """
    bundles = bundles_of(space)
    if parts > len(bundles):
        raise MethodError(
            f"parts={parts}, but the network has only {len(bundles)} groups of units that are free of each other: the "
            "parts, which grow one after the other, are made of these. Use fewer."
        )
    found = [np.zeros(space.num_units, dtype=bool) for _ in range(parts)]
    units = sum(group.units for bundle in bundles for group in bundle)
    total, part = 0, 0
    for place, bundle in enumerate(bundles):
        empty, left = not found[part].any(), len(bundles) - place
        if not empty and (total >= (part + 1) * units / parts or left == parts - part - 1):
            part = min(part + 1, parts - 1)
        for group in bundle:
            found[part][group.numbers] = True
            total += group.units
    return found


@final
class GrowAndPrune(Selector):
    """At the end of a first window the whole network is pruned to the budget. In each of the schedule's periods one
    part of it, in turn, has all of its units again, as they were when they were set to zero; at the end of the period
    that part is pruned to what it cost before, the rest being as it is."""

    def __init__(
        self,
        units: TrainedUnits,
        target: Target,
        schedule: Schedule,
        parts: list[BoolArray],
        criteria: Criteria,
        window: int,
    ) -> None:
        self.target, self.schedule = target, schedule
        self._units, self._parts = units, parts
        line = Timeline.of(schedule, window)
        self._line = Timeline(line.window, (*line.borders, schedule.until + 1))  # so that the last border selects too
        self._sampler = Sampler(units, criteria, line.window, 0, "group")
        self._candidates = target.removal.candidates(units.space)
        self._zero: BoolArray = np.zeros(units.space.num_units, dtype=bool)
        self._aside = SetAside(units.space)

    def before(self, step: int) -> None:
        """In a window: see that the direction of the step will be known."""
        if self._line.scores(step):
            self._sampler.remember()

    def observe(self, step: int) -> None:
        """In a window: one sample."""
        if self._line.scores(step):
            self._sampler.sample()

    def left(self, step: int) -> None:
        """Nothing fades."""

    def choose(self, step: int) -> None:
        """Keep the zeros; at a border, prune what has grown and grow the next part."""
        self._units.clear()
        period = self._line.selects(step)
        if period is None:
            return
        pruned = np.ones_like(self._zero) if period == 0 else self._part(period - 1)
        self._prune(step, pruned)
        if step < self.schedule.until:
            back = self._zero & self._part(period)
            self._aside.back(back)
            self._zero = self._zero & ~back
        else:
            self._aside.drop()
        self._mark()
        self._units.clear()

    def _part(self, period: int) -> BoolArray:
        return self._parts[period % len(self._parts)]

    def _prune(self, step: int, part: BoolArray) -> None:
        """Set units of ``part`` [num_units] to zero, as many as the budget asks for."""
        here = ~self._zero
        saliency = self._sampler.weighted(self._sampler.window.close(), here & self._candidates, step)
        request = SelectionRequest(self.target.limits, self._zero, self.target.steps, staying=here & ~part)
        keep = self.target.removal.select(self._units.space, saliency, request)
        self._aside.put(here & ~keep)
        self._zero = self._zero | (here & ~keep)

    def _mark(self) -> None:
        self._units.mark(np.zeros_like(self._zero), self._zero)

    def phase(self, step: int) -> str | None:
        """Before the first border, and after the last; in between a part grows, while it is scored as well."""
        if self.ended(step - 1):
            return "done"
        if step <= self._line.borders[0]:
            return "scoring" if self._line.scores(step) else "waiting"
        return None

    def ended(self, step: int) -> bool:
        """After the last border."""
        return step >= self.schedule.until

    def removed(self) -> BoolArray:
        """What is zero now."""
        return self._zero.copy()

    def zero(self) -> BoolArray:
        """The same units."""
        return self._zero.copy()

    def removable(self) -> BoolArray:
        """None while units may return; at the end what is zero."""
        ended = self._zero.any() and self._aside.dropped
        return self._zero.copy() if ended else np.zeros_like(self._zero)

    def shortfall(self, step: int) -> str | None:
        """That a part is grown, or nothing has been pruned yet."""
        if self.ended(step):
            return None
        return f"leaves the part that is grown at its full width, and need not meet the budget, {self.target.budget}"

    def progress(self, step: int, phase: str) -> Progress:
        """Where the periods stand, without asking the device."""
        zero, units = int(self._zero.sum()), self._units
        left = costs(units.space.cost_model, ~self._zero, ("macs", "params"))
        return Progress(
            step=step,
            phase=phase,
            period=sum(border <= step for border in self._line.borders[:-2]),
            periods=self.schedule.periods,
            units=int(self._candidates.sum()),
            marked=zero,
            zero=zero,
            macs=share("macs", left, self.target.dense),
            params=share("params", left, self.target.dense),
        )

    def describe(self, now: Progress) -> str:
        """Period, units, costs."""
        return (
            f"step {now.step}, {now.phase} (period {now.period} of {now.periods}); {now.zero} of {now.units} units "
            f"zero; {now.macs:.1%} of the MACs and {now.params:.1%} of the parameters left"
        )

    def take_back(self) -> None:
        """Nothing: what has grown back is as it was, and trains."""

    def settings(self) -> dict[str, Any]:
        """The schedule, the number of parts, and what units are scored by."""
        more = {"parts": len(self._parts), "window": self._line.window}
        return {"schedule": self.schedule.data, **self._sampler.settings(), **more}

    def state(self) -> dict[str, Any]:
        """What is zero, what may return, and the open window."""
        zero = torch.from_numpy(self._zero.copy())
        return {"zero": zero, "aside": self._aside.state()} | self._sampler.window.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; the zeros themselves are in the model's parameters."""
        self._zero = state["zero"].cpu().numpy().copy()
        self._aside.restore(state["aside"])
        self._sampler.window.restore(state)
        self._mark()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """One truth value per unit, copies of this model's weights, and a window of one row per criterion."""
        check_mask("zero", state["zero"], len(self._zero))
        self._aside.check_state(state["aside"], state["zero"].cpu().numpy())
        self._sampler.window.check_state(state, len(self._sampler.mix.weights), len(self._zero))


@final
class NoUpdate(Stateless, Update):
    """All units that are there take the optimizer's step."""

    def before(self, step: int, left: float | None) -> None:
        """Nothing to keep."""

    def act(self, step: int, left: float | None) -> None:
        """Nothing to do."""

    def phase(self, step: int) -> str:
        """One word."""
        return GROWING
