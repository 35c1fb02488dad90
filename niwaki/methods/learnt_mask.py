"""The selector of Auto-Train-Once and its kin: a mask that is learnt while the network trains, and is then held."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, final

import numpy as np
import torch

from niwaki.core.space import BoolArray
from niwaki.errors import MethodError
from niwaki.methods.checks import check_mask
from niwaki.methods.early_look import EarlyLook
from niwaki.methods.mask_source import MaskSource
from niwaki.methods.parts import Selector, Target
from niwaki.methods.schedule import Schedule
from niwaki.methods.stages import Stages
from niwaki.methods.status import Progress, share
from niwaki.methods.trained_units import TrainedUnits
from niwaki.selection import SelectionRequest, costs

LEARNING, ACTING, ENDED = 0, 1, 2


@final
class LearntMask(Selector):
    """The units that leave are those that the ``controller`` masks, until the mask is frozen: then those that the
    budget removes if each unit is worth what the controller says, the logit of its gate for instance.

    ``mask`` [num_units]: what leaves. ``learnt``: what the controller's own mask cost when it was frozen, by measure,
    as shares of the dense network; None before.

    ``early``: whether the controller may take its step when a forward pass begins; see `EarlyLook`.

    Raises:
        MethodError: the schedule has a ramp or a fade, which mean nothing here.
    """

    def __init__(
        self, units: TrainedUnits, target: Target, schedule: Schedule, controller: MaskSource, early: bool = False
    ) -> None:
        schedule.check_fade(units.label)
        schedule.check_ramp(units.label)
        self.target, self.schedule, self.stages = target, schedule, Stages.of(schedule)
        self._units, self.controller = units, controller
        self.mask: BoolArray = np.zeros(units.space.num_units, dtype=bool)
        self.learnt: dict[str, float] | None = None
        self._state, self._last = LEARNING, 0  # the last: the step before which the controller has taken one
        self._next = 1  # the optimizer's next step
        self._early = EarlyLook(units.space.model, self._learn_early) if early else None

    def before(self, step: int) -> None:
        """A step of the controller, if it is time for one; an error leaves everything as it was.

        Raises:
            MethodError: the model is under the mask: what is written into its weights now would be lost.
        """
        self._check_outside()
        if self._early is not None:
            self._early.step_begins()
        if self.learnt is not None or self._last == step:
            return
        if self.controller.due(step, self.stages):
            self.learn(step)
        else:
            self.controller.check_taken(step, self.stages)

    def learn(self, step: int, batch: Any = None) -> None:
        """A step of the controller before the optimizer's step number ``step``.

        Raises:
            MethodError: the mask is frozen, the first step comes too late, the model is under the mask, or the
                controller refuses.
        """
        self._check_outside()
        if self.learnt is not None:
            raise MethodError(
                f"The mask of {self._units.label} was fixed after step {self.stages.freeze}, 60 % of the way through "
                "its schedule: its controller takes no more steps. Call controller_step(batch) up to then."
            )
        if not self.controller.taken:
            self.controller.check_first(step, self.stages)
        self.controller.step(self.stages.progress(step), batch)
        self._last = step
        mask = ~self.controller.holds()
        if (mask != self.mask).any():  # what acts on it need not be built anew otherwise
            self._hold(mask)

    def _learn_early(self) -> None:
        """If the next step is one for it. What goes wrong now goes wrong again before that step, and is said then."""
        step = self._next
        if self.learnt is None and self._last != step and self.controller.due(step, self.stages):
            with suppress(Exception):
                self.learn(step)

    def _watch(self, step: int) -> None:
        """The optimizer's next step is number ``step``."""
        self._next = step
        if self._early is not None:
            self._early.watch(self.stages.start - 1 <= step <= self.stages.freeze)

    def _check_outside(self) -> None:
        if self.controller.inside:
            raise MethodError(
                f"{self._units.label} takes a step inside of `with method.masked():`, where the model holds products "
                "of its weights and the mask, and gets its weights back at the end. Run the forward and the backward "
                "pass inside, and optimizer.step() after the block."
            )

    def observe(self, step: int) -> None:
        """The controller has looked before."""

    def left(self, step: int) -> float | None:
        """A linear fade in the last tenth."""
        return self.stages.left(step)

    def choose(self, step: int) -> None:
        """The next stage may begin; zeros stay zero once the schedule has ended."""
        if step == self.stages.project:
            self._state = ACTING
            self._hold(self.mask)
        if step == self.stages.freeze:
            self._freeze()
        if step == self.schedule.until:
            self._state = ENDED
            self._hold(self.mask)
        if self._state == ENDED:
            self._units.clear()
        self._watch(step + 1)

    def _hold(self, mask: BoolArray) -> None:
        """From now on ``mask`` [num_units] leaves."""
        self.mask, nothing = mask, np.zeros_like(mask)
        if self._state == ACTING:
            self._units.mark(mask, nothing)
        if self._state == ENDED:
            self._units.mark(nothing, mask)

    def _freeze(self) -> None:
        """What the budget removes, by what the controller says of each unit."""
        space, kept, limits = self._units.space, self.controller.keeps(), self.target.limits
        found, dense = (costs(space.cost_model, keep, tuple(limits)) for keep in (kept, np.ones_like(kept)))
        self.learnt = {measure: share(measure, found, dense) for measure in found}
        keep = self._chosen()
        self.controller.fixed(keep)
        self._hold(~keep)

    def _chosen(self) -> BoolArray:
        """The units to keep within the budget; those that the controller protects among them, if that is possible."""
        space, limits, steps = self._units.space, self.target.limits, self.target.steps
        worth, protected = self.controller.worth(), self.controller.protected()
        for staying in (protected, None):
            keep = self.target.removal.select(
                space, worth, SelectionRequest(limits, None, steps, "space", staying=staying)
            )
            reached = costs(space.cost_model, keep, tuple(limits))
            if all(reached[measure] <= limit for measure, limit in limits.items()):
                break
        return keep

    def phase(self, step: int) -> str | None:
        """Plain training, learning, and then what the update says."""
        if self.ended(step - 1):
            return "done"
        if step < self.stages.start:
            return "waiting"
        return "learning" if step <= self.stages.project else None

    def ended(self, step: int) -> bool:
        """After the schedule."""
        return step >= self.schedule.until

    def removed(self) -> BoolArray:
        """The mask, as much of it as the sizes of the model's code allow."""
        return self.target.removal.leaving(self._units.space, self.mask, self.target.steps)

    def zero(self) -> BoolArray:
        """The mask, once the schedule has ended. Before, what is zero may move again."""
        return self.mask if self._state == ENDED else np.zeros_like(self.mask)

    def removable(self) -> BoolArray:
        """The same units."""
        return self.zero()

    def shortfall(self, step: int) -> str | None:
        """That the mask is not zero yet, or not even final."""
        if self.ended(step):
            return None
        moves = "" if self.learnt is not None else ", and need not meet the budget, " + str(self.target.budget)
        return f"takes units that are not zero yet{moves}"

    def progress(self, step: int, phase: str) -> Progress:
        """What is masked, and how much of it is zero, which asks the device."""
        units = self._units
        left = costs(units.space.cost_model, ~self.mask, ("macs", "params"))
        at_zero = np.asarray(units.at_zero.cpu().numpy(), dtype=bool)
        zero = self.mask if self._state == ENDED else self.mask & at_zero
        return Progress(
            step=step,
            phase=phase,
            period=int(self._state != LEARNING),
            periods=1,
            units=int(self.target.removal.candidates(units.space).sum()),
            marked=int(self.mask.sum()),
            zero=int(zero.sum()),
            macs=share("macs", left, self.target.dense),
            params=share("params", left, self.target.dense),
        )

    def describe(self, now: Progress) -> str:
        """Units, costs, and what has been learnt."""
        own = ", ".join(f"{part:.1%} of {measure}" for measure, part in (self.learnt or {}).items())
        return (
            f"step {now.step}, {now.phase}; {now.marked} of {now.units} units masked, {now.zero} zero; {now.macs:.1%} "
            f"of the MACs and {now.params:.1%} of the parameters left; mask learnt in {self.controller.taken} steps"
            f"{f', would itself keep {own}' if own else ''}"
        )

    def take_back(self) -> None:
        """Nothing is only tried; but scales may not be in the weights yet."""
        self.controller.let_go()
        if self._early is not None:
            self._early.watch(False)

    def settings(self) -> dict[str, Any]:
        """The schedule, and the kind of the generator."""
        return {"schedule": [self.schedule.start, self.schedule.until], **self.controller.settings()}

    def state(self) -> dict[str, Any]:
        """The mask, and what the controller keeps."""
        own = {
            "mask": torch.from_numpy(self.mask.copy()),
            "learnt": None if self.learnt is None else dict(self.learnt),
            "stage": self._state,
            "last": self._last,
            "next": self._next,
            "early": self._early is not None and self._early.usual,
        }
        return own | self.controller.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.learnt = None if state["learnt"] is None else dict(state["learnt"])
        self._state, self._last = int(state["stage"]), int(state["last"])
        if self._early is not None:
            self._early.usual = bool(state.get("early", False))  # not in checkpoints of former versions
        self._watch(int(state.get("next", 0)))
        self.controller.restore(state)
        nothing = np.zeros_like(self.mask)
        self._units.mark(nothing, nothing)
        self._hold(state["mask"].cpu().numpy().copy())

    def check_state(self, state: Mapping[str, Any]) -> None:
        """A mask, a stage and a step, and what the controller asks for."""
        check_mask("mask", state["mask"], self._units.space.num_units)
        if int(state["stage"]) not in (LEARNING, ACTING, ENDED) or int(state["last"]) < 0:
            raise ValueError("its stage, or the last step of its controller, is not one")
        if state["learnt"] is not None and sorted(state["learnt"]) != sorted(self.target.limits):
            raise ValueError("what its mask has learnt is not of this budget")
        self.controller.check_state(state)
