"""What depth and width together buy in time, beside width alone at as many multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import niwaki
from benchmarks.accuracy.networks import CifarResNet
from benchmarks.accuracy.tasks import TASKS
from benchmarks.accuracy.training import Training
from benchmarks.accuracy.where import Where
from niwaki.methods.scoring import WEIGHTS
from niwaki.networks.torchvision_cpu import load

WANTED = 1.2  # times as fast as width alone, at 30 % of the MACs
BUDGET = niwaki.Budget(macs=0.3)
SCORED = 5  # batches of training
WAYS = {"units": "width alone", "both": "depth and width", "structures": "depth alone"}


def run(seeds: int, criteria: Sequence[str], seconds: float, steps: int = 0, data: Path | None = None) -> bool:
    """Print a table for ResNet-20 on pictures of 28 x 28, one of them at a time; whether the median over seeds of the
    first criterion is what is wanted.

    Weights are drawn anew for each seed, and trained for ``steps`` steps of recipe A on the data in the folder
    ``data``; the criterion ``mix`` is that of HESSO. Networks take turns in one process; one thread, and the time that
    it computed.
    """
    load()  # transformers imports torchvision
    found: dict[str, list[float]] = {criterion: [] for criterion in criteria}
    print("| scores | seed | cut in | MACs | blocks erased | ms | times as fast as width alone |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for seed in range(seeds):
        model, batches, loss = _network(seed, steps, data)
        x = torch.randn(1, 1, 28, 28)
        space = niwaki.search_space(model, x, erase=True)
        for criterion in criteria:
            scored = dict(WEIGHTS) if criterion == "mix" else criterion
            scores = niwaki.score(space, scored, batches, loss, seed=seed)
            plans = {way: niwaki.choose(space, scores, BUDGET, remove=way) for way in WAYS}  # type: ignore[arg-type]
            networks = {way: niwaki.cut(model, plan) for way, plan in plans.items()}
            measured = niwaki.latency(networks, x, seconds=seconds, rounds=30, threads=1, clock="cpu")
            for way, plan in plans.items():
                ratio = measured.ratios[way]
                if way == "both":
                    found[criterion].append(1 / ratio.median)
                kept = space.keep_of(plan)
                erased = sum(group.structure is not None and not kept[group.first] for group in space.groups)
                share = space.cost(plan).macs / space.cost().macs
                print(
                    f"| {criterion} | {seed} | {WAYS[way]} | {share:.1%} | {erased} "
                    f"| {measured.networks[way].median_us / 1e3:.2f} | {1 / ratio.median:.2f} "
                    f"({1 / ratio.upper:.2f} to {1 / ratio.lower:.2f}) |",
                    flush=True,
                )
    for criterion, ratios in found.items():
        print(f"{criterion}: depth and width {median(ratios):.2f} times as fast as width alone, wanted {WANTED}")
    return median(found[criteria[0]]) >= WANTED


def _network(
    seed: int, steps: int, data: Path | None
) -> tuple[nn.Module, list[Any] | None, Callable[[nn.Module, Any], Any] | None]:
    """ResNet-20, and what a criterion with a gradient needs, if it is trained."""
    if not steps:
        torch.manual_seed(seed)
        return CifarResNet(classes=10, channels=1, blocks=3).eval(), None, None
    task = TASKS["fashion-resnet20"](Where(data, torch.device("cpu")), seed)
    training = Training(task, seed)
    training.advance(steps)
    return training.model.eval(), training.more_batches(SCORED), task.loss
