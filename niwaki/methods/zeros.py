"""Methods whose result is which units are zero: the budget that these meet, plan, progress and state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.plan import Plan
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import MethodError
from niwaki.methods.attach import Method
from niwaki.methods.checks import check_mask
from niwaki.methods.schedule import Schedule
from niwaki.methods.shrinking import LiveUnits, ShrinkPolicy
from niwaki.methods.status import Phase, Progress, not_ended, share, warn_of
from niwaki.per_unit.fast import VectorisedUnits
from niwaki.per_unit.plain import PlainUnits
from niwaki.per_unit.protocol import Units
from niwaki.selection import Widths, costs, leaving, select
from niwaki.selection.budget import TRAINED, Budget, check_budget, check_met, provenance, slack_note


class SparsityMethod(Method):
    """A method that finds out which units are zero until ``_ended``, the step after which they are kept so.

    Subclasses bring units to zero, and say so in ``_zero``, on the device.
    """

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget | None,
        schedule: Schedule,
        vectorised: bool,
        shrink: bool | ShrinkPolicy = False,
    ) -> None:
        super().__init__(space, optimizer, shrink)
        Schedule.check(schedule)
        schedule.check_fade(self.label)
        if schedule.ramp != "linear":
            raise MethodError(
                f"The schedule has the ramp {schedule.ramp!r}, but {self.label} does not choose units in portions. "
                "Leave it out, or use HESSO, HESSO-CRIC or LHSPG."
            )
        everything = np.ones(space.num_units, dtype=bool)
        self.budget, self.schedule = budget, schedule
        self._limits: dict[str, float] = {}
        self._steps = Widths()
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
        self._zero: Tensor = torch.zeros(space.num_units, dtype=torch.bool, device=self._device)
        self._ended: int | None = None  # the step after which only zeros are kept

    @abstractmethod
    def phase(self, step: int) -> Phase:
        """What happens on ``step``, while the method has not ended."""

    @abstractmethod
    def hyperparameters(self) -> dict[str, Any]:
        """The method's own settings."""

    @final
    def ended(self) -> bool:
        """Once only zeros are kept."""
        return self._ended is not None

    @final
    def zero_units(self) -> BoolArray:
        """What is zero now, as far as the sizes of the model's code allow it to leave. Asks the device."""
        return ~self._kept(self._zeros())

    def gone(self) -> BoolArray:
        """None while the rule acts, which looks at all units; then what it has left at zero."""
        return self._gone

    def rebuild(self) -> None:
        """The units that are left."""
        here = self.remains.here
        kind = VectorisedUnits if self._vectorised else PlainUnits
        self._units = LiveUnits(
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
        certain numbers of them. Warns where the budget is not met yet, or where they are not zero in the model.

        Raises:
            PlanError: no values of the model's attributes could follow the choice.
        """
        zero, left = self.zero_units(), self.remains
        keep = ~zero
        warn_of(self.label, self._not_ended(), left.space, zero[left.here])
        about = {"step": self.step, "method": self.name, **self.settings()}
        if self.budget is None:
            return self.plan_of_zeros(self.space, keep, about)
        if self.ended() and (told := slack_note(self.space, keep, self._limits, self.budget)):
            about["tight"] = told
        return self.plan_of_zeros(self.space, keep, provenance(self.space, keep, self.budget, **about))

    def _not_ended(self) -> str | None:
        if self.ended() or (self.step and self.budget is None) or (self.step and self.meets_budget()):
            return None
        left = f"does not meet the budget, {self.budget}"
        return not_ended(self.label, self.optimizer, self.step, self.schedule.until, left)

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
            macs=share("macs", left, self._dense),
            params=share("params", left, self._dense),
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
            **self.hyperparameters(),
        }

    def state(self) -> dict[str, Any]:
        """Which units are zero, and whether the method has ended."""
        return {"zero": self._zero.clone(), "ended": self._ended}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; the zeros themselves are in the model's parameters."""
        self._zero = state["zero"].to(self._device).clone()
        self._ended = None if state["ended"] is None else int(state["ended"])
        if self._ended is not None:
            self._keep_zeros()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """One truth value per unit, and a step or nothing."""
        check_mask("zero", state["zero"], self.space.num_units)
        if state["ended"] is not None and int(state["ended"]) < 1:
            raise ValueError("the step it ended at is not a step")

    def _zeros(self) -> BoolArray:
        return np.asarray(self._zero.cpu().numpy(), dtype=bool)

    def _kept(self, zero: BoolArray) -> BoolArray:
        return ~leaving(self.space, zero, self._steps)
