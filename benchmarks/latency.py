"""What half the MACs buy in latency, for several steps of widths, and what a latency budget finds beyond a MACs budget.

    python benchmarks/latency.py --threads 2 --write benchmarks/LATENCY.md

A torchvision network with random weights and statistics of norms as they are made; latency does not depend on them, and
magnitudes of random weights say little, so which units leave is close to chance. Dense and cut networks take turns in
one process; a ratio is the median, over rounds, of two passes side by side. ONNX Runtime runs beside where
``pip install onnx onnxruntime onnxscript`` was done.

The second table: the plan of the MACs budget (``round_to=1``) keeps some share of the saliency and takes some time.
Budgets of less time are given to `niwaki.choose` (for the first batch size, in steps of ``--budget-round-to``), and
what it finds is measured beside that plan: is one of them faster that keeps no less? Needs torchvision.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

import niwaki
from niwaki.errors import BudgetError
from niwaki.networks.torchvision_cpu import load
from niwaki.report.latency_profile import LatencyProfile, kept_saliency

TARGETS = {("resnet50", 0.5, 1): 1.3, ("resnet50", 0.5, 8): 1.7}  # times as fast, with round_to=8, in torch, two cores
SHARES = (0.9, 0.95, 0.98)  # of the time that the MACs budget's plan takes


def table(found: LatencyProfile, batch: int) -> list[str]:
    """The profile of one batch size as Markdown."""
    names = list(found.latency)
    lines = [
        f"Batch {batch}. " + " ".join(f"{name}: {one.networks['dense']}." for name, one in found.latency.items()),
        "",
    ]
    lines.append("| round_to | MACs | kept saliency |" + "".join(f" {name}, ms | times as fast |" for name in names))
    lines.append("|---:|---:|---:|" + "---:|---:|" * len(names))
    dense = "".join(f" {found.latency[name].networks['dense'].median_us / 1e3:.2f} | |" for name in names)
    lines.append(f"| dense | 100 % | 100 % |{dense}")
    for row in found.rows:
        cells = ""
        for beside in found.latency.values():
            one, ratio = (kind[f"round_to={row.round_to}"] for kind in (beside.networks, beside.ratios))
            fast = f"{1 / ratio.median:.2f} ({1 / ratio.upper:.2f} to {1 / ratio.lower:.2f})"
            cells += f" {one.median_us / 1e3:.2f} | {fast} |"
        lines.append(f"| {row.round_to} | {row.macs / found.dense_macs:.1%} | {row.saliency:.1%} |{cells}")
    return [*lines, *(f"round_to={step}: {why}" for step, why in found.unmet.items()), ""]


def verdict(found: LatencyProfile, network: str, macs: float, batch: int) -> list[str]:
    """Whether the speed-up aimed at was reached, where one is."""
    wanted = TARGETS.get((network, macs, batch))
    beside = found.latency["torch"]
    if wanted is None or "round_to=8" not in beside.ratios:
        return []
    reached = 1 / beside.ratios["round_to=8"].median
    said = "reached" if reached >= wanted else "MISSED"
    return [f"Target with round_to=8 in torch: {wanted} times as fast as dense; {reached:.2f}: {said}.", ""]


def latency_budget(
    space: niwaki.SearchSpace, x: torch.Tensor, macs: float, steps: list[int], seconds: float, rounds: int
) -> list[str]:
    """Plans of latency budgets beside that of the MACs budget, as Markdown: which is faster, which more salient."""
    scores = niwaki.score(space, "magnitude")
    first = niwaki.choose(space, scores, niwaki.Budget(macs=macs))
    networks = {"macs": niwaki.cut(space.model, first)}
    least = kept_saliency(space, scores, first)
    share = niwaki.latency({"dense": space.model, **networks}, x, seconds=seconds, rounds=rounds).ratios["macs"].median
    told = {"macs": (f"macs={macs}", space.cost(first).macs, least)}
    tried = 0
    for step in steps:
        for part in SHARES:
            budget = niwaki.Budget(latency=min(part * share, 1.0), round_to=step)
            tried += 1
            try:
                plan = niwaki.choose(space, scores, budget, example_inputs=x)
            except BudgetError:
                continue
            name = f"latency={budget.latency:.3f}, round_to={step}"
            networks[name] = niwaki.cut(space.model, plan)
            told[name] = (name, space.cost(plan).macs, kept_saliency(space, scores, plan))
    measured = niwaki.latency(networks, x, seconds=seconds, rounds=rounds)
    dense = space.cost().macs
    lines = [
        f"Batch {len(x)}: {len(networks) - 1} of {tried} latency budgets could be met. {measured.networks['macs']}.",
        "",
        "| budget | MACs | kept saliency | ms | time over that of the MACs budget |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, (budgeted, cost, kept) in told.items():
        one, ratio = measured.networks[name], measured.ratios[name]
        lines.append(f"| `{budgeted}` | {cost / dense:.1%} | {kept:.2%} | {one.median_us / 1e3:.2f} | {ratio} |")
    faster = [name for name, (_, _, kept) in told.items() if kept >= least and measured.ratios[name].upper < 1]
    said = f"reached by {len(faster)}" if faster else "MISSED"
    return [*lines, "", f"Target: faster (three quarters of all rounds) at no less saliency: {said}.", ""]


def main() -> None:
    """Measure and print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50", help="a classification network of torchvision")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--round-to", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring, per table and runtime")
    parser.add_argument("--rounds", type=int, default=15, help="the least number of passes of each network")
    parser.add_argument("--no-budget", action="store_true", help="leave out the latency budgets")
    parser.add_argument("--budget-round-to", type=int, nargs="+", default=[8], help="the steps of the latency budgets")
    parser.add_argument("--write", type=Path, help="a Markdown file for the tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = getattr(load().models, options.network)(weights=None).eval()
    shape = (3, options.size, options.size)
    space = niwaki.search_space(model, torch.randn(1, *shape))
    scores = niwaki.score(space, "magnitude")
    used = " ".join(
        [
            f"python benchmarks/latency.py --network {options.network} --size {options.size} --macs {options.macs}",
            f"--batches {' '.join(map(str, options.batches))} --round-to {' '.join(map(str, options.round_to))}",
            f"--budget-round-to {' '.join(map(str, options.budget_round_to))}",
            f"--threads {options.threads} --seconds {options.seconds:g} --rounds {options.rounds}",
        ]
    )
    lines = [
        f"# Latency of {options.network} at {options.macs:.0%} of the MACs",
        "",
        f"`{used}`: torch {torch.__version__}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}.",
        "",
    ]
    printed = 0
    for batch in options.batches:
        x = torch.randn(batch, *shape)
        budget = niwaki.Budget(macs=options.macs)
        found = niwaki.latency_profile(
            space, scores, budget, x, round_to=options.round_to, seconds=options.seconds, rounds=options.rounds
        )
        lines += [*table(found, batch), *verdict(found, options.network, options.macs, batch)]
        if batch == options.batches[0] and not options.no_budget:
            steps = options.budget_round_to
            lines += latency_budget(space, x, options.macs, steps, options.seconds, options.rounds)
        print("\n".join(lines[printed:]), flush=True)
        printed = len(lines)
        if options.write is not None:
            options.write.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
