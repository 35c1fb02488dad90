"""Implants: the law on many random plans, and what they are worth after fine-tuning.

python benchmarks/implants.py law [--plans 1000]
python benchmarks/implants.py latency [--width 64] [--side 32]
python benchmarks/implants.py recovery --data DIRECTORY [--seeds 3] [--budgets 0.5 0.3] [--plot FILE]

``law``: random plans of keep, implant and remove, of a convolutional network (kernels 3 and 5, strides 1 and 2, a
dilation) and of an attention network (ranks 1 to 8): the largest difference of outputs between cut and masked network
in float64, relative to the largest output. ``latency``: what implants save of the time of convolutions here, and the
choice by value per nanosecond at 70 % of the latency, predicted and measured. ``recovery``: a small residual network is
trained on Fashion-MNIST at half of its resolution, cut to a share of its MACs by each arm, and trained for 200 more
steps. ``--data`` has fashion_mnist/fashion_mnist.npz. The table has accuracies on 10,000 test images, right after the
cut (norm statistics estimated anew), and after the steps; means of the seeds. ``--plot``: a picture of both over the
share of implants, with the ways in which implants begin, one panel per budget.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import numpy as np
import torch
from implanted import attention_space, blocks_space, images, random_plan, tokens
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import niwaki
from niwaki import implants
from niwaki.core.edits import Implant
from niwaki.core.plan import Plan
from niwaki.surgery.zero import masked

Data = tuple[Tensor, Tensor, Tensor, Tensor]
Scores = dict[str, Any]


def law(plans: int) -> None:
    """The largest differences, printed."""
    worst, implanted, begun = 0.0, 0, time.perf_counter()
    spaces = [(*blocks_space(), images()), *((*attention_space(rank), tokens()) for rank in (1, 2, 4, 8))]
    with torch.no_grad():
        for number in range(plans):
            network, layers, x = spaces[number % 2 and 1 + number // 2 % 4]
            plan = random_plan(layers, number)
            with masked(network, plan):
                reference = network(x)
            found = niwaki.cut(network, plan)(x)
            worst = max(worst, float((found - reference).abs().max() / reference.abs().max()))
            implanted += len(plan.edits_of(Implant))
    print(f"{plans} plans, {implanted} layers with implants, largest difference {worst:.1e}", end=" ")
    print(f"in {time.perf_counter() - begun:.0f} s")


class Residual(nn.Module):
    """A block of two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.Conv2d(a, outputs, 3, step, 1, bias=False), nn.BatchNorm2d(outputs))
            for a, step in ((inputs, stride), (outputs, 1))
        )
        self.beside = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (self.beside(x) + self.second(self.first(x).relu())).relu()


