"""ATP: a mask that a controller learns while low-rank adapters train under it (arXiv 2412.14426).

It is not in the registry of methods, which holds those that any training can choose by name: it needs adapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from niwaki.core.space import SearchSpace, check_space
from niwaki.criteria.losses import Loss
from niwaki.errors import MethodError
from niwaki.masks.held_out import HeldOut
from niwaki.masks.registry import generator_named
from niwaki.masks.training import MaskTraining
from niwaki.methods.checks import check_number
from niwaki.methods.controller import Controller
from niwaki.methods.learnt_mask import LearntMask
from niwaki.methods.lora.adapter_prox import AdapterProx
from niwaki.methods.lora.merged_gates import MergedGates
from niwaki.methods.lora.merging import check_pairs
from niwaki.methods.lora.pairs import find_pairs, merged_space
from niwaki.methods.method import Method
from niwaki.methods.parts import Target
from niwaki.methods.schedule import Schedule
from niwaki.methods.stages import Stages
from niwaki.methods.trained_units import Merged, TrainedUnits
from niwaki.per_unit.index import unit_parameters
from niwaki.selection.budget import Budget, check_budget


class ATP(Method):
    """All-in-One Tuning and Structural Pruning on any optimizer that trains LoRA pairs A, B beside frozen weights W: a
    controller learns which units the merged network W + s B A needs, and the adapters train under its mask.

    As `niwaki.ATO`, of whose schedule it has the stages, but for this:

    * the mask acts in the training's own forward pass: inside of ``with method.masked():`` the weights that read masked
      units, W and A, are multiplied by zero. The adapters learn to do without them from the first mask on;
    * W does not move. What the adapters hold of masked units, rows of B for outputs and columns of A for inputs, is
      projected to zero, with equal steps up to ``until``;
    * at ``until`` all that makes masked units in W is set to zero. Under the mask that changes nothing. From then on
      the network computes the same under the mask, as it is, merged, and cut.

    What differs from the released code: the controller minimises the loss under hard gates with noise, straight
    through, as in ATO; the budget may be in any measure, of the merged network; the mask meets it, and is saved.

    Args:
        space: the search space of the model with its adapters (``peft.get_peft_model``), enabled and not merged.
        optimizer: holds the A and B of all pairs. The weights beside them must be frozen.
        budget: what the merged network may cost after ``schedule.until`` steps; shares are of the merged dense network.
            Its latency is known if the space is `niwaki.timed`.
        schedule: ``start`` is the controller's first step. Its periods mean nothing here.
        loss_fn: ``loss_fn(model, batch)``, the scalar loss of a batch, or a loss of torch.
        batches: what the controller learns from, held out of the training: whatever can be iterated again and again.
        generator: the name of a mask generator in `niwaki.masks`.
        budget_weight: what weighs the budget against the loss.
        seed: of the controller and its noise.

    Raises:
        BudgetError: the budget cannot be met.
        MethodError: the model has no LoRA layers that fit, none of them is prunable, the optimizer does not train them,
            or what `niwaki.ATO` raises.
        UnknownName: there is no mask generator of that name.

    Example, with peft::

        model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
        space = niwaki.search_space(model, example_inputs)
        optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
        schedule = niwaki.Schedule(start=50, until=450)
        method = niwaki.ATP(space, optimizer, niwaki.Budget(params=0.7), schedule, loss_fn=loss_fn, batches=held_out)
        for batch in loader:
            optimizer.zero_grad()
            with method.masked():
                loss_fn(model, batch).backward()
            optimizer.step()
        small = niwaki.cut(model, method.plan()).merge_and_unload()
    """

    name, label = "atp", "ATP"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        loss_fn: Loss,
        batches: Iterable[Any],
        generator: str = "transformer",
        budget_weight: float = 5.0,
        seed: int = 0,
        vectorised: bool = True,
    ) -> None:
        check_space(space)
        check_budget(budget, training=False)
        Schedule.check(schedule, self.label)
        check_number("budget_weight", budget_weight, 0, float("inf"), "it weighs the budget against the loss")
        if batches is None:
            raise MethodError(
                f"{self.label} needs batches for its controller: pass some that are held out of the training."
            )
        pairs = find_pairs(space)
        merged, number = merged_space(space, pairs)
        check_budget(budget, space=merged, merged=True)
        check_pairs(self.label, merged, pairs, optimizer)
        still = SGD(list(unit_parameters(merged).values()), lr=1.0)  # never steps
        units = TrainedUnits(self.label, merged, optimizer, vectorised, Merged(still, space, number))
        target, stages = Target.of(merged, budget), Stages.of(schedule)
        self._gates = MergedGates(space, number)
        training = MaskTraining(
            merged,
            generator_named(generator)(merged, seed),
            target.limits,
            stages.controller_steps,
            budget_weight=float(budget_weight),
            seed=seed,
            gates=self._gates,
        )
        self._mask = LearntMask(
            units, target, schedule, Controller(self.label, merged, training, loss_fn, HeldOut(batches, seed))
        )
        self._prox = AdapterProx(units, pairs, schedule, lambda: self._mask.mask)
        super().__init__(
            units,
            self._mask,
            self._prox,
            cannot_shrink="weights and adapters are merged when it is cut. Use niwaki.cut(model, method.plan()) at the "
            "end.",
        )

    @final
    @contextmanager
    def masked(self) -> Iterator[nn.Module]:
        """Inside, the model, which is also what the block is given, runs under the mask of the moment, and a backward
        pass gives its parameters the gradients of that. At the end its weights are as they were, also after an error.

        Take the backward pass inside as well where activations are recomputed in it (activation checkpoints).
        """
        keep = torch.from_numpy(~self._mask.mask).to(next(self.space.model.parameters()).device)
        with self._gates.applied(keep.float()):
            self._prox.entered = True
            yield self.space.model
