"""HESSO-CRIC's scores: units on trial fade, are measured, and are put back, one step of the user's loop at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import Compare
from niwaki.errors import MethodError
from niwaki.methods.checks import check_number, check_steps
from niwaki.methods.parts import Target
from niwaki.methods.portions import PortionScores
from niwaki.methods.schedule import Schedule, Timeline, fitting_cycles
from niwaki.methods.scoring import Criteria, Window
from niwaki.methods.sensitivity import layer_losses, sensitivity
from niwaki.methods.snapshot import TrainingSnapshot
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.trials import Trials
from niwaki.methods.window_scores import Sampler
from niwaki.per_unit.protocol import UnitSubset, UnitUpdate
from niwaki.selection import STRUCTURES, SelectionRequest


@final
class TriedScores(PortionScores):
    """The mean of all samples of cycles that try what the budget would remove, and are taken back.

    A window begins at ``schedule.start``; at its end layers are measured and V is chosen. Then come the cycles, and
    then the periods. ``target``: what the budget would remove is put on trial. The other arguments: see `niwaki.CRIC`.
    """

    def __init__(
        self,
        units: TrainedUnits,
        target: Target,
        schedule: Schedule,
        criteria: Criteria,
        window: int,
        seed: int,
        loss: Callable[[], Any] | None,
        cycle: int | None,
        cycles: int,
        tolerance: float,
        layers: float,
        compare: Compare,
    ) -> None:
        self.sampler = Sampler(units, criteria, window, seed, compare)
        self.sampler.mix.check_size(units.label)
        check_steps("cycles", cycles, "the most cycles there may be")
        check_number("tolerance", tolerance, 0, 1, "the share of all units below which there is no further cycle")
        check_number("layers", layers, 0, 1, "how much the sensitivity of layers counts beside the units' own scores")
        if loss is not None and not callable(loss):
            raise MethodError(f"loss={loss!r} is not a function. Pass loss=lambda: loss_fn(model(x), y).")
        self._loss, self._tolerance, self._layers = loss, float(tolerance), float(layers)
        self._units, self._target, self._schedule = units, target, schedule
        self._candidates = target.removal.candidates(units.space)
        if target.removal is STRUCTURES:
            self._layers = 0.0
        self._width = Timeline.of(schedule, int(window)).window
        self._opens = schedule.start + self._width - 1  # the step after which V is first chosen
        self._cycle, self._cycles = fitting_cycles(schedule, self._opens, cycle, int(cycles))

        self.trials = Trials.none(units.space.num_units, len(units.space.groups))
        self._snapshot: TrainingSnapshot | None = None
        self._timeline: Timeline | None = None
        self._on_trial: tuple[UnitSubset, Tensor] | None = None  # V, and V where the weights are

    @property
    def timeline(self) -> Timeline | None:
        """Known when the cycles have ended."""
        return self._timeline

    @property
    def space(self) -> SearchSpace:
        """The whole space."""
        return self._units.space

    @property
    def compare(self) -> Compare:
        """As the criteria are."""
        return self.sampler.mix.compare

    def before(self, step: int) -> None:
        """Is there a loss? And where units are scored: keep the parameters."""
        if self._layers and step <= self._opens and self._loss is None and self._units.closure is None:
            raise MethodError(
                f"{self._units.label} measures how the loss grows when parts of a layer are zero, but knows no loss. "
                "Pass loss=lambda: loss_fn(model(x), y), give optimizer.step a closure, or leave it out with layers=0."
            )
        if self._scores_on(step):
            self.sampler.remember()

    def observe(self, step: int, leaving: BoolArray) -> None:
        """A step of a cycle, or a sample."""
        if self.trials.running:
            self._try(step, step - self.trials.began - 1)
        elif self._scores_on(step):
            values = self.sampler.sample()
            if self._timeline is None:
                self.trials.add(values)
                if step == self._opens:
                    self._open(step)

    def _scores_on(self, step: int) -> bool:
        """Whether units are scored after ``step``; within a cycle they always are."""
        if self._timeline is not None:
            return step > self._timeline.borders[0] and self._timeline.scores(step)
        return step > self._opens - self._width

    def _open(self, step: int) -> None:
        """At the end of the first window: the layers' sensitivity, the first V, and the moment to come back to."""
        units = self._units
        saliency = self.sampler.weighted(self.sampler.window.close(), self._candidates, step)
        if self._layers:
            loss = self._loss_of_closure if self._loss is None else self._loss
            layers = sensitivity(layer_losses(self.space, units.engine, saliency, loss))
            self.trials.layers[: len(layers)] = layers  # those of structures, behind them, stay one
        self.trials.trial = self._redundant(saliency)
        self._snapshot = TrainingSnapshot.of(self.space.model, units.optimizer, self._gates)
        self._next(step)

    def _next(self, step: int) -> None:
        """The next cycle, if V is worth it; else the end."""
        trials = self.trials
        if trials.trial.sum() > self._tolerance * self._candidates.sum() and trials.cycle < self._cycles:
            trials.cycle, trials.began = trials.cycle + 1, step
            self._put_on_trial()
        else:
            trials.ended, self._snapshot, self._on_trial = step, None, None
            self._begin_periods(step)

    def _try(self, step: int, t: int) -> None:
        """Step t = 0 ... S - 1 of a cycle, whose V has been faded to (S - t) / S."""
        assert self._on_trial is not None
        (subset, fades), left = self._on_trial, self._cycle - t
        self.trials.add(self.sampler.sample(torch.where(fades, self._cycle / left, 1.0)))
        if self.sampler.window.samples == self._width or left == 1:
            self.trials.windows.append(self.sampler.window.close())
        if left > 1:
            subset.apply(UnitUpdate(keep=(left - 1) / left))
        else:
            self._close(step)

    def _close(self, step: int) -> None:
        """The end of a cycle: who newly came to be among the lowest? And back to where it began."""
        self.take_back()
        means = [self.sampler.weighted(mean, self._candidates, step) for mean in self.trials.windows]
        self.trials.next([self._redundant(saliency) for saliency in means])
        self._next(step)

    def take_back(self) -> None:
        """Undo what the cycle at hand has done to the weights."""
        if self._snapshot is not None:
            self._snapshot.restore(self.space.model, self._units.optimizer, self._gates)

    @property
    def _gates(self) -> Tensor | None:
        return None if self._units.gates is None else self._units.gates.values

    def _redundant(self, saliency: FloatArray) -> BoolArray:
        """The units that the whole budget would remove by ``saliency`` [num_units]."""
        target = self._target
        request = SelectionRequest(target.limits, steps=target.steps, compare=self.compare, weight=self.group_weight())
        return ~target.removal.select(self.space, saliency, request)

    def _put_on_trial(self) -> None:
        self._units.engine.forget()
        self._on_trial = self._units.engine.subset(self.trials.trial), self._units.on_device(self.trials.trial)

    def _begin_periods(self, start: int) -> None:
        line = Timeline.of(Schedule(start, self._schedule.until, self._schedule.periods), 1)
        shortest = min(after - before for before, after in zip(line.borders, line.borders[1:], strict=False))
        self._timeline = Timeline(min(self._width, shortest), line.borders)

    def _loss_of_closure(self) -> Any:
        assert self._units.closure is not None
        with torch.enable_grad():
            return self._units.closure()

    def ready(self, step: int) -> None:
        """The cycles have seen to it."""

    def saliency(self, step: int, keep: BoolArray) -> FloatArray:
        """The mean of all samples of the cycles; later periods mix in the window that ends with this step."""
        assert self._timeline is not None
        tried = self.sampler.weighted(self.trials.mean(), keep, step)
        share = self._timeline.borders.index(step) / self._timeline.periods
        if share == 0:
            return tried
        return (1 - share) * tried + share * self.sampler.weighted(self.sampler.window.close(), keep, step)

    def saliency_again(self, step: int, here: BoolArray) -> None:
        """Choices have been tried, and are final."""

    def group_weight(self) -> FloatArray:
        """The sensitivity of each layer as a weight of its units, [groups], with mean 1."""
        return 1 - self._layers + self._layers * self.trials.layers

    def phase(self, step: int) -> str:
        """Before the first portion."""
        if self.trials.cycle:
            return "trial"
        return "scoring" if self._scores_on(step) else "waiting"

    def describe(self) -> str:
        """What has been tried."""
        trials = self.trials
        return f"; {int(trials.history.sum())} units tried in {trials.cycle} of at most {self._cycles} cycles"

    def settings(self) -> dict[str, Any]:
        """Criteria, window, cycles, tolerance and how much layers count."""
        return {
            **self.sampler.settings(),
            "window": self._width,
            "cycle": self._cycle,
            "cycles": self._cycles,
            "tolerance": self._tolerance,
            "layers": self._layers,
        }

    def state(self) -> dict[str, Any]:
        """The open window, where the cycles stand, and what the one at hand will be taken back to."""
        state = self.sampler.window.state() | {"trials": self.trials.data()}
        return state if self._snapshot is None else state | {"snapshot": self._snapshot.data()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.sampler.window.restore(state)
        self.trials = Trials.of(state["trials"])
        self._snapshot = TrainingSnapshot(**state["snapshot"]) if "snapshot" in state else None
        self._timeline, self._on_trial = None, None
        if self.trials.running:
            self._put_on_trial()
        if self.trials.ended is not None:
            self._begin_periods(self.trials.ended)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Masks, sums and a snapshot of the right shapes, as the place among the cycles asks for them."""
        rows, units = len(self.sampler.mix.weights), self.space.num_units
        Window.check_state(state, rows, units)
        trials = state["trials"]
        Trials.check(trials, rows, units, len(self.space.groups))
        running = int(trials["cycle"]) > 0 and trials["ended"] is None
        if running != ("snapshot" in state):
            raise ValueError("its cycle and its snapshot contradict one another")
        if running:
            TrainingSnapshot.check(state["snapshot"], self.space.model, self._units.optimizer)
        last = self._schedule.until - self._schedule.periods
        if trials["ended"] is not None and not self._opens <= int(trials["ended"]) <= last:
            raise ValueError("the step its cycles ended at is out of the schedule")
