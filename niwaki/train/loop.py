"""The training loop: an ordinary one. The method is attached to the optimizer and needs no call from the loop."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import niwaki
from niwaki.errors import RunError
from niwaki.methods.method import Method
from niwaki.methods.registry import Training, attach, holding_out
from niwaki.networks import ImageTask, build_model, channels_of
from niwaki.train.batches import Batches, InOrder
from niwaki.train.checkpoint import Checkpoint, random_state, set_random_state
from niwaki.train.data import Images
from niwaki.train.recipe import Recipe
from niwaki.train.scores import accuracy, check_scores
from niwaki.train.weights import with_weights

_OPTIMIZERS: Mapping[str, Callable[[nn.Module, Recipe], torch.optim.Optimizer]] = {
    "sgd": lambda model, recipe: torch.optim.SGD(
        model.parameters(),
        lr=recipe.peak_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    ),
    "adam": lambda model, recipe: torch.optim.Adam(
        model.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay
    ),
    "adamw": lambda model, recipe: torch.optim.AdamW(
        model.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay
    ),
}
HELD_OUT = 20  # one of so many training images, for a method that learns from images that are not trained on


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """A finished step: ``step`` of ``steps`` in epoch ``epoch`` of ``epochs`` (all counted from 1)."""

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float


@dataclass(frozen=True, slots=True)
class EpochResult:
    """A finished epoch. ``loss``: mean over its steps. ``accuracy``: the fraction of correctly classified test images.
    ``macs_left``: the fraction of the MACs of units that are not marked for removal."""

    epoch: int
    loss: float
    accuracy: float
    macs_left: float


class RunObserver(Protocol):
    """Receives the progress of a run, and may ask it to stop."""

    def on_step(self, progress: TrainingProgress) -> None:
        """A step has finished."""

    def on_epoch(self, result: EpochResult) -> None:
        """An epoch has finished."""

    def should_stop(self) -> bool:
        """Whether to stop after this step."""


class Silent:
    """An observer that does nothing."""

    def on_step(self, progress: TrainingProgress) -> None:
        """Do nothing."""

    def on_epoch(self, result: EpochResult) -> None:
        """Do nothing."""

    def should_stop(self) -> bool:
        """Never."""
        return False


class TrainingRun:
    """A training run: network, optimizer, method and position, all of which a checkpoint holds.

    Raises:
        RunError: the recipe cannot be followed.
        NiwakiError: the network cannot be analysed, or the budget cannot be met.
    """

    def __init__(self, recipe: Recipe, images: Images, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        random.seed(recipe.seed)
        np.random.seed(recipe.seed)
        self.recipe = recipe
        self.device = device
        self.images, held_out = images.with_channels(channels_of(recipe.model, images.channels)), None
        if recipe.method in holding_out():
            self.images, held_out = self.images.held_out(HELD_OUT)
        self.batches = Batches(self.images, recipe.batch_size, recipe.seed, recipe.shift, device)
        self.steps = recipe.epochs * self.batches.per_epoch
        task = ImageTask(self.images.classes, self.images.channels, self.images.size)
        model = build_model(recipe.model, task, recipe.width)
        self.model = (model if recipe.weights is None else with_weights(model, Path(recipe.weights))).to(device)
        check_scores(self.model, self.batches.example(2), task, recipe.model)
        self.optimizer = self._optimizer()
        self.space = niwaki.search_space(self.model, self.batches.example(), erase=recipe.erase)
        self.method: Method | None = None
        self._batch: tuple[Tensor, Tensor] | None = None
        if recipe.method != "none":
            schedule = recipe.schedule(self.steps)
            self.method = attach(
                recipe.method,
                Training(
                    self.space,
                    self.optimizer,
                    recipe.budget(),
                    schedule,
                    self._loss,
                    recipe.shrink,
                    recipe.erase,
                    recipe.narrow,
                    _loss_of,
                    None if held_out is None else InOrder(held_out, self.batches),
                ),
            )
        self._shapes = _shapes(self.model.state_dict())
        self.step = 0
        self.history: list[EpochResult] = []
        self._epoch_loss = 0.0

    def advance(self, observer: RunObserver, until: int | None = None) -> bool:
        """Train up to the step ``until`` (default: the end). Returns False if the observer asked to stop before.

        Raises:
            RunError: the loss is not finite.
        """
        until = self.steps if until is None else until
        while self.step < until:
            epoch, skip = divmod(self.step, self.batches.per_epoch)
            for x, y in self.batches.epoch(epoch, skip):
                loss = self._train_step(x, y, epoch)
                observer.on_step(TrainingProgress(self.step, self.steps, epoch + 1, self.recipe.epochs, loss))
                if self.step % self.batches.per_epoch == 0:
                    self._finish_epoch(observer, epoch)
                if observer.should_stop():
                    return self.step >= until
                if self.step >= until:
                    break
        return True

    def _train_step(self, x: Tensor, y: Tensor, epoch: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step, self.steps)
        self.model.train()
        self.optimizer.zero_grad()
        self._batch = x, y
        loss = self._loss()
        value = loss.item()
        if not np.isfinite(value):
            raise RunError(
                f"The loss became {value} at step {self.step + 1} (epoch {epoch + 1}). "
                f"Lower the learning rate (it was {self.recipe.peak_rate})."
            )
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        self._epoch_loss += value
        return value

    def _loss(self) -> Tensor:
        """The loss of the current batch."""
        assert self._batch is not None
        return _loss_of(self.model, self._batch)

    def _finish_epoch(self, observer: RunObserver, epoch: int) -> None:
        mean_loss = self._epoch_loss / self.batches.per_epoch
        self._epoch_loss = 0.0
        result = EpochResult(epoch + 1, mean_loss, accuracy(self.model, self.batches), self.macs_left())
        self.history.append(result)
        observer.on_epoch(result)

    def macs_left(self) -> float:
        """The fraction of the dense network's MACs of units that are not marked for removal."""
        return 1.0 if self.method is None else self.method.progress.macs

    def plan(self) -> niwaki.Plan | None:
        """The plan of the units marked for removal so far; None without a method."""
        return None if self.method is None else self.method.plan()

    def replace_model(self, model: nn.Module) -> None:
        """Continue with another network, with a fresh optimizer state, on the same schedule."""
        if self.method is not None:
            raise RunError("The network of a run with a method cannot be replaced.")
        self.model = model.to(self.device)
        self.optimizer = self._optimizer()

    def checkpoint(self) -> Checkpoint:
        """The present state of the run."""
        facts = {
            "recipe": self.recipe.to_dict(),
            "data": self.images.fingerprint,
            "epoch_loss": self._epoch_loss,
            "history": [[r.epoch, r.loss, r.accuracy, r.macs_left] for r in self.history],
            "shapes": self._shapes,
            "mode": "cpu" if self.device.type == "cpu" else self.device.type,
        }
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(self.device),
        }
        return Checkpoint(self.step, facts, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Set the run to the state of a checkpoint of the same run.

        Raises:
            RunError: the checkpoint is of another model, data or recipe.
        """
        facts: Any = checkpoint.facts
        if facts["data"] != self.images.fingerprint:
            raise RunError(
                f"The data {self.recipe.data!r} have changed since the checkpoint was written, so the run cannot be "
                "resumed. Restore them, or start the run again."
            )
        saved = facts.get("shapes", _shapes(checkpoint.state["model"]))  # older ones hold dense models only
        for name in (*saved, *self._shapes):
            if saved.get(name) != self._shapes.get(name):
                raise RunError(
                    f"The model {self.recipe.model!r} has changed since the checkpoint was written: {name!r} was "
                    f"{saved.get(name, 'not there')} and is {self._shapes.get(name, 'not there')}. Start the run again."
                )
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])  # shrinks the model to its size at the checkpoint
        self.model.load_state_dict(checkpoint.state["model"])
        set_random_state(checkpoint.state["random"], self.device)
        self.step = checkpoint.step
        self._epoch_loss = facts["epoch_loss"]
        self.history = [EpochResult(*entry) for entry in facts["history"]]

    def _optimizer(self) -> torch.optim.Optimizer:
        return _OPTIMIZERS[self.recipe.optimizer](self.model, self.recipe)


def _loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of images and labels."""
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}
