"""HESSO: fade the least salient units to zero while all others train as they would have (arXiv 2409.09085)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from niwaki.budget import Budget, check_budget, check_met, is_number, provenance
from niwaki.core.counts import FloatArray
from niwaki.core.plan import Plan
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria import normalise
from niwaki.criteria.registry import named
from niwaki.errors import MethodError
from niwaki.methods.attach import Method
from niwaki.methods.checks import check_steps, diverged
from niwaki.methods.plain import PlainUnits
from niwaki.methods.progress import Phase, Progress
from niwaki.methods.registry import register
from niwaki.methods.schedule import Schedule, Timeline
from niwaki.methods.units import Units
from niwaki.methods.vectorised import VectorisedUnits
from niwaki.selection import costs, select

WEIGHTS: Mapping[str, float] = {
    "magnitude": 0.2,
    "average_magnitude": 0.2,
    "cosine": 0.2,
    "taylor1": 0.2,
    "taylor2": 0.2,
}

IMPORTANT, FADING, ZERO = 0, 1, 2


class HESSO(Method):
    """HESSO on any optimizer.

    In each period: the units that matter least by a weighted sum of criteria are marked, as many as bring the cost an
    equal share nearer to the budget. Then every unit takes the optimizer's own step, and the marked ones are multiplied
    by (T - t - 1) / (T - t) on step t = 0 ... T - 1 of the period, which fades what they hold linearly to exact zero.
    Zeros stay zero. Unmarked units take the bare optimizer's step, to the bit.

    What differs from the released code: each criterion is averaged over
    ``window`` steps before a selection and divided by its mean in the group; Taylor terms use the gradient; the cosine
    has the sign of DHSPG; selections respect costs, divisibility and the least size of every group.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any ``torch.optim`` optimizer that holds all parameters of the space. None of them may be frozen
            (``requires_grad=False``), since units fade in all of their parameters: pin frozen ones with ``ignored``.
        budget: what must hold after ``schedule.until`` steps.
        schedule: when; see `Schedule`.
        criteria: registered criteria and their weights.
        window: over how many steps criteria are averaged before each selection.
        seed: for criteria that draw.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met.
        MethodError: the optimizer does not fit the space, the window or a weight is no number that makes sense, or
            later: the training diverged before a selection.
        UnknownName: there is no criterion of that name.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.5), niwaki.Schedule(start=2, until=12, periods=2))
    >>> for _ in range(12):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> method.progress.phase, method.progress.macs
    ('done', 0.5)
    >>> small = niwaki.cut(model, method.plan())
    """

    name = "hesso"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        criteria: Mapping[str, float] = WEIGHTS,
        window: int = 10,
        seed: int = 0,
        vectorised: bool = True,
    ) -> None:
        super().__init__(space, optimizer)
        check_steps("window", window, "scores are averaged over it")
        check_budget(budget)
        _check_weights(criteria)
        self.budget, self.schedule, self.seed = budget, schedule, seed
        self._criteria = [named(name) for name in criteria]
        self._weights = np.array(list(criteria.values()), dtype=np.float64)
        self._timeline = Timeline.of(schedule, int(window))
        self._limits = budget.absolute(space)
        everything = np.ones(space.num_units, dtype=bool)
        check_met(space, select(space, np.ones(space.num_units), self._limits, steps=budget.steps), self._limits)
        self._dense = costs(space.cost_model, everything, ("macs", "params"))
        self._left = dict(self._dense)
        self._units: Units = (VectorisedUnits if vectorised else PlainUnits)(space, optimizer)
        self._status = np.full(space.num_units, IMPORTANT, dtype=np.int8)
        self._window: torch.Tensor | None = None  # [criteria, num_units], sums over the open window
        self._samples = 0
        self.attach()

    def plan(self) -> Plan:
        """The plan that removes the units marked so far; after ``schedule.until`` steps it meets the budget, and all
        its units are zero.

        Raises:
            PlanError: no values of the model's attributes could follow the choice.
        """
        keep = self._status == IMPORTANT
        return self.space.plan(keep, provenance(self.space, keep, self.budget, step=self.step, **self._about()))

    @property
    def progress(self) -> Progress:
        """Where the method stands, without asking the device."""
        return Progress(
            step=self.step,
            phase=self._phase(),
            period=sum(border <= self.step for border in self._timeline.borders[:-1]),
            periods=self._timeline.periods,
            units=self.space.num_units,
            marked=int((self._status != IMPORTANT).sum()),
            zero=int((self._status == ZERO).sum()),
            macs=self._left["macs"] / self._dense["macs"],
            params=self._left["params"] / self._dense["params"],
        )

    def __repr__(self) -> str:
        now = self.progress
        return (
            f"HESSO: step {now.step}, {now.phase} (period {now.period} of {now.periods}); {now.marked} of {now.units} "
            f"units marked, {now.zero} zero; {now.macs:.1%} of the MACs and {now.params:.1%} of the parameters left"
        )

    def before_step(self, step: int) -> None:
        """Within a window: keep the parameters, so that the direction of the step is known."""
        if self._timeline.scores(step) and any(criterion.needs_direction for criterion in self._criteria):
            self._units.remember()

    def after_step(self, step: int) -> None:
        """One step of the algorithm; the optimizer's own step has just been taken by all units."""
        if self._timeline.scores(step):
            self._score()
        factor = self._timeline.factor(step)
        if factor == 0:
            self._status[self._status == FADING] = ZERO
            self._mark()
        elif factor is not None:
            self._units.fade(factor)
        self._units.clear()
        period = self._timeline.selects(step)
        if period is not None:
            self._select(period)

    def _score(self) -> None:
        values = self._units.values(self._criteria, self.seed)
        self._window = values if self._window is None else values.add_(self._window.to(values))
        self._samples += 1

    def _select(self, period: int) -> None:
        """Mark the least salient important units: an equal share of the budget still to go."""
        keep = self._status == IMPORTANT
        now = costs(self.space.cost_model, keep, self._limits)
        to_go = self._timeline.periods - period
        limits = {m: now[m] - max(0.0, now[m] - limit) / to_go for m, limit in self._limits.items()}
        kept = select(self.space, self._saliency(keep), limits, ~keep, steps=self.budget.steps)
        self._status[keep & ~kept] = FADING
        self._window, self._samples = None, 0
        self._mark()

    def _saliency(self, keep: BoolArray) -> FloatArray:
        """The weighted sum of the window's mean criteria, each over its mean in the group: [num_units]."""
        assert self._window is not None
        means = (self._window / self._samples).double().cpu().numpy()
        if not np.isfinite(means[:, keep]).all():
            raise diverged("scores", self.step)
        parts = [
            weight * normalise(self.space, values, keep) for weight, values in zip(self._weights, means, strict=True)
        ]
        saliency = np.where(keep, np.sum(parts, axis=0), 0.0)
        return saliency - min(0.0, float(saliency.min(initial=0.0)))

    def _mark(self) -> None:
        self._units.mark(self._status == FADING, self._status == ZERO)
        self._left = costs(self.space.cost_model, self._status == IMPORTANT, ("macs", "params"))

    def _phase(self) -> Phase:
        if self.step >= self._timeline.borders[-1]:
            return "done"
        if self.step >= self._timeline.borders[0]:
            return "fading"
        return "scoring" if self._timeline.scores(self.step + 1) else "waiting"

    def _about(self) -> dict[str, Any]:
        return {
            "method": self.name,
            "schedule": [self.schedule.start, self.schedule.until, self.schedule.periods],
            "criteria": {c.name: float(w) for c, w in zip(self._criteria, self._weights, strict=True)},
            "window": self._timeline.window,
            "seed": self.seed,
        }

    def settings(self) -> dict[str, Any]:
        """Schedule, criteria, window, seed, limits, and the steps in which groups may shrink."""
        about = {key: value for key, value in self._about().items() if key != "method"}
        steps = {"round_to": self.budget.round_to, "min_units": self.budget.min_units}
        return about | {"limits": dict(self._limits)} | steps

    def state(self) -> dict[str, Any]:
        """What each unit is, and the sums of the open window."""
        state: dict[str, Any] = {"status": torch.from_numpy(self._status.copy()), "samples": self._samples}
        if self._window is not None:
            state["window"] = self._window.clone()
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; the zeros themselves are in the model's parameters."""
        self._status = state["status"].cpu().numpy().copy()
        self._samples = int(state["samples"])
        window = state.get("window")
        self._window = None if window is None else window.clone()
        self._mark()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """One status per unit, and a window of one row per criterion if there are samples."""
        units, status, window = self.space.num_units, state["status"], state.get("window")
        if not isinstance(status, torch.Tensor) or status.shape != (units,) or status.dtype != torch.int8:
            raise ValueError(f"its status is not {units} small integers, one per unit")
        if not bool(((status >= IMPORTANT) & (status <= ZERO)).all()):
            raise ValueError("its status holds values that mean nothing")
        if int(state["samples"]) < 0 or (window is None) != (int(state["samples"]) == 0):
            raise ValueError("its window and its number of samples contradict one another")
        if window is not None and tuple(window.shape) != (len(self._criteria), units):
            raise ValueError(f"its window has not the shape {[len(self._criteria), units]}")


register(HESSO.name, lambda t: HESSO(t.space, t.optimizer, t.budget, t.schedule))


def _check_weights(criteria: object) -> None:
    """Criteria must be named with finite weights, none negative and not all zero: only then does the sum rank units."""
    example = "name criteria and their weights, such as {'magnitude': 1.0}"
    if not isinstance(criteria, Mapping):
        raise MethodError(f"criteria={criteria!r} is no mapping: {example}.")
    if not criteria:
        raise MethodError(f"criteria is empty: {example}.")
    for name, weight in criteria.items():
        if not is_number(weight) or not math.isfinite(weight) or weight < 0:
            raise MethodError(
                f"criteria has the weight {weight!r} for {name!r}: it must be a finite number, 0 or more."
            )
    if not any(criteria.values()):
        raise MethodError("criteria has the weight 0 only, so all units would score alike: give one a weight above 0.")
