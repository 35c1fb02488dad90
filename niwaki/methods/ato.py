"""ATO: Auto-Train-Once, whose mask is learnt by a controller while the network trains (arXiv 2403.14729)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
from torch import nn
from torch.optim import Optimizer

from niwaki.core.space import SearchSpace
from niwaki.criteria.losses import Loss
from niwaki.errors import MethodError
from niwaki.masks.held_out import HeldOut
from niwaki.masks.protocol import MaskGenerator
from niwaki.masks.registry import generator_named
from niwaki.masks.training import MaskTraining
from niwaki.methods.checks import check_number
from niwaki.methods.controller import Controller
from niwaki.methods.learnt_mask import LearntMask
from niwaki.methods.method import Method
from niwaki.methods.parts import Target
from niwaki.methods.projection import Projection
from niwaki.methods.registry import Training, register
from niwaki.methods.schedule import Schedule
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.stages import Stages
from niwaki.methods.trained_units import TrainedUnits
from niwaki.selection.budget import Budget, check_budget


class ATO(Method):
    """Auto-Train-Once on any optimizer: a small network, the controller, learns which units the model needs while the
    model trains, and the units that it masks are projected to zero.

    The model always trains at full width. Between ``schedule.start`` and ``schedule.until``, of n steps:

    * from ``start`` on the controller takes a step before every 20th of the optimizer's (more often where it would not
      come to 60 otherwise): it draws gates with logistic noise, straight through, and minimises the loss of a held-out
      batch under them, in eval mode with the statistics of the batch, plus ``budget_weight`` times
      log(max(a, b) / min(a, b)), where a is the cost of its mask without noise and b the budget (eq. 1 to 5), which
      comes down from the cost of the dense network until 0.36 n. `niwaki.masks` has what can be the controller;
    * from 0.2 n on, masked units are projected after each step: y <- argmin_z t ||z|| + ||z - y||^2 / 2, the group
      soft threshold (eq. 7), where t brings a unit that nothing resists to zero in 0.4 n. A unit that the controller
      takes out of its mask trains plainly again;
    * at 0.6 n the mask is frozen: it is what `niwaki.choose` would remove if each unit were worth the logit of its
      gate, the likeliest mask within the budget. So it meets the budget, ``round_to`` and ``min_units`` hold, and every
      group keeps a unit. Units are now projected four times as fast;
    * in the last tenth what is left of them fades linearly. After ``until`` they are exactly zero, and stay so.

    What differs from the released code: the mask that is reported is the mask that is cut, and depends on no chance;
    the budget is lowered step by step, and norms see the batch under its mask; the task's gradient by the gates is
    never longer than the budget's, and vanishes in the last quarter of the controller's time, so that its mask meets
    the budget; no group keeps less than half of the share that all groups would keep evenly (see
    `niwaki.masks.training.MaskTraining`); the projection needs no lambda and reaches zero under AdamW.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any ``torch.optim`` optimizer that holds all parameters of the space.
        budget: what must hold after ``schedule.until`` steps.
        schedule: ``start`` is the controller's first step. Its periods mean nothing here.
        loss_fn: ``loss_fn(model, batch)``, the scalar loss of a batch; or a loss of torch, such as
            ``torch.nn.CrossEntropyLoss()``, for batches (inputs, labels).
        batches: what the controller learns from, held out of the training (5 % of the data): a DataLoader, or
            whatever can be iterated again and again. None: you call `controller_step`.
        generator: the name of a mask generator in `niwaki.masks`, or one that was built for this ``space``. ``"gru"``
            is the paper's.
        budget_weight: gamma, which weighs the budget against the loss.
        projection: ``"prox"``, or ``"half-space"``: the step of `niwaki.DHSPG` on the masked units.
        penalty: lambda, instead of t: the proximal step of lambda * ||x|| in the metric h of the optimizer (Adam and
            its kin, RMSprop, Adagrad; 1 for SGD), after which x is zero if ||h y|| <= lr * lambda; 100 times that from
            0.6 n on. For other optimizers lambda is multiplied by the root of the number of weights. It takes longer.
        seed: of the controller and its noise.
        shrink: True lets the units leave the model in place after ``until``; see `ShrinkPolicy`.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met.
        MethodError: the optimizer does not fit the space, a number makes no sense, no weight reads the units of a group
            linearly, ``batches`` cannot be iterated twice, or the loss of the first of them teaches nothing. Before a
            step of the optimizer: the batches are at their end, the loss is not finite.
        UnknownName: there is no mask generator of that name.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> held_out = [torch.randn(8, 4) for _ in range(3)]
    >>> budget, schedule = niwaki.Budget(macs=0.5), niwaki.Schedule(start=2, until=42)
    >>> def loss_fn(model, x):
    ...     return model(x).square().mean()
    >>> method = niwaki.ATO(space, optimizer, budget, schedule, loss_fn=loss_fn, batches=held_out)
    >>> for _ in range(42):
    ...     optimizer.zero_grad()
    ...     loss_fn(model, torch.randn(8, 4)).backward()
    ...     optimizer.step()
    >>> method.progress.phase, method.progress.macs
    ('done', 0.5)
    >>> small = niwaki.cut(model, method.plan())
    """

    name, label = "ato", "ATO"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        loss_fn: Loss,
        batches: Iterable[Any] | None = None,
        generator: str | MaskGenerator = "gru",
        budget_weight: float = 4.0,
        projection: Literal["prox", "half-space"] = "prox",
        penalty: float | None = None,
        seed: int = 0,
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        units = TrainedUnits(self.label, space, optimizer, vectorised)
        check_budget(budget, space=space)
        Schedule.check(schedule, self.label)
        check_number("budget_weight", budget_weight, 0, float("inf"), "it weighs the budget against the loss")
        target, stages = Target.of(space, budget), Stages.of(schedule)
        made = generator if isinstance(generator, MaskGenerator) else generator_named(generator)(space, seed)
        if sum(made.sizes) != sum(group.units for group in space.width_groups):
            raise MethodError(
                f"The mask generator has gates of {sum(made.sizes)} units, and the search space has "
                f"{sum(group.units for group in space.width_groups)}. Build it for this space."
            )
        update = Projection(units, stages, penalty, projection, vectorised)
        training = MaskTraining(
            space, made, target.limits, stages.controller_steps, budget_weight=float(budget_weight), seed=seed
        )
        data = None if batches is None else HeldOut(batches, seed)
        self._controller = Controller(self.label, space, training, loss_fn, data)
        self._mask = LearntMask(units, target, schedule, self._controller, early=data is not None)
        super().__init__(units, self._mask, update, shrink)

    @property
    def learnt_cost(self) -> dict[str, float] | None:
        """What the mask of the controller itself cost when it was frozen, by the measures of the budget, as shares of
        the dense network; None before. The units that leave cost no more than the budget."""
        learnt = self._mask.learnt
        return None if learnt is None else dict(learnt)

    @final
    @contextmanager
    def masked(self) -> Iterator[nn.Module]:
        """Inside, the model, which is also what the block is given, runs under the mask of the moment: what it computes
        there is what the cut network would. It need not be trained so, but may be: a backward pass gives its parameters
        their gradients under the mask. At the end its weights are as they were, also after an error.

        Take the backward pass inside as well where activations are recomputed in it (activation checkpoints).

        Example::

            with method.masked() as model:
                accuracy = evaluate(model)
        """
        if not self.units.live.here.all():  # what is masked has left the model
            yield self.space.model
            return
        keep = torch.from_numpy(~self._mask.mask).to(self.units.device)
        with self._controller.training.gates.applied(keep.float()):
            yield self.space.model

    @final
    def controller_step(self, batch: Any) -> None:
        """A step of the controller on a ``batch`` that is held out of the training, for loops that bring their own:
        between two steps of the optimizer, every 20 or so from ``schedule.start`` to 60 % of the way.

        Raises:
            MethodError: the mask is fixed already, batches were given, the loss of the batch teaches nothing, or it is
                too late to begin.
        """
        if self._controller.data is not None:
            raise MethodError(
                f"{self.label} was given batches, and takes the steps of its controller by itself. Leave batches= out "
                "to call controller_step."
            )
        self._mask.learn(self.step + 1, batch)


def _attach(training: Training) -> ATO:
    assert training.loss_fn is not None
    return ATO(
        training.space,
        training.optimizer,
        training.budget,
        training.schedule,
        loss_fn=training.loss_fn,
        batches=training.held_out,
        shrink=training.shrink,
    )


register(ATO.name, _attach, holds_out=True)
