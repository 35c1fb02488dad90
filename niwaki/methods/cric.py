"""HESSO-CRIC: HESSO whose choice is tried, corrected and taken back before anything leaves (arXiv 2409.09085)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.budget import Budget
from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import MethodError
from niwaki.methods.checks import check_number, check_steps
from niwaki.methods.fading import IMPORTANT, Fading
from niwaki.methods.mix import WEIGHTS
from niwaki.methods.progress import Phase
from niwaki.methods.registry import register
from niwaki.methods.schedule import Schedule, Timeline, fitting_cycles
from niwaki.methods.sensitivity import layer_losses, sensitivity
from niwaki.methods.shrinking import Shrinking
from niwaki.methods.snapshot import Snapshot
from niwaki.methods.trials import Trials


class CRIC(Fading):
    """HESSO-CRIC on any optimizer: before anything leaves, what would leave is tried.

    A saliency that looks at the weights as they are can call a unit redundant that the network cannot do without, and
    no training repairs its loss. So, beginning with the window that ends at step ``schedule.start + window - 1``:

    * V = the units that the budget would remove by HESSO's scores; H = {}. The sensitivity of each layer (group): the
      loss with its lowest 25, 50 and 75 % at zero, without any step. All weights, buffers and the optimizer's state
      are remembered.
    * A cycle of S steps: the units of V fade to zero as in HESSO while all others train. Every step scores every unit;
      the weights of V count as if they had not faded, so that <x, gradient> is followed along the whole way to the
      origin, where its mean is what the unit contributes to the loss of the removal. Units that come to be among those
      that the budget would remove are noted. Then everything is as it was before the cycle, H <- H + V, and
      V <- the noted units that are not in H.
    * It ends when V is no more than ``tolerance``, or after ``cycles`` cycles; H only grows.
    * Then units leave as in HESSO. The score of a unit is the mean of all its samples along the way, and layers count
      by their sensitivity. As training goes on meanwhile, a window precedes each selection p = 1 ... P - 1 of
      P = ``schedule.periods`` and takes part with the share p / P (with one period, as published, there is none).

    The steps of the cycles are taken back, so this many steps of the training are spent on the choice. While a cycle
    runs the model is on trial: look at its accuracy before or after. `detach` takes an open cycle back.

    What differs from the released code, which cannot be reached from its API and zeroes V in one step: see HESSO.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any ``torch.optim`` optimizer that holds all parameters of the space.
        budget: what must hold after ``schedule.until`` steps.
        schedule: when; the cycles are among its steps.
        loss: the loss of some data as the model is now, such as ``lambda: loss_fn(model(x), y)`` with the x and y of
            the loop (or a batch held out). Called once at step ``start + window - 1`` and 3 times per layer, without
            gradients, in the mode that the model is in then. By default the closure that ``optimizer.step`` is given.
        cycle: S, steps per cycle. By default such that all cycles take at most half of the schedule.
        cycles: the most cycles there may be; there are fewer where the schedule has no room for them.
        tolerance: the share of all units below which V is not worth a cycle.
        layers: how much the sensitivity of layers counts, from 0 (not at all; no loss is needed) to below 1.
        criteria: registered criteria and their weights.
        window: over how many steps criteria are averaged before V is chosen, and for each look at who is among the
            lowest within a cycle.
        seed: for criteria that draw.
        shrink: True lets units that have reached zero leave the model in place as soon as that pays, so that the rest
            of the training is cheaper; see `Shrinking`.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met.
        MethodError: the optimizer does not fit the space, a number makes no sense, the schedule has no room for a
            cycle, or later: there is no loss, it is no finite scalar, or the training diverged before a selection.
        UnknownName: there is no criterion of that name.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> budget, schedule = niwaki.Budget(macs=0.5), niwaki.Schedule(start=2, until=40, periods=2)
    >>> method = niwaki.CRIC(space, optimizer, budget, schedule, loss=lambda: model(x).square().mean())
    >>> for _ in range(40):
    ...     x = torch.randn(8, 4)
    ...     optimizer.zero_grad()
    ...     model(x).square().mean().backward()
    ...     optimizer.step()
    >>> method.progress.phase, method.progress.macs
    ('done', 0.5)
    >>> small = niwaki.cut(model, method.plan())
    """

    name, label = "hesso-cric", "HESSO-CRIC"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        loss: Callable[[], Any] | None = None,
        cycle: int | None = None,
        cycles: int = 10,
        tolerance: float = 0.01,
        layers: float = 0.5,
        criteria: Mapping[str, float] = WEIGHTS,
        window: int = 10,
        seed: int = 0,
        shrink: bool | Shrinking = False,
        vectorised: bool = True,
    ) -> None:
        super().__init__(space, optimizer, budget, schedule, criteria, window, seed, vectorised, shrink)
        self.mix.check_size("HESSO-CRIC")
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
        self.attach()

    @property
    def timeline(self) -> Timeline | None:
        """Known when the cycles have ended."""
        return self._timeline

    @property
    def phase(self) -> Phase:
        """What happens on the next step."""
        if self.trials.ended is not None:
            return "done" if self.step >= self.schedule.until else "fading"
        if self.trials.cycle:
            return "trial"
        return "scoring" if self._scores(self.step + 1) else "waiting"

    def __repr__(self) -> str:
        tried = f"{int(self.trials.tried.sum())} units tried in {self.trials.cycle} of at most {self.cycles} cycles"
        return f"{super().__repr__()}; {tried}"

    def before_step(self, step: int) -> None:
        """Is there a loss? And where units are scored: keep the parameters."""
        if self.layers and step <= self._opens and self.loss is None and self.closure is None:
            raise MethodError(
                "HESSO-CRIC measures how the loss grows when parts of a layer are zero, but knows no loss. Pass "
                "loss=lambda: loss_fn(model(x), y), give optimizer.step a closure, or leave it out with layers=0."
            )
        self.before_fading(step)
        if self._scores(step) and self.mix.needs_direction:
            self._units.remember()

    def after_step(self, step: int) -> None:
        """One step of the algorithm; the optimizer's own step has just been taken by all units."""
        if self._timeline is not None:
            if self._scores(step):
                self.sample()
            self.follow(self._timeline)
        elif self.trials.running:
            self._try(step - self.trials.began - 1)
        elif self._scores(step):
            self.trials.add(self.sample())
            if step == self._opens:
                self._open()

    def leave(self) -> None:
        """Take an open cycle back."""
        if self._snapshot is not None:
            self._snapshot.restore(self.space.model, self.optimizer)

    def saliency(self, keep: BoolArray) -> FloatArray:
        """The mean of all samples of the cycles; later periods mix in the window that ends with this step."""
        assert self._timeline is not None
        tried = self.weighted(self.trials.mean(), keep)
        share = self._timeline.borders.index(self.step) / self._timeline.periods
        return tried if share == 0 else (1 - share) * tried + share * self.weighted(self.close_window(), keep)

    def group_weight(self) -> FloatArray:
        """The sensitivity of each layer as a weight of its units, [groups], with mean 1."""
        return 1 - self.layers + self.layers * self.trials.layers

    def _scores(self, step: int) -> bool:
        if self._timeline is not None:
            return step > self._timeline.borders[0] and self._timeline.scores(step)
        return step > self._opens - self._width

    def _open(self) -> None:
        """At the end of the first window: the layers' sensitivity, the first V, and the moment to come back to."""
        saliency = self.weighted(self.close_window(), self._status == IMPORTANT)
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

    def _try(self, t: int) -> None:
        """Step t = 0 ... S - 1 of a cycle, whose V has been faded to (S - t) / S."""
        assert self._fades is not None
        left = self.cycle - t
        self.trials.add(self.sample(torch.where(self._fades, self.cycle / left, 1.0)))
        if self._samples == self._width or left == 1:
            self.trials.looks.append(self.close_window())
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


register(CRIC.name, lambda t: CRIC(t.space, t.optimizer, t.budget, t.schedule, loss=t.loss, shrink=t.shrink))
