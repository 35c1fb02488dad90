"""Torch-Pruning (DepGraph, CVPR 2023), cut to the same budget at the same moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.accuracy.networks import TransformerBlock
from benchmarks.accuracy.setting import Setting
from benchmarks.accuracy.task import Task
from benchmarks.accuracy.training import Training


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """Its group-norm pruner with the published settings for CIFAR-10: its penalty acts while our methods prune; then it
    cuts and trains on."""

    regularization: float = 5e-4
    steps: int = 400

    def __call__(self, setting: Setting) -> Training:
        peer = _peer()
        run = Training(setting.task, setting.seed)
        run.advance(setting.start)
        importance = peer.importance.GroupMagnitudeImportance(p=2)
        pruner = _pruner(
            peer.pruner.GroupNormPruner, importance, run.model, run.task, self.steps, reg=self.regularization
        )
        limit = _limit(setting, run)
        run.advance(setting.until, before_step=lambda: pruner.regularize(run.model))
        _cut(run.model, run.task, pruner, limit, self.steps, score=lambda: None)
        run.replace(run.model)
        run.advance()
        return run


@dataclass(frozen=True, slots=True)
class Taylor:
    """Its first-order Taylor criterion, scored again on another batch before each of many small cuts."""

    steps: int = 200

    def __call__(self, setting: Setting) -> Training:
        run = Training(setting.task, setting.seed)
        run.advance(setting.until)
        limit = _limit(setting, run)
        taylor(run.model, run.task, limit, run.more_batches(self.steps), self.steps)
        run.replace(run.model)
        run.advance()
        return run


def taylor(model: nn.Module, task: Task, limit: float, batches: Iterable[Any], steps: int) -> None:
    """Cut ``model`` in place to at most ``limit`` multiply-accumulates by the Taylor criterion, which sees one of
    ``batches`` before each of up to ``steps`` cuts."""
    peer, each = _peer(), iter(batches)
    pruner = _pruner(peer.pruner.BasePruner, peer.importance.GroupTaylorImportance(), model, task, steps)

    def score() -> None:
        model.zero_grad()
        task.loss(model, next(each)).backward()  # type: ignore[no-untyped-call]

    _cut(model, task, pruner, limit, steps, score)


def magnitude(model: nn.Module, task: Task, limit: float, steps: int) -> None:
    """The same by its group magnitude, in up to ``steps`` cuts."""
    peer = _peer()
    pruner = _pruner(peer.pruner.BasePruner, peer.importance.GroupMagnitudeImportance(p=2), model, task, steps)
    _cut(model, task, pruner, limit, steps, score=lambda: None)


def _limit(setting: Setting, run: Training) -> float:
    """In multiply-accumulates."""
    if setting.limited != "macs":
        raise SystemExit(f"Torch-Pruning's arms cut to a share of the MACs, not of the {setting.limited}.")
    return setting.share * macs_of(run.model, run.task)


def _peer() -> Any:
    try:
        import torch_pruning
    except ImportError as cause:
        raise SystemExit("The arms torch-pruning need it: pip install torch-pruning.") from cause
    return torch_pruning


def _pruner(build: Any, importance: Any, model: nn.Module, task: Task, steps: int, **more: Any) -> Any:
    """A pruner of all units of the network that could remove everything in ``steps`` cuts."""
    example = task.example()
    ignored = [module for module in model.modules() if _makes_scores(module, model, example)]
    ignored += [model.get_submodule(name) for name in task.ignored]
    blocks = [module for module in model.modules() if isinstance(module, TransformerBlock)]
    heads = {layer: block.heads for block in blocks for layer in (block.query, block.key, block.value)}
    model.eval()
    return build(
        model,
        example,
        importance=importance,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=steps,
        ignored_layers=ignored,
        num_heads=heads,
        **more,
    )


def _cut(model: nn.Module, task: Task, pruner: Any, limit: float, steps: int, score: Callable[[], None]) -> None:
    """Cut until the network has at most ``limit`` multiply-accumulates. Its parameters are new objects afterwards, so
    that an optimizer starts without momentum."""
    model.eval()
    for _ in range(steps):
        if macs_of(model, task) <= limit:
            break
        score()
        pruner.step()


def macs_of(model: nn.Module, task: Task) -> float:
    """Multiply-accumulates of one example, counted by torch."""
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(task.example())
    return counter.get_total_flops() / 2


def _makes_scores(module: nn.Module, model: nn.Module, example: Any) -> bool:
    """Whether ``module`` is the linear layer that has one output per class."""
    with torch.no_grad():
        classes = model(example).shape[-1]
    return isinstance(module, nn.Linear) and module.out_features == classes