def network() -> nn.Module:
    """Widths 12-24-48, of 1.2 million MACs for a 14 x 14 image."""
    stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
    blocks = [Residual(12, 12, 1), Residual(12, 24, 2), Residual(24, 48, 2)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def fashion(directory: Path) -> Data:
    """Images and labels to train and to test with."""
    found = np.load(directory / "fashion_mnist" / "fashion_mnist.npz")
    made = []
    for part in ("train", "test"):
        x = torch.tensor(found[f"x_{part}"]).view(-1, 1, 28, 28).float() / 255
        made += [(nn.functional.avg_pool2d(x, 2) - 0.286) / 0.3, torch.tensor(found[f"y_{part}"]).long()]
    return made[0], made[1], made[2], made[3]


def train(model: nn.Module, data: Data, steps: int, rate: float, seed: int) -> None:
    """SGD with momentum, one cycle."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    model.train()
    for _ in range(steps):
        batch = torch.randint(0, len(data[0]), (128,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0][batch]), data[1][batch]).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """In per cent, on the test images."""
    model.eval()
    found = [model(x).argmax(1) for x in data[2].split(1000)]
    return 100 * float((torch.cat(found) == data[3]).float().mean())


Arm = Callable[[niwaki.SearchSpace, Scores, niwaki.Budget], Plan]


def by(name: str) -> Arm:
    """Units by one criterion, without implants."""
    compare = "space" if name == "trace" else "group"
    return lambda space, scores, budget: niwaki.choose(space, scores[name], budget, compare=compare)  # type: ignore[arg-type]


def sharing(share: float | str) -> Arm:
    """By the relative trace, with implants."""
    return lambda space, scores, budget: implants.choose(space, scores["trace"], budget, implants=share)  # type: ignore[arg-type]


ARMS: dict[str, tuple[Arm, str]] = {
    "random": (by("random"), "centre"),
    "magnitude": (by("magnitude"), "centre"),
    "taylor2": (by("taylor2"), "centre"),
    "relative trace, no implants": (by("trace"), "centre"),
    "5 % implants": (sharing(0.05), "centre"),
    "10 % implants": (sharing(0.1), "centre"),
    "10 % implants, fitted": (sharing(0.1), "fitted"),
    "10 % implants, zero": (sharing(0.1), "zero"),
    "20 % implants": (sharing(0.2), "centre"),
    "by value": (sharing("value"), "centre"),
    "by value, fitted": (sharing("value"), "fitted"),
}


def recovery(data: Data, seed: int, budgets: list[float]) -> dict[tuple[float, str], tuple[float, float, float]]:
    """By budget and arm: the share of MACs, the accuracy after the cut and after 200 steps."""
    torch.manual_seed(seed)
    model = network()
    train(model, data, 1000, 0.1, seed)
    space = niwaki.search_space(model, data[0][:1])
    batches = [(data[0][i : i + 128], data[1][i : i + 128]) for i in range(0, 512, 128)]
    loss = nn.CrossEntropyLoss()
    scores = {
        "trace": niwaki.score(space, "relative_hessian_trace", batches, loss, seed=seed),
        "taylor2": niwaki.score(space, "taylor2", batches, loss),
        "magnitude": niwaki.score(space, "magnitude"),
        "random": niwaki.score(space, "random", seed=seed),
    }
    found = {(1.0, "dense"): (1.0, accuracy(model, data), 0.0)}
    train(longer := niwaki.cut(model, space.plan(np.ones(space.num_units, dtype=bool))), data, 200, 0.02, seed + 1)
    found[1.0, "dense"] = (1.0, found[1.0, "dense"][1], accuracy(longer, data))
    for share in budgets:
        for name, (arm, start) in ARMS.items():
            plan = arm(space, scores, niwaki.Budget(macs=share))
            begin = model
            if plan.edits_of(Implant) and start != "centre":
                inputs = [x for x, _ in batches]
                begin = implants.zero_implants(model, plan) if start == "zero" else implants.fitted(model, plan, inputs)
            small = niwaki.cut(begin, plan)
            niwaki.reestimate_norms(small, [x for x, _ in batches])
            before = accuracy(small, data)
            train(small, data, 200, 0.02, seed + 1)
            found[share, name] = (space.cost(plan).macs / space.cost().macs, before, accuracy(small, data))
    return found


# Where an arm stands in the picture: the share of implants, and how they begin.
SHARES: dict[str, tuple[float, str]] = {
    "relative trace, no implants": (0, "centre"),
    "5 % implants": (5, "centre"),
    "10 % implants": (10, "centre"),
    "10 % implants, fitted": (10, "fitted"),
    "10 % implants, zero": (10, "zero"),
    "20 % implants": (20, "centre"),
}


def plot(rows: list[dict[tuple[float, str], tuple[float, float, float]]], budgets: list[float], path: Path) -> None:
    """Accuracy after the cut and after the steps, over the share of implants; bars from the worst to the best seed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise SystemExit("A plot needs matplotlib: pip install matplotlib.") from cause

    figure = Figure(figsize=(5.5 * len(budgets), 4), layout="constrained")
    panels = figure.subplots(1, len(budgets), squeeze=False)[0]
    for panel, budget in zip(panels, budgets, strict=True):
        for column, when, marker in ((1, "after the cut", "o"), (2, "after 200 steps", "s")):
            for start, line in (("centre", "-"), ("fitted", ""), ("zero", "")):
                arms = [(share, name) for name, (share, how) in SHARES.items() if how == start]
                found = np.array([[row[budget, name][column] for row in rows] for _, name in arms])
                middle = found.mean(axis=1)
                bars = np.stack([middle - found.min(axis=1), found.max(axis=1) - middle])
                shift = {"centre": 0.0, "fitted": 0.4, "zero": -0.4}[start]
                at = [share + shift for share, _ in arms]
                panel.errorbar(at, middle, bars, fmt=marker + line, capsize=2, label=f"{start}, {when}")
            value = np.mean([row[budget, "by value"][column] for row in rows])
            panel.axhline(value, linestyle=":", color="grey")
            panel.annotate(f"by value, {when}", (20, value), ha="right", va="bottom", fontsize=7)
        panel.set(xlabel="implants, % of what would leave", ylabel="accuracy, %", title=f"{budget:.0%} of the MACs")
        panel.legend(fontsize=7)
    figure.savefig(path)


def latency(width: int, side: int) -> None:
    """Of four convolutions of ``width`` channels, on 8 images, whose weights are mostly in the centres of kernels."""
    for kernel in (3, 5, 7):
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(3 if first else width, width, kernel, padding=kernel // 2) for first in (True, *[False] * 3)
        ]
        with torch.no_grad():
            for layer in layers:
                centre = layer.weight[:, :, kernel // 2, kernel // 2].clone()
                layer.weight *= 0.2
                layer.weight[:, :, kernel // 2, kernel // 2] = centre
        model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Conv2d(width, 3, 1)).eval()
        x = torch.randn(8, 3, side, side)
        space = niwaki.search_space(model, x)
        space = niwaki.timed(space, x, implants=implants.ImplantLayers.of(space))
        times = space.cost_model.implant_times["2.weight"]
        print(f"kernel {kernel}: {times.whole / 1e3:.1f} us an output, {times.slim / 1e3:.1f} as an implant, ", end="")
        print(f"{times.fixed / 1e3:.0f} for the first", flush=True)

        def measured(small: nn.Module, model: nn.Module = model, x: Tensor = x) -> float:
            pair = niwaki.latency({"dense": model, "small": small}, x, threads=1, clock="cpu", seconds=1)
            return pair.ratios["small"].median

        scores = niwaki.score(space, "magnitude")
        for how, by in (("predicted alone", None), ("corrected", measured)):
            plan = implants.choose(space, scores, niwaki.Budget(latency=0.7), measured=by)
            number, left = (
                sum(len(edit.slim) for edit in plan.edits_of(Implant)),
                plan.provenance["predicted"]["latency"],
            )
            print(f"  {how}: {number} implants; predicted {left:.2f}, measured {measured(niwaki.cut(model, plan)):.2f}")


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("law").add_argument("--plans", type=int, default=1000)
    options = commands.add_parser("latency")
    options.add_argument("--width", type=int, default=64)
    options.add_argument("--side", type=int, default=32)
    options = commands.add_parser("recovery")
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3])
    options.add_argument("--plot", type=Path, help="a .png or .svg file")
    given = parser.parse_args()
    if given.command == "law":
        return law(given.plans)
    if given.command == "latency":
        return latency(given.width, given.side)
    data = fashion(given.data)
    rows = [recovery(data, seed, given.budgets) for seed in range(given.seeds)]
    table = Table("MACs at most", "arm", "MACs", "after the cut", "after 200 steps", "each seed")
    for share, name in rows[0]:
        macs, before, after = (np.mean([row[share, name][column] for row in rows]) for column in range(3))
        each = " ".join(f"{row[share, name][2]:.2f}" for row in rows)
        table.add_row(f"{share:.0%}", name, f"{macs:.1%}", f"{before:.2f}", f"{after:.2f}", each)
    Console(width=120).print(table)
    if given.plot is not None:
        plot(rows, given.budgets, given.plot)
    return None


if __name__ == "__main__":
    main()
