"""The controller of Auto-Train-Once: a mask generator, and the held-out batches that it learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, final

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.losses import Loss, loss_of
from niwaki.errors import MethodError
from niwaki.masks.held_out import HeldOut
from niwaki.masks.training import MaskTraining
from niwaki.methods.mask_source import MaskSource
from niwaki.methods.stages import Stages
from niwaki.trace.model_state import preserved

_FAINT = 1e-3  # of a logit: what units that the mask does not keep are worth, if the budget has room for them


@final
class Controller(MaskSource):
    """Takes steps with the model in eval mode, except that BatchNorm takes the statistics of the batch: those that it
    keeps are of the network without a mask, and early in a training they are of weights that are long gone. The model,
    its gradients and the random generators are as they were after each step, and everything is if it is refused.

    ``data``: None if the user brings the batches. ``taken``: how many steps there were. ``training``: of the generator.
    ``label``: of the method whose mask it learns.
    """

    def __init__(
        self, label: str, space: SearchSpace, training: MaskTraining, loss_fn: Loss, data: HeldOut | None
    ) -> None:
        self._label = label
        self._space, self.training, self._loss_fn, self.data = space, training, loss_fn, data
        self.taken = 0
        self._checked = False
        if data is not None:
            self._with(data.next, self._check)
            data.move(0, 0)

    @property
    def inside(self) -> bool:
        """Whether the model is in a block of the gates."""
        return self.training.gates.inside

    def due(self, step: int, stages: Stages) -> bool:
        """At regular intervals, if it has batches."""
        return self.data is not None and stages.controls(step)

    def check_first(self, step: int, stages: Stages) -> None:
        """In the last quarter of its time it looks at no batch."""
        if not self.training.looks(stages.progress(step)):
            raise MethodError(
                f"The controller of {self._label} takes its first step before step {step}, but in the last quarter of "
                f"its time, which ends with step {stages.freeze}, only the budget counts: nothing would be learnt. "
                f"Call controller_step from step {stages.start} on."
            )

    def check_taken(self, step: int, stages: Stages) -> None:
        """The user may have forgotten to call it."""
        if step == stages.freeze and not self.taken:
            raise MethodError(
                f"{self._label} was given no batches, and controller_step(batch) has not been called before step "
                f"{step}, on which the mask is fixed: nothing has been learnt. Call it every {stages.every} steps "
                f"from step {stages.start} on with a batch that is held out of the training, or pass batches=."
            )

    def step(self, progress: float, batch: Any = None) -> None:
        """One step at the share ``progress`` of its time, on the next of its batches, or on ``batch`` if it has none.
        In the last quarter it looks at no batch.

        Raises:
            MethodError: there is no batch, its loss teaches nothing, or the gates of a group are not what they should
                be (which is looked at once).
        """
        if self.training.looks(progress):
            self._look(progress, batch)
        else:
            self.training.settle(progress)
        self.taken += 1

    def _look(self, progress: float, batch: Any) -> None:
        def learn(loss: Callable[[nn.Module], Any]) -> None:
            self._check(loss)
            self.training.step(loss, progress)

        data = self.data
        before = None if data is None else (data.passes, data.place)
        try:
            self._with((lambda: batch) if data is None else data.next, learn)
        except BaseException:
            if data is not None and before is not None:
                data.move(*before)
            raise

    def _with(self, next_batch: Callable[[], Any], do: Callable[[Callable[[nn.Module], Any]], None]) -> None:
        """Let ``do`` have the loss of a batch, as a function of the model."""
        with preserved(self._space.model):
            batch = next_batch()
            _by_batches(self._space.model)
            do(partial(loss_of, self._loss_fn, batch=batch))

    def _check(self, loss: Callable[[nn.Module], Any]) -> None:
        if not self._checked:
            self.training.check(loss)
            self._checked = True

    @torch.no_grad()
    def keeps(self) -> BoolArray:
        """The units [num_units] that the mask keeps, without chance."""
        return np.asarray(self.training.generator.gates().hard.cpu().numpy() > 0.5)

    def holds(self) -> BoolArray:
        """The same units: those that it masks are projected."""
        return self.keeps()

    @torch.no_grad()
    def worth(self) -> FloatArray:
        """What each unit [num_units] is worth in a choice: the logit of its gate, or next to nothing if that is
        negative.

        With gates that are open with probabilities p, the likeliest mask within a budget is the one with the largest
        sum of log(p / (1 - p)), the logits: where the mask of the generator meets the budget, that is this mask. Were
        a unit worth p itself, ten cheap ones with p = 0.1 would drive out an expensive one with p = 0.9.
        """
        logits = self.training.generator.gates().logits.double()
        found: FloatArray = (logits.clamp(min=0) + _FAINT * torch.sigmoid(logits)).cpu().numpy()
        return found

    def protected(self) -> BoolArray:
        """The units [num_units] that no budget takes, if it can be met without."""
        return np.asarray(self.training.generator.protected().cpu().numpy())

    def let_go(self) -> None:
        """Nothing of it is in the model."""

    def fixed(self, keep: BoolArray) -> None:
        """It is not asked any more."""

    def settings(self) -> dict[str, Any]:
        """The kind of the generator."""
        return {"generator": self.training.generator.name}

    def state(self) -> dict[str, Any]:
        """The generator and its training, and where in the batches it is."""
        return {
            "controller": self.training.state(),
            "controller_steps": self.taken,
            "held_out": None if self.data is None else self.data.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.training.restore(state["controller"])
        self.taken = int(state["controller_steps"])
        if self.data is not None and state["held_out"] is not None:
            self.data.move(int(state["held_out"]["passes"]), int(state["held_out"]["place"]))

    def check_state(self, state: Mapping[str, Any]) -> None:
        """The state of a training of this generator, and numbers."""
        self.training.check_state(state["controller"])
        if int(state["controller_steps"]) < 0:
            raise ValueError("the number of steps of its controller is negative")
        if state["held_out"] is not None:
            HeldOut.check_state(state["held_out"])


def _by_batches(model: nn.Module) -> None:
    """Eval mode, with the norms that keep statistics in train mode."""
    model.eval()
    for module in model.modules():
        if isinstance(module, _NormBase):
            module.train()
