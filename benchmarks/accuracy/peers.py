"""Torch-Pruning's group-norm pruner (DepGraph, CVPR 2023), with its published settings for CIFAR-10."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.accuracy.setting import Setting
from benchmarks.accuracy.training import Training

REGULARIZATION = 5e-4
STEPS = 400


def group_norm(setting: Setting) -> Training:
    """Its group penalty acts while our methods prune; then it cuts to the budget of MACs and trains on."""
    try:
        import torch_pruning as peer
    except ImportError as cause:
        raise SystemExit("The arm torch-pruning needs it: pip install 'niwaki[benchmark]'.") from cause
    run = Training(setting.task, setting.seed)
    run.advance(setting.start)
    example = setting.task.example()
    run.model.eval()
    pruner: Any = peer.pruner.GroupNormPruner(
        run.model,
        example,
        importance=peer.importance.GroupMagnitudeImportance(p=2),
        reg=REGULARIZATION,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[module for module in run.model.modules() if _makes_scores(module, run.model, example)],
    )
    limit = setting.macs * macs(run.model, example)
    run.advance(setting.until, before_step=lambda: pruner.regularize(run.model))
    run.model.eval()
    for _ in range(STEPS):
        if macs(run.model, example) <= limit:
            break
        pruner.step()
    run.replace(run.model)  # its parameters are new objects
    run.advance()
    return run


def macs(model: nn.Module, example: Any) -> float:
    """Multiply-accumulates of one example, counted by torch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return counter.get_total_flops() / 2


def _makes_scores(module: nn.Module, model: nn.Module, example: Any) -> bool:
    """Whether ``module`` is the linear layer that has one output per class."""
    with torch.no_grad():
        classes = model(example).shape[-1]
    return isinstance(module, nn.Linear) and module.out_features == classes
