"""DDPMasks: a choice of units that is learnt, without chance and without training the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from niwaki.core.edits import Edit
from niwaki.core.scalars import is_number, is_whole, whole_seed
from niwaki.core.space import BoolArray, SearchSpace, check_space
from niwaki.criteria.losses import Loss, loss_of
from niwaki.errors import MethodError
from niwaki.masks.deterministic import FREEZE, DeterministicTraining
from niwaki.masks.divergence import Pick
from niwaki.masks.folding import fold_gates_, scaled_before
from niwaki.masks.held_out import HeldOut
from niwaki.masks.latents import Latents
from niwaki.masks.learner import MaskLearner
from niwaki.per_unit.unit_gates import UnitGates
from niwaki.selection import UNITS, SelectionRequest, costs
from niwaki.selection.budget import MODELLED, Budget, check_met, followed
from niwaki.trace.model_state import preserved


@dataclass(frozen=True, slots=True)
class MaskProgress:
    """What a step has found: the ``step`` (the first is 1) of ``steps``, the ``loss`` of the masked network, and how
    far its cost is from the limit of the moment, ``off``, as a share of the dense network; whether the units are
    ``decided``, after which ``off`` is 0."""

    step: int
    steps: int
    loss: float
    off: float
    decided: bool


@final
class DDPMasks(MaskLearner):
    """Learns which units a trained network needs, and by what each of those that stay is to be scaled: in place of
    scores in `niwaki.choose`. Nothing is drawn at random but the batches: the mask that is learnt is the one that is
    cut (Deterministic Differentiable Pruning, arXiv 2603.08065).

    Every unit is multiplied by a latent number where it is read. The latents, and nothing else, are trained in eval
    mode: on the loss, on the divergence from the dense network's outputs, and on a budget that falls to its limit and
    sets its own price (`niwaki.masks.deterministic.DeterministicTraining`). After three quarters of the steps the units
    are chosen under the budget by what the latents say, and the scales of those that stay learn on without the others.

    `niwaki.choose` does not change the model, so the scales are not in it. `fold_` multiplies its weights by those of
    the last choice. Without it the cut network lacks them, and does worse; `niwaki.cut` warns of that.

    A step takes two forward passes and a backward one, which computes no gradient of a weight: one forward pass more
    than a step of training, and none more with ``divergence=0``. It holds a second copy of the weights that are gated.

    Args:
        batches: what it learns from: a DataLoader, or whatever can be iterated again and again.
        loss_fn: ``loss_fn(model, batch)``, the scalar loss of a batch; or a loss of torch, such as
            ``torch.nn.CrossEntropyLoss()``, for batches (inputs, labels).
        steps: how many it takes, 4 or more.
        divergence: the weight of KL(dense || masked), between the model's outputs as distributions over classes.
        outputs: from what the model returns to logits [..., classes]. By default a tensor, or its ``logits``: classes
            are the last dimension, but the second of four or more.
        lr: of the latents; 6 / steps by default. It falls to a twentieth.
        seed: of how a loader shuffles.
        progress: called with a `MaskProgress` after each step; `niwaki.report.MaskBar` shows a bar.

    Raises:
        MethodError: a number makes no sense, or ``batches`` cannot be iterated twice. In `niwaki.choose`: there is no
            batch, its loss teaches nothing, the outputs have no logits, or no weight reads the units of a group
            linearly.

    Example:
        >>> import niwaki, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
        >>> space = niwaki.search_space(model, torch.randn(1, 4))
        >>> batches = [(torch.randn(8, 4), torch.randint(0, 2, (8,))) for _ in range(3)]
        >>> masks = niwaki.DDPMasks(batches, torch.nn.CrossEntropyLoss(), steps=20)
        >>> plan = niwaki.choose(space, masks, niwaki.Budget(macs=0.5))
        >>> space.cost(plan).macs
        30
        >>> small = niwaki.cut(masks.fold_(), plan)
    """

    name = "ddp"

    def __init__(
        self,
        batches: Iterable[Any],
        loss_fn: Loss,
        *,
        steps: int = 300,
        divergence: float = 2.0,
        outputs: Pick | None = None,
        lr: float | None = None,
        seed: int = 0,
        progress: Callable[[MaskProgress], object] | None = None,
    ) -> None:
        if not is_whole(steps) or steps < 4:
            raise MethodError(f"steps={steps!r} must be a whole number, 4 or more.")
        if not is_number(divergence) or not 0 <= divergence < float("inf"):
            raise MethodError(
                f"divergence={divergence!r} must be a number, 0 or more: it weighs the outputs of the dense network."
            )
        if lr is not None and (not is_number(lr) or not 0 < lr < float("inf")):
            raise MethodError(f"lr={lr!r} must be a number above 0.")
        for name, given in (("outputs", outputs), ("progress", progress)):
            if given is not None and not callable(given):
                raise MethodError(f"{name}={given!r} is not a function.")
        self._data, self._loss_fn = HeldOut(batches, whole_seed(seed)), loss_fn
        self._steps, self._divergence, self._pick = int(steps), float(divergence), outputs
        self._rate, self._progress = lr, progress
        self._learnt: tuple[SearchSpace, UnitGates, Tensor] | None = None
        self._own: dict[str, float] = {}
        self._folded = False

    @property
    def scales(self) -> Tensor:
        """What each unit that stays is multiplied by, [num_units]; 1 for those that leave.

        Raises:
            MethodError: nothing has been learnt.
        """
        return self._result()[2].clone()

    def learn(self, space: SearchSpace, budget: Budget) -> BoolArray:
        """As `MaskLearner.learn`."""
        check_space(space)
        limits = budget.absolute(space, followed(space, MODELLED))
        least = UNITS.select(space, np.ones(space.num_units), SelectionRequest(limits, steps=budget.steps))
        check_met(space, least, limits, budget.steps)
        latents = Latents(space)
        training = DeterministicTraining(
            space, latents, limits, self._steps, weight=self._divergence, pick=self._pick, lr=self._rate
        )
        freeze, keep = int(FREEZE * self._steps), np.ones(space.num_units, dtype=bool)
        self._data.move(0, 0)
        with preserved(space.model):
            for step in range(self._steps):
                batch = self._data.next()
                space.model.eval()
                loss = partial(loss_of, self._loss_fn, batch=batch)
                if not step:
                    training.check(loss)
                if step == freeze:
                    keep = self._decide(space, training, budget, limits)
                    training.freeze(keep)
                value, off = training.step(loss, step / self._steps)
                if self._progress is not None:
                    self._progress(MaskProgress(step + 1, self._steps, value, off, training.frozen))
        scales = torch.where(torch.from_numpy(keep).to(latents.values.device), training.gate_values(), 1.0)
        self._learnt, self._folded = (space, training.gates, scales), False
        return keep

    def _decide(
        self, space: SearchSpace, training: DeterministicTraining, budget: Budget, limits: dict[str, float]
    ) -> BoolArray:
        """The units to keep within the budget; the most important of each group among them, if that is possible."""
        dense = costs(space.cost_model, np.ones(space.num_units, dtype=bool), tuple(limits))
        own = costs(space.cost_model, training.latents.gates().hard.detach().cpu().numpy() > 0.5, tuple(limits))
        self._own = {measure: own[measure] / max(dense[measure], 1.0) for measure in limits}
        protected = np.asarray(training.latents.protected().cpu().numpy())
        for staying in (protected, None):
            request = SelectionRequest(limits, steps=budget.steps, compare="space", staying=staying)
            keep = UNITS.select(space, training.worth(), request)
            reached = costs(space.cost_model, keep, tuple(limits))
            if all(reached[measure] <= limit for measure, limit in limits.items()):
                break
        return keep

    def fold_(self, optimizer: Optimizer | None = None) -> nn.Module:
        """Multiply the weights of the model by the scales of the last choice, where the units are read, and return the
        model. The network under the scales and the one with these weights compute the same.

        Where a unit enters a mean over its group (RMSNorm), the weights that make it are multiplied instead.

        Args:
            optimizer: that of the model, if it is to train on: its averages of gradients follow. Gradients do not.

        Raises:
            MethodError: nothing has been learnt, or the scales are in the weights already.
            ShrinkError: a state of the optimizer cannot follow. Nothing has changed then.
        """
        space, gates, scales = self._result()
        if self._folded:
            raise MethodError(
                "The scales of this choice are in the weights of the model already. To learn others, call "
                "niwaki.choose again."
            )
        fold_gates_(space, gates, scales, optimizer)
        self._folded = True
        return space.model

    def records(self) -> tuple[Edit, ...]:
        """That the scales are to be in the weights."""
        return scaled_before(*self._result())

    def settings(self) -> dict[str, Any]:
        """Steps and weights, and what the mask of the latents themselves would have cost, as shares of the dense
        network."""
        return {"steps": self._steps, "divergence": self._divergence, "own": dict(self._own)}

    def _result(self) -> tuple[SearchSpace, UnitGates, Tensor]:
        if self._learnt is None:
            raise MethodError("No mask has been learnt yet: pass this to niwaki.choose in place of scores first.")
        return self._learnt
