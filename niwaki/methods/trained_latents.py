"""A source of masks without a controller: a latent number per unit, which learns from the training's own gradients."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import MethodError
from niwaki.masks.deterministic import DeterministicTraining
from niwaki.masks.first_call import FirstCall, ModelCall, mean_square
from niwaki.masks.folding import fold_gates_
from niwaki.masks.gate_check import check_gates
from niwaki.masks.training import over_processes
from niwaki.methods.mask_source import MaskSource
from niwaki.methods.stages import Stages
from niwaki.methods.trained_units import TrainedUnits
from niwaki.per_unit.unit_gates import UnitGates
from niwaki.trace.model_state import preserved


@final
class TrainedLatents(MaskSource):
    """Inside of `applied` units are multiplied by their scales where they are read, and the backward pass that gives
    weights their gradients gives these theirs. Before each step of the optimizer the latents take one of their own.

    Until the mask is fixed no unit is held at zero. Then the scales of those that stay are multiplied into the weights,
    and the optimizer's averages follow, and ``ema``, averaged copies of the model; from then on `applied` is the mask,
    of 0 and 1.
    """

    def __init__(self, units: TrainedUnits, training: DeterministicTraining, ema: Sequence[nn.Module] = ()) -> None:
        self._units, self.training, self.taken, self._ema = units, training, 0, ema
        self._space: SearchSpace = units.space
        self._gates: UnitGates = training.gates
        self._leaf: Tensor | None = None  # what units were multiplied by since the last step
        self._mask: Tensor | None = None
        self._checked = self._warned = False

    @property
    def inside(self) -> bool:
        """Whether the model is in a block of `applied`."""
        return self._gates.inside

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model computes under the scales, or under the mask. At the end of the first block in which it is
        called, it is called again to see whether gates of 0 are what a cut is.

        Raises:
            MethodError: they are not, or the model is in such a block already.
        """
        first = FirstCall(self._space.model)
        with nullcontext() if self._checked else first.watched(), self._gates.applied(self._at_hand()):
            yield
        if first.call is not None:
            self._check(first.call)
            self._checked = True

    def _at_hand(self) -> Tensor:
        """What units are multiplied by now, [num_units]."""
        if self._mask is not None:
            return self._mask
        if self._leaf is None:
            self._leaf = self.training.gate_values().clone().requires_grad_()
        if self._leaf.grad is not None:
            self._leaf.grad = self._not_discarded(self._leaf.grad)
        return self._leaf

    def _check(self, call: ModelCall) -> None:
        with preserved(self._space.model, (call.args, call.kwargs)):
            self._space.model.eval()
            check_gates(
                self._space,
                self._gates,
                lambda model: mean_square(call(model)),
                "the mean square of what the model returns",
                "the model, in eval mode,",
            )

    def _not_discarded(self, gradient: Tensor) -> Tensor | None:
        """``gradient``, of the blocks since the last step; nothing of it where the gradients of all parameters have
        been zeroed since, as for a batch that is left out. Does not wait for the device."""
        held = [one.grad for group in self._units.optimizer.param_groups for one in group["params"]]
        found = [one for one in held if one is not None]
        if not found:
            return None
        if any(one.layout is not torch.strided or is_traceable_wrapper_subclass(one) for one in found):
            return gradient
        sizes = torch.stack([size.to(gradient.device) for size in torch._foreach_norm(found)])
        return torch.where((sizes != 0).any(), gradient, 0)

    def due(self, step: int, stages: Stages) -> bool:
        """Before every step until the mask is fixed. What gradients said before the first of these is forgotten."""
        if step < stages.start:
            self._leaf = None
        return stages.start <= step <= stages.freeze

    def check_first(self, step: int, stages: Stages) -> None:
        """It begins by itself."""

    def check_taken(self, step: int, stages: Stages) -> None:
        """It takes all of its steps."""

    def step(self, progress: float, batch: Any = None) -> None:
        """A step on the gradients of all blocks since the last one. Where they are not finite, as a gradient scaler may
        find them, the latents wait."""
        leaf = self._leaf
        if leaf is None or leaf.grad is None:
            raise MethodError(
                f"{self._units.label} learns from gradients that are computed under its scales, and there are none for "
                "this step. Run the forward and the backward pass inside `with method.masked():`."
            )
        if not (self._checked or self._warned):
            self._warned = True
            warnings.warn(
                f"{self._units.label} gets gradients, but no call of the model has been seen inside of "
                "`with method.masked():`, so it could not be checked that its gates of 0 are what a cut is. Call the "
                "model itself, and not its forward or a part of it; or compare by yourself at the end: "
                "niwaki.check(model, method.plan(), inputs).",
                stacklevel=2,
            )
        task = over_processes(leaf.grad)
        self._leaf = None
        self.taken += 1
        if bool(task.isfinite().all()):
            self.training.learn(task, progress, progress)

    @torch.no_grad()
    def keeps(self) -> BoolArray:
        """The units [num_units] above the threshold."""
        return np.asarray(self.training.latents.gates().hard.cpu().numpy() > 0.5)

    def holds(self) -> BoolArray:
        """All units: scales make them small, not the update."""
        return np.ones(self._space.num_units, dtype=bool)

    def worth(self) -> FloatArray:
        """The retention of each unit, and its scale where that is equal."""
        return self.training.worth()

    @torch.no_grad()
    def protected(self) -> BoolArray:
        """The largest latents of each group."""
        return np.asarray(self.training.latents.protected().cpu().numpy())

    def let_go(self) -> None:
        """Until the mask is fixed, the weights have been trained for scales that are not in them."""
        if self._mask is None and bool((self.training.gate_values() != 1).any()):
            warnings.warn(
                f"{self._units.label} lets go of the model before its mask is fixed. The weights have been trained "
                "under scales that are not in them yet, so that the model computes something else than it did inside "
                "of `with method.masked():`.",
                stacklevel=5,
            )

    @torch.no_grad()
    def fixed(self, keep: BoolArray) -> None:
        """Multiply the weights by the scales of the units that stay."""
        self.training.freeze(keep)
        scales = self.training.gate_values()
        fold_gates_(self._space, self._gates, torch.where(scales > 0, scales, 1.0), self._units.optimizer, self._ema)
        self._leaf, self._mask = None, (scales > 0).to(scales)

    def settings(self) -> dict[str, Any]:
        """What it is."""
        return {"generator": self.training.latents.name}

    def state(self) -> dict[str, Any]:
        """The latents and their training."""
        return {"latents": self.training.state(), "latent_steps": self.taken}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.training.restore(state["latents"])
        self.taken, self._leaf = int(state["latent_steps"]), None
        scales = self.training.gate_values()
        self._mask = (scales > 0).to(scales) if self.training.frozen else None

    def check_state(self, state: Mapping[str, Any]) -> None:
        """The state of a training of these latents, and a number."""
        self.training.check_state(state["latents"])
        if int(state["latent_steps"]) < 0:
            raise ValueError("the number of steps of its latents is negative")
