"""Units leave in portions: each brings the cost a share of the way nearer to the budget, and is zero when the next
begins."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import Compare
from niwaki.methods.parts import Resumable, Selector, Target
from niwaki.methods.schedule import Schedule, Timeline
from niwaki.methods.status import Progress, share
from niwaki.methods.trained_units import TrainedUnits
from niwaki.selection import SelectionRequest, costs

IMPORTANT, FADING, ZERO = 0, 1, 2


class PortionScores(Resumable):
    """How much the network needs each unit, and when the portions leave."""

    @property
    @abstractmethod
    def timeline(self) -> Timeline | None:
        """When portions leave; None while that is not known."""

    @property
    @abstractmethod
    def space(self) -> SearchSpace:
        """The space that units are chosen in: that of the method, perhaps with groups that must not lose any."""

    @property
    @abstractmethod
    def compare(self) -> Compare:
        """With which others each unit is compared."""

    @abstractmethod
    def before(self, step: int) -> None:
        """Before the optimizer's step: keep what scores need."""

    @abstractmethod
    def observe(self, step: int, leaving: BoolArray) -> None:
        """After it, before any unit is changed. ``leaving`` [num_units]: what has begun to leave."""

    @abstractmethod
    def ready(self, step: int) -> None:
        """When the first portion is about to be chosen."""

    @abstractmethod
    def saliency(self, step: int, keep: BoolArray) -> FloatArray:
        """How much the network needs each unit of ``keep``, when a period begins: [num_units], none negative."""

    @abstractmethod
    def saliency_again(self, step: int, here: BoolArray) -> FloatArray | None:
        """The same in the middle of a period, of units ``here`` that are not yet zero; None: the choice is final."""

    @abstractmethod
    def group_weight(self) -> FloatArray | None:
        """How much more some groups matter than others, [groups]; see `select`."""

    @abstractmethod
    def phase(self, step: int) -> str | None:
        """What happens on a ``step`` before the first portion leaves; None where that is for the update to say."""

    @abstractmethod
    def describe(self) -> str:
        """What there is to say of them in the middle of a run, to follow a sentence; or nothing."""

    @abstractmethod
    def take_back(self) -> None:
        """Before the method is detached: undo what was only tried."""


