"""A training run: an ordinary loop. A method hangs on the optimizer; what it removed is cut once it has finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import niwaki
from benchmarks.accuracy.task import Task
from niwaki.methods import registry
from niwaki.methods.attach import Method
from niwaki.train.recipe import Recipe as Shares


class Training:
    """A network, its optimizer and how far it has come.

    Pruning lies between the same shares of the run as in `niwaki train`: ``start`` and ``until`` are steps.
    """

    def __init__(self, task: Task, seed: int, width: float = 1.0) -> None:
        torch.manual_seed(seed)
        self.task = task
        self.model = task.prepared(task.network(width))
        self.optimizer = task.optimizer(self.model)
        self.steps = task.recipe.steps
        self.schedule = Shares().schedule(self.steps)
        self.step = 0
        self.method: Method | None = None
        self._batches = task.batches(seed)
        self._batch: Any = None

    def attach(self, name: str, budget: niwaki.Budget) -> None:
        """Prune by the registered method ``name`` with its default arguments."""
        space = niwaki.search_space(self.model, self.task.example())
        self.method = registry.attach(name, registry.Training(space, self.optimizer, budget, self.schedule, self._loss))

    def advance(self, until: int | None = None, before_step: Callable[[], None] | None = None) -> None:
        """Train up to the step ``until`` (default: the end); ``before_step`` is called when gradients are there."""
        for _ in range(self.step, self.steps if until is None else until):
            for group in self.optimizer.param_groups:
                group["lr"] = self.task.recipe.rate(self.step)
            self.model.train()
            self.optimizer.zero_grad()
            self._batch = next(self._batches)
            self._loss().backward()  # type: ignore[no-untyped-call]
            if before_step is not None:
                before_step()
            self.optimizer.step()
            self.step += 1
            if self.method is not None and self.step == self.schedule.until:
                self.shrink()

    def replace(self, model: nn.Module) -> None:
        """Go on with another network, from a fresh optimizer state."""
        self.model = self.task.prepared(model)
        self.optimizer = self.task.optimizer(self.model)

    def shrink(self) -> None:
        """Cut what the method has removed, so that the rest of the run takes less time."""
        assert self.method is not None
        plan = self.method.plan()
        self.method.detach()
        self.method = None
        niwaki.shrink(self.model, plan, self.optimizer)
        self.task.prepared(self.model)  # the parameters stay the same objects

    def _loss(self) -> Tensor:
        """The loss of the batch at hand."""
        return self.task.loss(self.model, self._batch)
