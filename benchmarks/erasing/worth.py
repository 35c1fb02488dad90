"""What each structure of a trained network is worth: its scores beside the loss of the network without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

import niwaki
from benchmarks.accuracy.task import Task
from benchmarks.accuracy.tasks import TASKS
from benchmarks.accuracy.training import Training
from benchmarks.accuracy.where import Where
from niwaki.core.dying import structure_units
from niwaki.methods.scoring import WEIGHTS
from niwaki.networks.torchvision_cpu import load

SCORED = 5  # batches of training
LOOKED_AT = 3  # held-out batches of the losses


def run(name: str, steps: int, data: Path | None) -> None:
    """Train the task ``name`` for ``steps`` steps, score its structures, run it without each, and print a table and
    rank correlations, of scores and of scores per multiply-accumulate."""
    load()  # transformers imports torchvision
    torch.set_num_threads(1)
    task = TASKS[name](Where(data, torch.device("cpu")), 0)
    training = Training(task, 0)
    training.advance(steps)
    space = training.space(erase=True)
    made = {number for number, one in enumerate(space.structures) if one.macs and not one.bare}  # by weights
    units = {number: unit for number, unit in structure_units(space).items() if number in made}
    batches = training.more_batches(SCORED)
    scores = {one: niwaki.score(space, one, batches, task.loss).values for one in WEIGHTS}
    scores["HESSO's mix"] = niwaki.score(space, dict(WEIGHTS), batches, task.loss).values
    dense, whole = _loss(task, training.model), space.cost()
    lost = {number: _without(task, space, unit) - dense for number, unit in units.items()}
    print(f"{name} after {steps} steps, held-out loss {dense:.3f}\n")
    print(f"| structure | MACs | parameters | loss without it | {' | '.join(scores)} |")
    print("|---|---:|---:|---:|" + "---:|" * len(scores))
    for number, unit in units.items():
        one = space.structures[number]
        row = " | ".join(f"{values[unit]:.3g}" for values in scores.values())
        shares = f"{one.macs / whole.macs:.1%} | {one.params / whole.params:.1%}"
        print(f"| {one.name} | {shares} | +{lost[number]:.3f} | {row} |")
    true, macs = np.array([*lost.values()]), np.array([space.structures[number].macs for number in units])
    print("\n| rank correlation with the loss | as it is | per MAC |\n|---|---:|---:|")
    for one, values in scores.items():
        found = values[[*units.values()]]
        each, per_mac = spearmanr(found, true).statistic, spearmanr(found / macs, true / macs).statistic
        print(f"| {one} | {each:.2f} | {per_mac:.2f} |")


def _without(task: Task, space: niwaki.SearchSpace, unit: int) -> float:
    keep = np.ones(space.num_units, dtype=bool)
    keep[unit] = False
    return _loss(task, niwaki.cut(space.model, space.plan(keep)))


@torch.no_grad()
def _loss(task: Task, model: nn.Module) -> float:
    model.eval()
    return float(np.mean([float(task.loss(model, batch)) for batch in task.held_out_batches()[:LOOKED_AT]]))