@final
class Portions(Selector):
    """At the end of the step with which a period begins, the least salient units are marked, as many as bring the cost
    the schedule's share nearer to the budget. The update acts on them until the period ends; what it has left of them
    then is set to zero, and zeros stay zero.

    ``status`` [num_units]: important, leaving or zero.
    """

    def __init__(self, units: TrainedUnits, target: Target, schedule: Schedule, scores: PortionScores) -> None:
        self.target, self.schedule, self.scores = target, schedule, scores
        self._units = units
        self._candidates = target.removal.candidates(units.space)
        self.status = np.full(units.space.num_units, IMPORTANT, dtype=np.int8)
        self._mark()

    def before(self, step: int) -> None:
        """Whatever the scores need."""
        self.scores.before(step)

    def observe(self, step: int) -> None:
        """Score the units."""
        self.scores.observe(step, np.equal(self.status, FADING))

    def left(self, step: int) -> float | None:
        """(T - t - 1) / (T - t) on step t = 0 ... T - 1 of a period of T steps; None outside the periods."""
        return None if self.scores.timeline is None else self.scores.timeline.factor(step)

    def choose(self, step: int) -> None:
        """A period may end, and another begin."""
        if self.left(step) == 0:
            self.status[self.status == FADING] = ZERO
            self._mark()
        self._units.clear()
        timeline = self.scores.timeline
        if timeline is None:
            return
        period = timeline.selects(step)
        if period is not None:
            if period == 0:
                self.scores.ready(step)
            self._begin(step, self.schedule.portion(timeline.periods - period))
        here = self.status != ZERO
        again = self.scores.saliency_again(step, here & self._candidates)
        if again is not None:
            self._reselect(again, here)

    def _begin(self, step: int, quota: float) -> None:
        """Mark the least salient important units: ``quota`` of the way to the budget."""
        keep = self.status == IMPORTANT
        now = costs(self._units.space.cost_model, keep, self.target.limits)
        limits = {m: now[m] - max(0.0, now[m] - limit) * quota for m, limit in self.target.limits.items()}
        self.status[keep & ~self._kept(self.scores.saliency(step, keep & self._candidates), keep, limits)] = FADING
        self._mark()

    def _reselect(self, saliency: FloatArray, here: BoolArray) -> None:
        """Choose once more among the units ``here``, which are not yet zero, at the same cost: what fades and would now
        be kept returns, and what takes its place fades in the steps that are left."""
        limits = costs(self._units.space.cost_model, self.status == IMPORTANT, self.target.limits)
        kept = self._kept(saliency, here, limits)
        self.status[here] = np.where(kept[here], IMPORTANT, FADING)
        self._mark()

    def _kept(self, saliency: FloatArray, here: BoolArray, limits: Mapping[str, float]) -> BoolArray:
        """The units of ``here`` to keep under ``limits`` for now: those that the budget itself would keep, and more.

        What leaves never returns. Chosen for themselves, the first portions would be of small steps, wherever they are,
        and a group that can only shrink in large ones would come on top of them.
        """
        scores, target = self.scores, self.target
        whole = SelectionRequest(target.limits, ~here, target.steps, scores.compare, scores.group_weight())
        last = target.removal.select(scores.space, saliency, whole)
        return target.removal.select(scores.space, saliency, replace(whole, limits=limits, staying=last))

    def _mark(self) -> None:
        self._units.mark(self.status == FADING, self.status == ZERO)
        self._left = costs(self._units.space.cost_model, self.status == IMPORTANT, ("macs", "params"))

    def phase(self, step: int) -> str | None:
        """That of the scores before the first portion leaves, that of the update then."""
        if self.ended(step - 1):
            return "done"
        timeline = self.scores.timeline
        return self.scores.phase(step) if timeline is None or step <= timeline.borders[0] else None

    def ended(self, step: int) -> bool:
        """After the last period."""
        return step >= self.schedule.until

    def removed(self) -> BoolArray:
        """What has been marked so far, zero or not."""
        return np.not_equal(self.status, IMPORTANT)

    def zero(self) -> BoolArray:
        """What a period has brought to zero."""
        return np.equal(self.status, ZERO)

    def removable(self) -> BoolArray:
        """The same units: zeros stay zero."""
        return self.zero()

    def shortfall(self, step: int) -> str | None:
        """That the last portion is not zero yet, if so."""
        if self.ended(step):
            return None
        early = "takes units that are not zero yet, and " if (self.status == FADING).any() else ""
        return f"{early}need not meet the budget, {self.target.budget}"

    def progress(self, step: int, phase: str) -> Progress:
        """Where the portions stand, without asking the device."""
        borders = () if self.scores.timeline is None else self.scores.timeline.borders[:-1]
        return Progress(
            step=step,
            phase=phase,
            period=sum(border <= step for border in borders),
            periods=self.schedule.periods,
            units=int(self._candidates.sum()),
            marked=int((self.status != IMPORTANT).sum()),
            zero=int((self.status == ZERO).sum()),
            macs=share("macs", self._left, self.target.dense),
            params=share("params", self._left, self.target.dense),
        )

    def describe(self, now: Progress) -> str:
        """Period, units, costs."""
        return (
            f"step {now.step}, {now.phase} (period {now.period} of {now.periods}); {now.marked} of "
            f"{now.units} units marked, {now.zero} zero; {now.macs:.1%} of the MACs and {now.params:.1%} of the "
            f"parameters left{self.scores.describe()}"
        )

    def take_back(self) -> None:
        """Whatever the scores have only tried."""
        self.scores.take_back()

    def settings(self) -> dict[str, Any]:
        """The schedule, and what the scores are made of."""
        return {"schedule": self.schedule.data, **self.scores.settings()}

    def state(self) -> dict[str, Any]:
        """What each unit is, and what the scores keep."""
        return {"status": torch.from_numpy(self.status.copy())} | self.scores.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.status = state["status"].cpu().numpy().copy()
        self.scores.restore(state)
        self._mark()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """One status per unit, and what the scores ask for."""
        units, status = len(self.status), state["status"]
        if not isinstance(status, Tensor) or status.shape != (units,) or status.dtype != torch.int8:
            raise ValueError(f"its status is not {units} small integers, one per unit")
        if not bool(((status >= IMPORTANT) & (status <= ZERO)).all()):
            raise ValueError("its status holds values that mean nothing")
        self.scores.check_state(state)
