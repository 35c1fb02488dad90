"""What each structure of a trained network is worth: its scores in training beside the loss without it, and what is
chosen by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

import niwaki
from benchmarks.accuracy.tasks import TASKS
from benchmarks.accuracy.training import Training
from benchmarks.accuracy.where import Where
from benchmarks.accuracy.without import loss_without, losses_without
from niwaki.core.cost import Cost
from niwaki.core.dying import structure_units
from niwaki.methods.scoring import WEIGHTS
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.window_scores import Sampler
from niwaki.networks.torchvision_cpu import load
from niwaki.selection import STRUCTURES

SCORED = 10  # steps of training
MIX = "HESSO's mix"
TRUTH = "the loss without each"


def run(name: str, steps: int, macs: float, data: Path | None) -> None:
    """Train the task ``name`` for ``steps`` steps, score its structures in the next ones as methods do, run it without
    each, and print a table, rank correlations of scores and of scores per multiply-accumulate, and the loss without all
    that is erased by each score for the share ``macs``."""
    load()  # transformers imports torchvision
    torch.set_num_threads(1)
    task = TASKS[name](Where(data, torch.device("cpu")), 0)
    training = Training(task, 0)
    training.advance(steps)
    space = training.space(erase=True)
    scores = _scores(training, space)
    dense, grown, whole = loss_without(task, space), losses_without(task, space), space.cost()
    made = [(space.structures[number], unit) for number, unit in structure_units(space).items()]
    made = [(one, unit) for one, unit in made if one.macs and not one.bare]  # by weights
    print(f"{name} after {training.step} steps, held-out loss {dense:.3f}\n")
    print(f"| structure | MACs | parameters | loss without it | {' | '.join(scores)} |")
    print("|---|---:|---:|---:|" + "---:|" * len(scores))
    for one, unit in made:
        row = " | ".join(f"{values[unit]:.3g}" for values in scores.values())
        shares = f"{one.macs / whole.macs:.1%} | {one.params / whole.params:.1%}"
        print(f"| {one.name} | {shares} | {grown[unit]:+.3f} | {row} |")
    units, costs = [unit for _, unit in made], np.array([one.macs for one, _ in made])
    print(f"\n| scores | rank correlation with the loss | per MAC | loss without what {macs:.0%} erases | parameters |")
    print("|---|---:|---:|---:|---:|")
    for one, values in {**scores, TRUTH: grown.clip(min=0)}.items():
        each = spearmanr(values[units], grown[units]).statistic
        per_mac = spearmanr(values[units] / costs, grown[units] / costs).statistic
        kept, gone = _chosen(space, values, macs)
        lost = loss_without(task, space, gone) - dense
        print(f"| {one} | {each:.2f} | {per_mac:.2f} | {lost:+.3f} | {kept.params / whole.params:.0%} |", flush=True)


def _scores(training: Training, space: niwaki.SearchSpace) -> dict[str, NDArray[np.float64]]:
    """Means over steps of training, [num_units], of each criterion of HESSO and of its mix."""
    units = TrainedUnits("What structures are worth", space, training.optimizer, True, removal=STRUCTURES)
    sampler = Sampler(units, dict(WEIGHTS), SCORED, 0, "space")
    if units.gates is not None:
        units.gates.attach()
    for _ in range(SCORED):
        training.advance(training.step + 1, units.engine.remember)
        sampler.sample()
    if units.gates is not None:
        units.gates.detach()
    means = sampler.window.close()
    found = dict(zip(sampler.mix.names, means.double().cpu().numpy(), strict=True))
    return {**found, MIX: sampler.weighted(means, STRUCTURES.candidates(space), training.step)}


def _chosen(space: niwaki.SearchSpace, values: NDArray[np.float64], macs: float) -> tuple[Cost, list[int]]:
    """What is left, and the units of what is erased."""
    scores = niwaki.score(space, lambda _: values)
    plan = niwaki.choose(space, scores, niwaki.Budget(macs=macs), remove="structures")
    return space.cost(plan), np.flatnonzero(~space.keep_of(plan)).tolist()
