"""Units leave when the update has brought them to zero; at the end the budget takes what is still missing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, final

import numpy as np
from torch import Tensor

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray
from niwaki.criteria import normalise
from niwaki.criteria.registry import named
from niwaki.methods.checks import check_mask, diverged
from niwaki.methods.parts import Resumable, Selector, Stateless, Target
from niwaki.methods.schedule import Schedule
from niwaki.methods.status import Progress, share
from niwaki.methods.trained_units import TrainedUnits
from niwaki.selection import SelectionRequest, costs


class Choice(Resumable):
    """The units that the update acts on, chosen once."""

    @abstractmethod
    def scores(self, step: int) -> bool:
        """Whether the choice looks at the weights after ``step``."""

    @abstractmethod
    def observe(self, step: int) -> None:
        """After such a step."""

    @abstractmethod
    def chosen(self, step: int) -> BoolArray | None:
        """The units that the update acts on from ``step`` on, [num_units]; None as long as it acts on none."""

    @abstractmethod
    def marked(self) -> int | None:
        """How many units are meant to leave; None: those that vanish, whichever they are."""

    @abstractmethod
    def may_end(self, step: int) -> bool:
        """Whether the method ends after ``step`` already, if what is zero then meets the budget."""

    @abstractmethod
    def preference(self) -> FloatArray | float:
        """What the sizes of units are multiplied by before the smallest are taken to meet the budget."""


@final
class Everything(Stateless, Choice):
    """All units that can leave, from the step ``first`` on."""

    def __init__(self, units: TrainedUnits, target: Target, first: int) -> None:
        self._all: BoolArray = target.removal.candidates(units.space)
        self._first = first

    def scores(self, step: int) -> bool:
        """Nothing is to be compared."""
        return False

    def observe(self, step: int) -> None:
        """Never called."""

    def chosen(self, step: int) -> BoolArray | None:
        """All of them."""
        return self._all if step >= self._first else None

    def marked(self) -> None:
        """The update decides."""

    def may_end(self, step: int) -> bool:
        """The update goes on until the schedule ends."""
        return False

    def preference(self) -> float:
        """No unit is meant to leave before another."""
        return 1.0


@final
class Vanishing(Selector):
    """The update acts on the chosen units until ``schedule.until``, and those that it has brought to zero are the
    result. A budget that they do not meet yet is met then by a hard threshold: the smallest of the others, by their
    norm over the mean of their group, are set to zero as well. From then on zeros are kept, and everything else takes
    the bare optimizer's step.

    ``ended_at``: the step after which only zeros are kept, once it is known.

    Raises:
        MethodError: the schedule has a ramp or a fade, which mean nothing here.
    """

    def __init__(self, units: TrainedUnits, target: Target, schedule: Schedule, choice: Choice) -> None:
        schedule.check_fade(units.label)
        schedule.check_ramp(units.label)
        self.target, self.schedule, self.choice = target, schedule, choice
        self._units = units
        self._removable: BoolArray = np.zeros(units.space.num_units, dtype=bool)
        self.ended_at: int | None = None
        self._acting = False  # whether the update has been given its units

    def before(self, step: int) -> None:
        """The update may begin."""
        if self.ended_at is not None:
            return
        if self.choice.scores(step):
            self._units.engine.remember()
        chosen = self.choice.chosen(step)
        if chosen is not None and not self._acting:
            self._units.mark(chosen, np.zeros_like(chosen))
            self._acting = True

    def observe(self, step: int) -> None:
        """Let the choice look."""
        if self.ended_at is None and self.choice.scores(step):
            self.choice.observe(step)

    def left(self, step: int) -> None:
        """A unit may take as long as it needs."""

    def choose(self, step: int) -> None:
        """Keep the zeros; or see whether the end has come."""
        if self.ended_at is not None:
            self._units.clear()
            return
        early = self._acting and self.choice.may_end(step) and self.meets_budget()
        if early or step >= self.schedule.until:
            self._end(step)

    def _end(self, step: int) -> None:
        """The last act: units leave for good, as many as are zero, and as many more as the budget asks for."""
        space, zero = self._units.space, self._zeros()
        keep = self._kept(zero)
        if self.target.limits:
            sizes, steps = self._sizes(keep, step), self.target.steps
            keep = self.target.removal.select(space, sizes, SelectionRequest(self.target.limits, ~keep, steps))
        self.ended_at = step
        self._keep(zero | ~keep)
        self._units.clear()

    def _keep(self, zero: BoolArray) -> None:
        """From now on all of ``zero`` [num_units] is kept at zero, and nothing else is changed."""
        self._units.at_zero = self._units.on_device(zero)
        self._removable = ~self._kept(zero)
        self._units.mark(np.zeros_like(zero), zero)

    def _sizes(self, keep: BoolArray, step: int) -> FloatArray:
        """The norm of each unit over the mean norm of its group; of what nothing but a gate makes that mean."""
        norms = self._units.engine.values([named("magnitude")], 0)[0].double().cpu().numpy()
        if not np.isfinite(norms[keep]).all():
            raise diverged("weights", step)
        keep = keep & self.target.removal.candidates(self._units.space)
        gated = self._units.gated
        weighed = keep if gated is None else keep & ~gated
        sizes = normalise(self._units.space, np.where(weighed, norms, 0.0), weighed)
        return (sizes if gated is None else np.where(gated, 1.0, sizes)) * self.choice.preference()

    def meets_budget(self) -> bool:
        """Whether the units that are zero now meet the budget. Asks the device."""
        reached = costs(self._units.space.cost_model, self._kept(self._zeros()), self.target.limits)
        return all(reached[measure] <= limit for measure, limit in self.target.limits.items())

    def phase(self, step: int) -> str | None:
        """Plain training, the steps that the choice looks at, and then what the update says."""
        if self.ended_at is not None:
            return "done"
        if self.choice.scores(step):
            return "scoring"
        return "waiting" if self.choice.chosen(step) is None else None

    def ended(self, step: int) -> bool:
        """Once only zeros are kept."""
        return self.ended_at is not None

    def removed(self) -> BoolArray:
        """What is zero now, as far as the sizes of the model's code allow it to leave."""
        return ~self._kept(self._zeros())

    def zero(self) -> BoolArray:
        """The same units."""
        return self.removed()

    def removable(self) -> BoolArray:
        """None while the update acts; then what it has left at zero."""
        return self._removable

    def shortfall(self, step: int) -> str | None:
        """That the budget is not met yet, if so."""
        if self.ended_at is not None or (step and (self.target.budget is None or self.meets_budget())):
            return None
        return f"does not meet the budget, {self.target.budget}"

    def progress(self, step: int, phase: str) -> Progress:
        """How many units are zero, which asks the device."""
        zero, units = self._zeros(), self._units
        left = costs(units.space.cost_model, self._kept(zero), ("macs", "params"))
        marked = self.choice.marked() if self.ended_at is None else None
        return Progress(
            step=step,
            phase=phase,
            period=int(phase not in ("waiting", "scoring")),
            periods=1,
            units=int(self.target.removal.candidates(units.space).sum()),
            marked=int(zero.sum()) if marked is None else marked,
            zero=int(zero.sum()),
            macs=share("macs", left, self.target.dense),
            params=share("params", left, self.target.dense),
        )

    def describe(self, now: Progress) -> str:
        """Units and costs."""
        return (
            f"step {now.step}, {now.phase}; {now.zero} of {now.units} units zero"
            f"{f' of {now.marked} marked' if now.marked != now.zero else ''}; {now.macs:.1%} of the MACs and "
            f"{now.params:.1%} of the parameters left"
        )

    def take_back(self) -> None:
        """Nothing is only tried."""

    def settings(self) -> dict[str, Any]:
        """The schedule, the target, and the numbers of the choice."""
        return {
            "schedule": [self.schedule.start, self.schedule.until],
            **self.target.data,
            **self.choice.settings(),
        }

    def state(self) -> dict[str, Any]:
        """Which units are zero, whether the method has ended, and what the choice keeps."""
        return {"zero": self._units.at_zero.clone(), "ended": self.ended_at} | self.choice.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; the zeros themselves are in the model's parameters."""
        zero: Tensor = state["zero"]
        self._units.at_zero = zero.to(self._units.device).clone()
        self.ended_at = None if state["ended"] is None else int(state["ended"])
        self.choice.restore(state)
        nothing = np.zeros(self._units.space.num_units, dtype=bool)
        self._units.mark(nothing, nothing)
        self._acting = False
        if self.ended_at is not None:
            self._keep(self._zeros())

    def check_state(self, state: Mapping[str, Any]) -> None:
        """One truth value per unit, a step or nothing, and what the choice asks for."""
        check_mask("zero", state["zero"], self._units.space.num_units)
        if state["ended"] is not None and int(state["ended"]) < 1:
            raise ValueError("the step it ended at is not a step")
        self.choice.check_state(state)

    def _zeros(self) -> BoolArray:
        return np.asarray(self._units.at_zero.cpu().numpy(), dtype=bool)

    def _kept(self, zero: BoolArray) -> BoolArray:
        return ~self.target.removal.leaving(self._units.space, zero, self.target.steps)
