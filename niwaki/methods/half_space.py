"""What the half-space methods share: the step around `Rule`, when it ends, the budget at the end, state and plan."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from niwaki.budget import TRAINED, Budget, check_budget, check_met, provenance
from niwaki.core.counts import FloatArray
from niwaki.core.plan import Plan
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria import normalise
from niwaki.criteria.normalise import group_of
from niwaki.criteria.registry import named
from niwaki.errors import MethodError
from niwaki.methods.attach import Method
from niwaki.methods.checks import check_mask, diverged
from niwaki.methods.iterates import Change, Iterates, Sums, Unit
from niwaki.methods.iterates_fast import FastIterates
from niwaki.methods.iterates_plain import PlainIterates
from niwaki.methods.plain import PlainUnits
from niwaki.methods.progress import Phase, Progress
from niwaki.methods.schedule import Schedule
from niwaki.methods.shrinking import Shrinking, UnitsLeft
from niwaki.methods.units import Units
from niwaki.methods.vectorised import VectorisedUnits
from niwaki.selection import Steps, costs, leaving, select


class HalfSpace(Method):
    """A method that changes units after each optimizer step by a `Rule`, until ``schedule.until``.

    Units that the rule brings to zero are the result. At ``until`` a budget that they do not meet yet is met by a hard
    threshold: the smallest of the others, by their norm over the mean of their group, are set to zero as well. From
    then on zeros are kept and everything else takes the bare optimizer's step.

    The largest unit of each group is never set to zero, since a network that has lost a whole layer is dead.

    Subclasses are the rule (see `Rule`), say what `phase` it is, and may add to what happens around it.
    """

    label: str
    now: Phase  # of the step at hand

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget | None,
        schedule: Schedule,
        vectorised: bool,
        shrink: bool | Shrinking = False,
    ) -> None:
        super().__init__(space, optimizer, shrink)
        if not isinstance(schedule, Schedule):
            raise MethodError(
                f"schedule={schedule!r} is no schedule. Say when: niwaki.Schedule(start=100, until=500) in steps."
            )
        schedule.check_fade(self.label)
        if schedule.ramp != "linear":
            raise MethodError(
                f"The schedule has the ramp {schedule.ramp!r}, but {self.label} does not choose units in portions. "
                "Leave it out, or use HESSO, HESSO-CRIC or LHSPG."
            )
        if any(group.get("lr") is None for group in optimizer.param_groups):
            raise MethodError(
                f"{self.label} takes its steps with the optimizer's learning rate, but {type(optimizer).__qualname__} "
                "has none in its param groups. Add 'lr' to each of them."
            )
        everything = np.ones(space.num_units, dtype=bool)
        self.budget, self.schedule = budget, schedule
        self._limits: dict[str, float] = {}
        self._steps = Steps()
        if budget is not None:
            check_budget(budget)
            self._limits, self._steps = budget.absolute(space, TRAINED), budget.steps
            least = select(space, np.ones(space.num_units), self._limits, steps=self._steps)
            check_met(space, least, self._limits, budget.steps)
        self._dense = costs(space.cost_model, everything, ("macs", "params"))
        self._vectorised = vectorised
        self._units: Units = (VectorisedUnits if vectorised else PlainUnits)(space, optimizer)
        self._gone: BoolArray = np.zeros(space.num_units, dtype=bool)
        self._device = next(iter(space.model.parameters())).device
        self._group = torch.from_numpy(group_of(space)).to(self._device)
        self._zero: Tensor = torch.zeros(space.num_units, dtype=torch.bool, device=self._device)
        self._ended: int | None = None  # the step after which only zeros are kept
        self._iterates: Iterates | None = None

    @property
    @abstractmethod
    def reads(self) -> frozenset[str]:
        """See `Rule`; for the phase ``now``."""

    @abstractmethod
    def of_unit(self, unit: Unit) -> Change:
        """See `Rule`."""

    @abstractmethod
    def of_sums(self, sums: Sums) -> Change:
        """See `Rule`."""

    @abstractmethod
    def phase(self, step: int) -> Phase:
        """What happens on ``step``, while the method has not ended."""

    def concerned(self) -> BoolArray:
        """The units that the rule changes, [num_units]; asked once, on its first step and after a resume."""
        return np.ones(self.space.num_units, dtype=bool)

    def observe(self, step: int) -> None:
        """After a scoring step."""

    def conclude(self, step: int) -> None:
        """After the rule has acted on ``step``."""

    def preference(self) -> FloatArray | float:
        """What the sizes of units are multiplied by before the smallest are taken to meet the budget."""
        return 1.0

    @abstractmethod
    def numbers(self) -> dict[str, Any]:
        """The method's own settings."""

    @final
    def before_step(self, step: int) -> None:
        """Keep x of the units concerned, where the rule needs it."""
        if self._ended is not None:
            return
        self.now = self.phase(step)
        if self.now == "scoring":
            self._units.remember()
        elif self.now != "waiting" and self.reads != {"after"}:
            self._open().remember()

    @final
    def after_step(self, step: int) -> None:
        """Let the rule act, or keep the zeros."""
        if self._ended is not None:
            self._units.clear()
            return
        if self.now == "scoring":
            self.observe(step)
        elif self.now != "waiting":
            iterates = self._open()
            change = self._spared(iterates.change(self))
            iterates.apply(change)
            self._zero = change.keep == 0
            self.conclude(step)
        if self._ended is None and step >= self.schedule.until:
            self.end(step)

    @final
    def end(self, step: int) -> None:
        """The last act: units leave for good, as many as are zero, and as many more as the budget asks for."""
        zero = self._zeros()
        keep = self._kept(zero)
        if self._limits:
            keep = select(self.space, self._sizes(keep), self._limits, ~keep, steps=self._steps)
        self._zero = torch.from_numpy(zero | ~keep).to(self._device)
        self._ended, self._iterates = step, None
        self._keep_zeros()
        self._units.clear()

    def gone(self) -> BoolArray:
        """None while the rule acts, which looks at all units; then what it has left at zero."""
        return self._gone

    def rebuild(self) -> None:
        """The units that are left."""
        here = self.remains.here
        kind = VectorisedUnits if self._vectorised else PlainUnits
        self._units = UnitsLeft(
            kind(self.remains.space, self.optimizer, np.flatnonzero(here), self.space.num_units), here
        )
        if self._ended is not None:
            self._keep_zeros()

    def _keep_zeros(self) -> None:
        zero = self._zeros()
        self._gone = ~self._kept(zero)
        self._units.mark(np.zeros_like(zero), zero)

    @final
    def meets_budget(self) -> bool:
        """Whether the units that are zero now meet the budget. Asks the device."""
        reached = costs(self.space.cost_model, self._kept(self._zeros()), self._limits)
        return all(reached[measure] <= limit for measure, limit in self._limits.items())

    @final
    def plan(self) -> Plan:
        """The plan that removes the units that are zero now, or fewer where the sizes of the model's code allow only
        certain numbers of them.

        Raises:
            PlanError: no values of the model's attributes could follow the choice.
        """
        keep = self._kept(self._zeros())
        about = {"step": self.step, "method": self.name, **self.settings()}
        if self.budget is None:
            return self.space.plan(keep, about)
        return self.space.plan(keep, provenance(self.space, keep, self.budget, **about))

    @property
    def progress(self) -> Progress:
        """Where the method stands. Asks the device which units are zero."""
        zero = self._zeros()
        left = costs(self.space.cost_model, self._kept(zero), ("macs", "params"))
        phase = "done" if self._ended is not None else self.phase(self.step + 1)
        return Progress(
            step=self.step,
            phase=phase,
            period=int(phase not in ("waiting", "scoring")),
            periods=1,
            units=self.space.num_units,
            marked=self.marked(int(zero.sum())),
            zero=int(zero.sum()),
            macs=left["macs"] / self._dense["macs"],
            params=left["params"] / self._dense["params"],
        )

    def marked(self, zero: int) -> int:
        """How many units are meant to leave, when ``zero`` are zero."""
        return zero

    def __repr__(self) -> str:
        now = self.progress
        return (
            f"{self.label}: step {now.step}, {now.phase}; {now.zero} of {now.units} units zero"
            f"{f' of {now.marked} marked' if now.marked != now.zero else ''}; {now.macs:.1%} of the MACs and "
            f"{now.params:.1%} of the parameters left"
        )

    def settings(self) -> dict[str, Any]:
        """Schedule, limits, the steps in which groups may shrink, and the method's own numbers."""
        return {
            "schedule": [self.schedule.start, self.schedule.until],
            "limits": dict(self._limits),
            "round_to": self._steps.round_to,
            "min_units": self._steps.min_units,
            **self.numbers(),
        }

    def state(self) -> dict[str, Any]:
        """Which units are zero, and whether the method has ended."""
        return {"zero": self._zero.clone(), "ended": self._ended}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; the zeros themselves are in the model's parameters."""
        self._zero = state["zero"].to(self._device).clone()
        self._ended = None if state["ended"] is None else int(state["ended"])
        self._iterates = None
        if self._ended is not None:
            self._keep_zeros()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """One truth value per unit, and a step or nothing."""
        check_mask("zero", state["zero"], self.space.num_units)
        if state["ended"] is not None and int(state["ended"]) < 1:
            raise ValueError("the step it ended at is no step")

    def _open(self) -> Iterates:
        if self._iterates is None:
            kind = FastIterates if self._vectorised else PlainIterates
            self._iterates = kind(self.space, self.optimizer, self.concerned())
        return self._iterates

    def _zeros(self) -> BoolArray:
        return np.asarray(self._zero.cpu().numpy(), dtype=bool)

    def _kept(self, zero: BoolArray) -> BoolArray:
        return ~leaving(self.space, zero, self._steps)

    def _sizes(self, keep: BoolArray) -> FloatArray:
        """The norm of each unit over the mean norm of its group."""
        norms = self._units.values([named("magnitude")], 0)[0].double().cpu().numpy()
        if not np.isfinite(norms[keep]).all():
            raise diverged("weights", self.step)
        return normalise(self.space, np.where(keep, norms, 0.0), keep) * self.preference()

    def _spared(self, change: Change) -> Change:
        """``change`` without the end of the unit of each group that is the largest, if that would end."""
        if change.norm is None:
            return change
        largest = change.norm.new_zeros(len(self.space.groups)).scatter_reduce_(0, self._group, change.norm, "amax")
        spare = (change.norm > 0) & (change.norm == largest[self._group])
        return Change(torch.where(spare, 1, change.keep), change.norm, change.pull, change.soft, change.back)


def follows_gradient(optimizer: Optimizer) -> bool:
    """Whether the steps of ``optimizer`` are as long as the gradient is: SGD's, not those that normalise it."""
    return isinstance(optimizer, SGD)
