"""The cycles of HESSO-CRIC: units on trial fade, are measured, and are put back, one step of the user's loop at a time.

`Trials` is where they stand: what is on trial, what was, and all that was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import MethodError
from niwaki.methods.checks import check_mask, check_number, check_steps
from niwaki.methods.fading import IMPORTANT, GradualPruning
from niwaki.methods.schedule import Schedule, Timeline, fitting_cycles
from niwaki.methods.scoring import Criteria
from niwaki.methods.sensitivity import layer_losses, sensitivity
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.snapshot import TrainingSnapshot
from niwaki.selection.budget import Budget


@dataclass(slots=True, eq=False)
class Trials:
    """``trial``: V, ``tried``: H, both [num_units]. ``layers`` [groups]: their sensitivity.

    ``cycle``: the number of the cycle at hand, 0 before the first; ``began``: the step after which it began;
    ``ended``: the step after which the last one had ended. ``total`` [criteria, num_units]: the sum of ``count``
    samples. ``looks``: the means of the windows of the cycle at hand, each [criteria, num_units].
    """

    trial: BoolArray
    tried: BoolArray
    layers: FloatArray
    cycle: int = 0
    began: int = 0
    ended: int | None = None
    total: Tensor | None = None
    count: int = 0
    looks: list[Tensor] = field(default_factory=list)

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
        self.tried |= self.trial
        self.trial = np.logical_or.reduce(lowest) & ~self.tried
        self.looks = []

    def data(self) -> dict[str, Any]:
        """Tensors and plain numbers."""
        data: dict[str, Any] = {
            "trial": torch.from_numpy(self.trial.copy()),
            "tried": torch.from_numpy(self.tried.copy()),
            "layers": torch.from_numpy(self.layers.copy()),
            "cycle": self.cycle,
            "began": self.began,
            "ended": self.ended,
            "count": self.count,
            "looks": list(self.looks),
        }
        return data if self.total is None else data | {"total": self.total.clone()}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Trials:
        """The way back."""
        trial, tried, layers = (data[name].cpu().numpy().copy() for name in ("trial", "tried", "layers"))
        ended = None if data["ended"] is None else int(data["ended"])
        total = data["total"].clone() if "total" in data else None
        looks = [look.clone() for look in data["looks"]]
        return cls(
            trial, tried, layers, int(data["cycle"]), int(data["began"]), ended, total, int(data["count"]), looks
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


class Cycles(GradualPruning):
    """Try what would be removed, in cycles that are taken back, before quotas are removed as in `GradualPruning`.

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
        shrink: bool | ShrinkPolicy,
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
            raise MethodError(f"loss={loss!r} is not a function. Pass loss=lambda: loss_fn(model(x), y).")
        self.loss, self.tolerance, self.layers = loss, float(tolerance), float(layers)
        self._width = Timeline.of(schedule, int(window)).window
        self._opens = schedule.start + self._width - 1  # the step after which V is first chosen
        self.cycle, self.cycles = fitting_cycles(schedule, self._opens, cycle, int(cycles))

        self.trials = Trials.none(space.num_units, len(space.groups))
        self._snapshot: TrainingSnapshot | None = None
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
        self._snapshot = TrainingSnapshot.of(self.space.model, self.optimizer)
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

    def hyperparameters(self) -> dict[str, Any]:
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
        self._snapshot = TrainingSnapshot(**state["snapshot"]) if "snapshot" in state else None
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
            TrainingSnapshot.check(state["snapshot"], self.space.model, self.optimizer)
        last = self.schedule.until - self.schedule.periods
        if trials["ended"] is not None and not self._opens <= int(trials["ended"]) <= last:
            raise ValueError("the step its cycles ended at is out of the schedule")
