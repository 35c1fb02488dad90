"""Torch-Pruning (DepGraph, CVPR 2023), cut to the same budget at the same moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.accuracy.setting import Setting
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
        pruner = _pruner(peer.pruner.GroupNormPruner, importance, run, self.steps, reg=self.regularization)
        limit = setting.macs * _macs(run)
        run.advance(setting.until, before_step=lambda: pruner.regularize(run.model))
        _cut(run, pruner, limit, self.steps, score=lambda: None)
        run.advance()
        return run


@dataclass(frozen=True, slots=True)
class Taylor:
    """Its first-order Taylor criterion, scored again on another batch before each of many small cuts."""

    steps: int = 200

    def __call__(self, setting: Setting) -> Training:
        peer = _peer()
        run = Training(setting.task, setting.seed)
        run.advance(setting.until)
        pruner = _pruner(peer.pruner.BasePruner, peer.importance.GroupTaylorImportance(), run, self.steps)
        batches = iter(run.more_batches(self.steps))

        def score() -> None:
            run.model.zero_grad()
            setting.task.loss(run.model, next(batches)).backward()  # type: ignore[no-untyped-call]

        _cut(run, pruner, setting.macs * _macs(run), self.steps, score)
        run.advance()
        return run


def _peer() -> Any:
    try:
        import torch_pruning
    except ImportError as cause:
        raise SystemExit("The arms torch-pruning need it: pip install 'niwaki[benchmark]'.") from cause
    return torch_pruning


def _pruner(build: Any, importance: Any, run: Training, steps: int, **more: Any) -> Any:
    """A pruner of all units of the network that could remove everything in ``steps`` cuts."""
    example = run.task.example()
    ignored = [module for module in run.model.modules() if _makes_scores(module, run.model, example)]
    ignored += [run.model.get_submodule(name) for name in run.task.ignored]
    run.model.eval()
    return build(
        run.model,
        example,
        importance=importance,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=steps,
        ignored_layers=ignored,
        **more,
    )


def _cut(run: Training, pruner: Any, limit: float, steps: int, score: Callable[[], None]) -> None:
    """Cut until the network has at most ``limit`` multiply-accumulates. Its parameters are new objects afterwards, so
    that the optimizer starts without momentum."""
    run.model.eval()
    for _ in range(steps):
        if _macs(run) <= limit:
            break
        score()
        pruner.step()
    run.replace(run.model)


def _macs(run: Training) -> float:
    """Multiply-accumulates of one example, counted by torch."""
    run.model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run.model(run.task.example())
    return counter.get_total_flops() / 2


def _makes_scores(module: nn.Module, model: nn.Module, example: Any) -> bool:
    """Whether ``module`` is the linear layer that has one output per class."""
    with torch.no_grad():
        classes = model(example).shape[-1]
    return isinstance(module, nn.Linear) and module.out_features == classes
