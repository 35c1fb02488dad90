"""A training run: an ordinary loop. A method attached to the optimizer prunes; what it removed is cut at the end of its
schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import niwaki
from benchmarks.accuracy.task import Task
from niwaki.methods import registry
from niwaki.methods.method import Method
from niwaki.post_training.distillation import Distillation


class Training:
    """A network, its optimizer and how far it has come.

    A group of parameters with an entry ``learns_for`` has a rate of zero after that share of the run. ``widths``: how
    many units of each group were kept, in the order of the dense search space; None before a cut.
    """

    def __init__(self, task: Task, seed: int, keep: Sequence[int] | None = None) -> None:
        """With ``keep`` the network has so many units in each group from the beginning, with fresh weights."""
        torch.manual_seed(seed)
        self.task, self.seed = task, seed
        self.widths: tuple[int, ...] | None = None
        self.replace(task.network())
        if keep is not None:
            self.cut(_first(self.space(), keep))
            task.renew(self.model)
        self.steps = task.recipe.steps
        self.step = 0
        self._method: Method | None = None
        self._until = 0
        self._distil: Distillation | None = None
        self._batches = task.batches(seed)
        self._batch: Any = None

    def space(self, rehearse: bool = True, erase: bool = False, layers: bool = False) -> niwaki.SearchSpace:
        """What can leave the network as it is; with ``erase`` whole structures, too, and with ``layers`` none but whole
        layers."""
        layout: Literal["uniform", "free"] = "uniform" if layers else "free"
        return niwaki.search_space(
            self.model, self.task.example(), self.task.ignored, layout=layout, rehearse=rehearse, erase=erase
        )

    def attach(
        self,
        name: str,
        budget: niwaki.Budget,
        schedule: niwaki.Schedule,
        erase: bool = False,
        narrow: bool = False,
        layers: bool = False,
    ) -> None:
        """Let a method with its default arguments prune, or ``erase`` (and ``narrow`` as well, or whole ``layers``
        only), and cut the network when its schedule is over."""
        space = self.space(erase=erase, layers=layers)
        training = registry.Training(
            *(space, self.optimizer, budget, schedule, self.loss),
            erase=erase,
            narrow=narrow,
            loss_fn=self.task.loss,
            held_out=self.task.held_out_batches() if name in registry.holding_out() else None,
        )
        self.follow(registry.attach(name, training), schedule)

    def follow(self, method: Method, schedule: niwaki.Schedule) -> None:
        """Let a method that is attached to the optimizer prune, and cut the network when its schedule is over."""
        self._method, self._until = method, schedule.until

    def advance(self, until: int | None = None, before_step: Callable[[], None] | None = None) -> None:
        """Train up to the step ``until`` (default: the end); ``before_step`` is called when gradients are there."""
        for _ in range(self.step, self.steps if until is None else until):
            factor = self.task.recipe.factor(self.step)
            for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = peak * factor if self.step < group.get("learns_for", 1.0) * self.steps else 0.0
            self.model.train()
            self.optimizer.zero_grad()
            self._batch = next(self._batches)
            self.loss().backward()  # type: ignore[no-untyped-call]
            if before_step is not None:
                before_step()
            self.optimizer.step()
            self.step += 1
            if self._method is not None and self.step == self._until:
                self._leave(self._method)

    def _leave(self, method: Method) -> None:
        """The schedule is over: what the method has removed goes, unless it has gone on the way."""
        plan, self._method = method.plan(), None
        if method.shrinking is None:
            method.detach()
            self.cut(plan)
            return
        method.shrink()
        method.detach()
        self.widths = tuple(len(units) for units in plan.kept.values())
        self.task.prepared(self.model)

    def cut(self, plan: niwaki.Plan) -> None:
        """Go on with the smaller network: the same parameters, and the optimizer's state of what is left."""
        self.widths = tuple(len(units) for units in plan.kept.values())
        niwaki.shrink(self.model, plan, self.optimizer)
        self.task.prepared(self.model)

    def replace(self, model: nn.Module) -> None:
        """Go on with another network, from a fresh optimizer state."""
        self.model = self.task.prepared(model)
        self.optimizer = self.task.recipe.attach(self.model)
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]

    def finetune(self, model: nn.Module, teacher: nn.Module | None = None, rate: float = 1.0) -> None:
        """Go on with a pruned ``model`` at the share ``rate`` of the recipe's learning rate; where there is a
        ``teacher``, the divergence from it is added to the loss."""
        self.replace(model)
        self._peaks = [rate * peak for peak in self._peaks]
        self._distil = None if teacher is None else niwaki.distillation(teacher)

    def more_batches(self, count: int) -> list[Any]:
        """The next batches, which the training skips."""
        return [next(self._batches) for _ in range(count)]

    def loss(self) -> Tensor:
        """The loss of the batch at hand."""
        loss = self.task.loss(self.model, self._batch)
        if self._distil is None:
            return loss
        with torch.autocast(self.task.device.type, torch.bfloat16, enabled=self.task.fast):
            return loss + self._distil(self.model, self._batch)


def _first(space: niwaki.SearchSpace, widths: Sequence[int]) -> niwaki.Plan:
    """The plan that keeps the first ``widths[g]`` units of every group g."""
    keep = np.zeros(space.num_units, dtype=bool)
    for group, width in zip(space.groups, widths, strict=True):
        keep[group.first : group.first + width] = True
    return space.plan(keep)
