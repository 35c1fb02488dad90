"""What HESSO and HESSO-CRIC share: scores of units, portions of them that fade to zero, the plan, and their state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.counts import FloatArray, IntArray
from niwaki.core.plan import Plan
from niwaki.core.scalars import whole_seed
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.methods.attach import Method
from niwaki.methods.checks import check_steps
from niwaki.methods.fades import Fade, Faded, fade_named
from niwaki.methods.schedule import Schedule, Timeline
from niwaki.methods.scoring import Criteria, Mix, Window
from niwaki.methods.shrinking import LiveUnits, ShrinkPolicy
from niwaki.methods.status import Phase, Progress, not_ended, share, warn_of
from niwaki.per_unit.fast import VectorisedUnits
from niwaki.per_unit.plain import PlainUnits
from niwaki.per_unit.protocol import Units
from niwaki.selection import costs, select
from niwaki.selection.budget import TRAINED, Budget, check_budget, check_met, provenance, slack_note

IMPORTANT, FADING, ZERO = 0, 1, 2


class GradualPruning(Method):
    """A method that scores units by a weighted sum of criteria and fades the least salient to zero, in portions.

    A portion is marked at the end of the step with which a period begins, as many units as bring the cost the
    schedule's share nearer to the budget. Then every unit takes the optimizer's own step, and the marked ones are
    multiplied by (T - t - 1) / (T - t) on step t = 0 ... T - 1 of the period, or by what another `Fade` leaves. Zeros
    stay zero. Unmarked units take the bare optimizer's step, to the bit.

    Subclasses say what the saliency is when a period begins, and what happens before the first.
    """

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        criteria: Criteria,
        window: int,
        seed: int,
        vectorised: bool,
        shrink: bool | ShrinkPolicy = False,
    ) -> None:
        super().__init__(space, optimizer, shrink)
        check_steps("window", window, "scores are averaged over it")
        check_budget(budget)
        Schedule.check(schedule)
        self.budget, self.schedule, self.seed = budget, schedule, whole_seed(seed)
        self.mix = Mix.of(criteria, space)
        self._limits = budget.absolute(space, TRAINED)
        everything = np.ones(space.num_units, dtype=bool)
        least = select(space, np.ones(space.num_units), self._limits, steps=budget.steps)
        check_met(space, least, self._limits, budget.steps)
        self._dense = costs(space.cost_model, everything, ("macs", "params"))
        self._left = dict(self._dense)
        self._vectorised = vectorised
        self._units: Units
        self._units, self._fade = self._units_of(space)
        self._status = np.full(space.num_units, IMPORTANT, dtype=np.int8)
        self.scores = Window()

    @property
    @abstractmethod
    def timeline(self) -> Timeline | None:
        """When portions leave; None while that is not known."""

    @property
    @abstractmethod
    def phase(self) -> Phase:
        """What happens on the next step."""

    @abstractmethod
    def saliency(self, keep: BoolArray) -> FloatArray:
        """How much the network needs each unit of ``keep``, when a period begins: [num_units], none negative."""

    @abstractmethod
    def group_weight(self) -> FloatArray | None:
        """How much more some groups matter than others, [groups]; see `select`."""

    @abstractmethod
    def hyperparameters(self) -> dict[str, Any]:
        """The method's own settings."""

    def plan(self) -> Plan:
        """The plan that removes the units marked so far; after ``schedule.until`` steps it meets the budget, and all
        its units are zero. Before, or where they are not, a warning says so. Where steps are so coarse that more than
        1 % is left under every limit, ``provenance["tight"]`` says what the next would cost.

        Raises:
            PlanError: no values of the model's attributes could follow the choice.
        """
        left = self.remains
        warn_of(self.label, self.not_ended(), left.space, self.zero_units()[left.here])
        keep = self._status == IMPORTANT
        about = {"method": self.name, **self._about()}
        if self.ended() and (told := slack_note(self.space, keep, self._limits, self.budget)):
            about["tight"] = told
        return self.planned(keep, provenance(self.space, keep, self.budget, step=self.step, **about))

    def planned(self, keep: BoolArray, about: dict[str, Any]) -> Plan:
        """The plan that keeps the units ``keep`` [num_units], for the model that is to be cut."""
        return self.plan_of_zeros(self.space, keep, about)

    def not_ended(self) -> str | None:
        """That the last portion is not zero yet, if so."""
        if self.ended():
            return None
        early = "takes units that are not zero yet, and " if (self._status == FADING).any() else ""
        left = f"{early}need not meet the budget, {self.budget}"
        return not_ended(self.label, self.optimizer, self.step, self.schedule.until, left)

    @property
    def progress(self) -> Progress:
        """Where the method stands, without asking the device."""
        borders = () if self.timeline is None else self.timeline.borders[:-1]
        return Progress(
            step=self.step,
            phase=self.phase,
            period=sum(border <= self.step for border in borders),
            periods=self.schedule.periods,
            units=self.space.num_units,
            marked=int((self._status != IMPORTANT).sum()),
            zero=int((self._status == ZERO).sum()),
            macs=share("macs", self._left, self._dense),
            params=share("params", self._left, self._dense),
        )

    def __repr__(self) -> str:
        now = self.progress
        return (
            f"{self.label}: step {now.step}, {now.phase} (period {now.period} of {now.periods}); {now.marked} of "
            f"{now.units} units marked, {now.zero} zero; {now.macs:.1%} of the MACs and {now.params:.1%} of the "
            "parameters left"
        )

    def ended(self) -> bool:
        """After the last period."""
        return self.step >= self.schedule.until

    def zero_units(self) -> BoolArray:
        """What a period has brought to zero."""
        return np.equal(self._status, ZERO)

    def gone(self) -> BoolArray:
        """The same units: zeros stay zero."""
        return self.zero_units()

    def rebuild(self) -> None:
        """The units that are left."""
        here = self.remains.here
        inner, self._fade = self._units_of(self.remains.space, np.flatnonzero(here))
        self._units = LiveUnits(inner, here)
        self._mark()

    def _units_of(self, space: SearchSpace, numbers: IntArray | None = None) -> tuple[Units, Fade]:
        """The units of ``space``, which are called ``numbers`` here, and how they fade."""
        kind = VectorisedUnits if self._vectorised else PlainUnits
        units = kind(space, self.holder(), numbers, self.space.num_units)
        return units, fade_named(self.schedule.fade)(Faded(space, self.holder(), units, self._vectorised))

    def sample(self, size: Tensor | None = None) -> Tensor:
        """Score all units as they are, or as if they were ``size`` [num_units] times as large, into the open window;
        the scores [criteria, num_units]."""
        values = self.mix.values(self._units, self.seed, self.remains.space, self.remains.here, size)
        self.scores.add(values)
        return values

    def weighted(self, means: Tensor, keep: BoolArray) -> FloatArray:
        """The weighted sum of criteria [criteria, num_units], each over its mean in the group: [num_units]."""
        return self.mix.weighted(means, self.space, keep, self.step)

    def redundant(self, saliency: FloatArray) -> BoolArray:
        """The units that the whole budget would remove by ``saliency`` [num_units], if none had left."""
        return ~select(self.space, saliency, self._limits, steps=self.budget.steps, weight=self.group_weight())

    def follow(self, timeline: Timeline) -> None:
        """The part of a step that fades: the marked units fade, zeros are kept, a period may begin."""
        factor = timeline.factor(self.step)
        if factor == 0:
            self._status[self._status == FADING] = ZERO
            self._mark()
        elif factor is not None:
            self.fade_step(factor)
        self._units.clear()
        if timeline.selects(self.step) is not None:
            self._begin(timeline)

    def before_fading(self, step: int) -> None:
        """Before the optimizer's step: what the fade has to know of the weights as they are."""
        if self.timeline is not None and self.timeline.factor(step):
            self._fade.remember()

    def fade_step(self, factor: float) -> None:
        """What becomes of the marked units on a step that would leave ``factor`` of them."""
        self._fade.shrink(factor)

    def holder(self) -> Optimizer:
        """The optimizer that holds the parameters which units are made of."""
        return self.optimizer

    def _begin(self, timeline: Timeline) -> None:
        """Mark the least salient important units: the schedule's share of the budget still to go."""
        portion = self.schedule.portion(timeline.periods - timeline.borders.index(self.step))
        keep = self._status == IMPORTANT
        now = costs(self.space.cost_model, keep, self._limits)
        limits = {m: now[m] - max(0.0, now[m] - limit) * portion for m, limit in self._limits.items()}
        self._status[keep & ~self._kept(self.saliency(keep), keep, limits)] = FADING
        self._mark()

    def reselect(self) -> None:
        """Choose once more among all units that are not yet zero, at the same cost: what fades and would now be kept
        returns, and what takes its place fades in the steps that are left."""
        keep, here = self._status == IMPORTANT, self._status != ZERO
        limits = costs(self.space.cost_model, keep, self._limits)
        kept = self._kept(self.weighted(self.scores.close(), here), here, limits)
        self._status[here] = np.where(kept[here], IMPORTANT, FADING)
        self._mark()

    def _kept(self, saliency: FloatArray, here: BoolArray, limits: dict[str, float]) -> BoolArray:
        """The units of ``here`` to keep under ``limits`` for now: those that the budget itself would keep, and more.

        What leaves never returns. Chosen for themselves, the first portions would be of small steps, wherever they are,
        and a group that can only shrink in large ones would come on top of them.
        """
        weight, steps = self.group_weight(), self.budget.steps
        last = select(self.space, saliency, self._limits, ~here, steps=steps, weight=weight)
        return select(self.space, saliency, limits, ~here, steps=steps, weight=weight, staying=last)

    def _mark(self) -> None:
        fading = self._status == FADING
        self._units.mark(fading, self._status == ZERO)
        self._fade.mark(fading[self.remains.here])
        self._left = costs(self.space.cost_model, self._status == IMPORTANT, ("macs", "params"))

    def _about(self) -> dict[str, Any]:
        return {
            "schedule": self.schedule.data,
            "criteria": self.mix.data,
            "seed": self.seed,
            **self.hyperparameters(),
        }

    def settings(self) -> dict[str, Any]:
        """Schedule, criteria, seed, limits, the steps in which groups may shrink, and the method's own numbers."""
        steps = {"round_to": self.budget.round_to, "min_units": self.budget.min_units}
        return self._about() | {"limits": dict(self._limits)} | steps

    def state(self) -> dict[str, Any]:
        """What each unit is, and the sums of the open window."""
        return {"status": torch.from_numpy(self._status.copy())} | self.scores.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; the zeros themselves are in the model's parameters."""
        self._status = state["status"].cpu().numpy().copy()
        self.scores.restore(state)
        self._mark()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """One status per unit, and a window of one row per criterion if there are samples."""
        units, status = self.space.num_units, state["status"]
        if not isinstance(status, Tensor) or status.shape != (units,) or status.dtype != torch.int8:
            raise ValueError(f"its status is not {units} small integers, one per unit")
        if not bool(((status >= IMPORTANT) & (status <= ZERO)).all()):
            raise ValueError("its status holds values that mean nothing")
        Window.check_state(state, len(self.mix.weights), units)
