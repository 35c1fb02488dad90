"""DDPTraining: masks and scales that are learnt without chance while the weights train under them (arXiv 2603.08065).

It is not in the registry of methods: its trainings run the model in a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

from torch import nn
from torch.optim import Optimizer

from niwaki.core.space import SearchSpace
from niwaki.masks.deterministic import DeterministicTraining
from niwaki.masks.latents import Latents
from niwaki.methods.learnt_mask import LearntMask
from niwaki.methods.method import Method
from niwaki.methods.parts import Target
from niwaki.methods.projection import Projection
from niwaki.methods.schedule import Schedule
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.stages import Stages
from niwaki.methods.trained_latents import TrainedLatents
from niwaki.methods.trained_units import TrainedUnits
from niwaki.selection.budget import Budget, check_budget
from niwaki.surgery.shrink import averaged_copies


class DDPTraining(Method):
    """Deterministic Differentiable Pruning on any optimizer, while the weights train: as `niwaki.DDPMasks` for weights
    that do not. Between ``schedule.start`` and ``schedule.until``, of n steps:

    * inside of ``with method.masked():`` each unit is multiplied by a latent number where it is read. The backward pass
      there gives the latents their gradients, too: no further pass, no batch of its own, no chance. Before each step of
      the optimizer they take one, on these and on a budget that falls to its limit and sets its own price;
    * at 0.6 n the mask is fixed: it is what `niwaki.choose` would remove by what the latents say, so that the budget is
      met. The scales of the units that stay are multiplied into the weights, and the optimizer's averages follow. From
      then on the mask is of 0 and 1 inside of the block, and units that leave are shortened by equal pieces;
    * in the last tenth what is left of them fades. After ``until`` they are exactly zero, inside of the block and out.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any ``torch.optim`` optimizer that holds all parameters of the space.
        budget: what must hold after ``schedule.until`` steps.
        schedule: ``start`` is the latents' first step. Its periods mean nothing here.
        lr: of the latents; 6 over the number of their steps by default.
        ema: averaged copies of the model, such as ``torch.optim.swa_utils.AveragedModel``. Their weights are multiplied
            by the scales at 0.6 n as well; else an average over that step is of weights of two scales. Those of a
            `ShrinkPolicy` need not be given twice.
        shrink: True lets the units leave the model in place after ``until``; see `ShrinkPolicy`.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met.
        MethodError: the optimizer does not fit the space, or no weight reads the units of a group linearly. At the end
            of the first block: something else reads them, too. Before a step of the optimizer: its gradient was not
            computed inside of the block.
        PlanError: an averaged copy has other tensors than the model.
        ShrinkError: at 0.6 n: a state of the optimizer cannot follow weights that are scaled.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> method = niwaki.DDPTraining(space, optimizer, niwaki.Budget(macs=0.5), niwaki.Schedule(start=2, until=42))
    >>> for _ in range(42):
    ...     optimizer.zero_grad()
    ...     with method.masked():
    ...         model(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> method.progress.phase, method.progress.macs
    ('done', 0.5)
    >>> small = niwaki.cut(model, method.plan())
    """

    name, label = "ddp", "DDP"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        lr: float | None = None,
        ema: nn.Module | Sequence[nn.Module] = (),
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        units = TrainedUnits(self.label, space, optimizer, vectorised)
        check_budget(budget, space=space)
        Schedule.check(schedule, self.label)
        target, stages = Target.of(space, budget), Stages.of(schedule)
        steps, policy = stages.freeze - stages.start + 1, ShrinkPolicy.of(shrink)
        copies = averaged_copies(space.model, ema)
        copies += averaged_copies(space.model, [] if policy is None else policy.ema)
        self._latents = TrainedLatents(
            units,
            DeterministicTraining(space, Latents(space), target.limits, steps, weight=0.0, lr=lr),
            list({id(copy): copy for copy in copies}.values()),
        )
        update = Projection(units, stages, None, "prox", vectorised)
        super().__init__(units, LearntMask(units, target, schedule, self._latents), update, shrink)

    @final
    @contextmanager
    def masked(self) -> Iterator[nn.Module]:
        """Inside, the model, which is also what the block is given, runs under the scales or the mask of the moment,
        and a backward pass gives its parameters and the latents their gradients. At the end its weights are as they
        were, also after an error.

        Take the backward pass inside as well where activations are recomputed in it (activation checkpoints).
        """
        if not self.units.live.here.all():  # what is masked has left the model
            yield self.space.model
            return
        with self._latents.applied():
            yield self.space.model
