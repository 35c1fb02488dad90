"""The cycles of HESSO-CRIC: trials that are taken back, one step of the user's loop at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.budget import Budget
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError
from niwaki.methods.checks import check_number, check_steps
from niwaki.methods.fading import IMPORTANT, Fading
from niwaki.methods.mix import Criteria
from niwaki.methods.schedule import Schedule, Timeline, fitting_cycles
from niwaki.methods.sensitivity import layer_losses, sensitivity
from niwaki.methods.shrinking import Shrinking
from niwaki.methods.snapshot import Snapshot
from niwaki.methods.trials import Trials


class Cycles(Fading):
    """A method that tries what would leave, in cycles that are taken back, before portions leave as in `Fading`.

    The training begins a window at ``schedule.start``; `open_cycles` ends it. Then come the cycles, a step at a time by
    `try_step`, and then the periods of ``timeline``. Subclasses say what the saliency is once the cycles have ended.
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
        shrink: bool | Shrinking,
        *,
        loss: Callable[[], Any] | None,
        cycle: int | None,
        cycles: int,
        tolerance: float,
        layers: float,
    ) -> None:
        super().__init__(space, optimizer, budget, schedule, criteria, window, seed, vectorised, shrink)
        self.mix.check_size(self.label)
        check_steps("cycles", cycles, "the most cycles there may be")
        check_number("tolerance", tolerance, 0, 1, "the share of all units below which there is no further cycle")
        check_number("layers", layers, 0, 1, "how much the sensitivity of layers counts beside the units' own scores")
        if loss is not None and not callable(loss):
            raise MethodError(f"loss={loss!r} is no function. Pass loss=lambda: loss_fn(model(x), y).")
        self.loss, self.tolerance, self.layers = loss, float(tolerance), float(layers)
        self._width = Timeline.of(schedule, int(window)).window
        self._opens = schedule.start + self._width - 1  # the step after which V is first chosen
        self.cycle, self.cycles = fitting_cycles(schedule, self._opens, cycle, int(cycles))

        self.trials = Trials.none(space.num_units, len(space.groups))
        self._snapshot: Snapshot | None = None
        self._timeline: Timeline | None = None
        self._fades: Tensor | None = None  # V, where the weights are

    @property
    def timeline(self) -> Timeline | None:
        """Known when the cycles have ended."""
        return self._timeline

    def leave(self) -> None:
        """Take an open cycle back."""
        if self._snapshot is not None:
            self._snapshot.restore(self.space.model, self.optimizer)

    def scores_on(self, step: int) -> bool:
        """Whether units are scored after ``step``, outside the cycles."""
        if self._timeline is not None:
            return step > self._timeline.borders[0] and self._timeline.scores(step)
        return step > self._opens - self._width

    def open_cycles(self) -> None:
        """At the end of the first window: the layers' sensitivity, the first V, and the moment to come back to."""
        saliency = self.weighted(self.scores.close(), self._status == IMPORTANT)
        if self.layers:
            loss = self._loss_of_closure if self.loss is None else self.loss
            self.trials.layers = sensitivity(layer_losses(self.space, self._units, saliency, loss))
        self.trials.trial = self.redundant(saliency)
        self._snapshot = Snapshot.of(self.space.model, self.optimizer)
        self._next()

    def _next(self) -> None:
        """The next cycle, if V is worth it; else the end."""
        trials = self.trials
        if trials.trial.sum() > self.tolerance * self.space.num_units and trials.cycle < self.cycles:
            trials.cycle, trials.began = trials.cycle + 1, self.step
            self._mark_trial()
        else:
            trials.ended, self._snapshot, self._fades = self.step, None, None
            self.follow(self._begin_periods(self.step))

    def try_step(self, t: int) -> None:
        """Step t = 0 ... S - 1 of a cycle, whose V has been faded to (S - t) / S."""
        assert self._fades is not None
        left = self.cycle - t
        self.trials.add(self.sample(torch.where(self._fades, self.cycle / left, 1.0)))
        if self.scores.samples == self._width or left == 1:
            self.trials.looks.append(self.scores.close())
        self._units.fade((left - 1) / left)
        if left == 1:
            self._close()

    def _close(self) -> None:
        """The end of a cycle: who newly came to be among the lowest? And back to where it began."""
        assert self._snapshot is not None
        self._snapshot.restore(self.space.model, self.optimizer)
        everything = self._status == IMPORTANT
        self.trials.next([self.redundant(self.weighted(look, everything)) for look in self.trials.looks])
        self._next()

    def _mark_trial(self) -> None:
        self._units.mark(self.trials.trial, np.zeros_like(self.trials.trial))
        self._fades = torch.from_numpy(self.trials.trial).to(self._units.device)

    def _begin_periods(self, start: int) -> Timeline:
        line = Timeline.of(Schedule(start, self.schedule.until, self.schedule.periods), 1)
        shortest = min(after - before for before, after in zip(line.borders, line.borders[1:], strict=False))
        self._timeline = Timeline(min(self._width, shortest), line.borders)
        return self._timeline

    def _loss_of_closure(self) -> Any:
        assert self.closure is not None
        with torch.enable_grad():
            return self.closure()

    def numbers(self) -> dict[str, Any]:
        """Window, cycles, tolerance and how much layers count."""
        return {
            "window": self._width,
            "cycle": self.cycle,
            "cycles": self.cycles,
            "tolerance": self.tolerance,
            "layers": self.layers,
        }

    def state(self) -> dict[str, Any]:
        """Beside what HESSO keeps: where the cycles stand, and what the one at hand will be taken back to."""
        state = super().state() | {"trials": self.trials.data()}
        return state if self._snapshot is None else state | {"snapshot": self._snapshot.data()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        super().restore(state)
        self.trials = Trials.of(state["trials"])
        self._snapshot = Snapshot(**state["snapshot"]) if "snapshot" in state else None
        self._timeline, self._fades = None, None
        if self.trials.running:
            self._mark_trial()
        if self.trials.ended is not None:
            self._begin_periods(self.trials.ended)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Masks, sums and a snapshot of the right shapes, as the place among the cycles asks for them."""
        super().check_state(state)
        trials = state["trials"]
        Trials.check(trials, len(self.mix.weights), self.space.num_units, len(self.space.groups))
        running = int(trials["cycle"]) > 0 and trials["ended"] is None
        if running != ("snapshot" in state):
            raise ValueError("its cycle and its snapshot contradict one another")
        if running:
            Snapshot.check(state["snapshot"], self.space.model, self.optimizer)
        last = self.schedule.until - self.schedule.periods
        if trials["ended"] is not None and not self._opens <= int(trials["ended"]) <= last:
            raise ValueError("the step its cycles ended at is out of the schedule")
