"""What the methods add to ``optimizer.step()``: ratios to the bare step on the parameters of two networks, one process.

    python -m benchmarks.optimizer_step --rounds 5 --threads 1 --cpu-time --write benchmarks/optimizer_step/RESULTS.md

One model, one optimizer, random gradients; the methods are attached and detached around single steps, so that all
variants see the same memory, and each such step follows a bare one: the ratio is the median over the rounds of those of
the two. ``fading``, ``angle-safe fading`` and ``scoring and fading`` are taken in the sixth of ten periods at half the
MACs: half of what leaves is zero already, a tenth is fading. The half-space methods are taken while they change all
units (DHSPG: those that half the MACs ask for). HESSO-CRIC is taken in the middle of a cycle whose trial is half the
MACs, and at the end of a cycle of one window, where everything is taken back and the next trial chosen; its idle,
scoring, fading and keeping are HESSO's code, and taken once more. Needs torchvision. Where the package only-train-once
is installed (``pip install --no-deps only-train-once``), the step of the authors' HESSO stands beside, on ResNet-50. It
is an optimizer by itself: its ratio to torch's is compared with that of torch's with the method.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.optim import SGD, AdamW, Optimizer

import niwaki
from benchmarks.optimizer_step import peer
from benchmarks.optimizer_step.phases import CHANGES, PHASES, TARGETS, in_phase
from niwaki.methods.method import Method
from niwaki.networks.torchvision_cpu import load

NETWORKS = {"ResNet-50": "resnet50", "ViT-B/16": "vit_b_16"}
OPTIMIZERS: dict[str, Callable[[list[torch.nn.Parameter]], Optimizer]] = {
    "AdamW(foreach=True)": lambda parameters: AdamW(parameters, lr=1e-6, foreach=True),
    "AdamW(fused=True)": lambda parameters: AdamW(parameters, lr=1e-6, fused=True),
    "SGD(momentum=0.9)": lambda parameters: SGD(parameters, lr=1e-6, momentum=0.9, foreach=True),
}


def timed(
    clock: Callable[[], float], optimizer: Optimizer, method: Method | None = None, step: int = 0, again: bool = False
) -> float:
    """Seconds of one optimizer step. ``again``: it changes the state, which is put back."""
    if method is not None:
        state = method.state()
        method.attach()
        method.step = step
    begin = clock()
    optimizer.step()
    seconds = clock() - begin
    if method is not None:
        method.detach()
        if again:
            method.restore(state)
    return seconds


def measured(name: str, optimizers: list[str], rounds: int, clock: Callable[[], float]) -> dict[str, dict[str, float]]:
    """For each optimizer the milliseconds of its bare step and the ratio of each phase to it."""
    model = getattr(load().models, NETWORKS[name])(weights=None)
    space = niwaki.search_space(model, torch.randn(1, 3, 224, 224))
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-2
    results = {}
    for kind in optimizers:
        optimizer = OPTIMIZERS[kind](parameters)
        optimizer.step()  # so that there is a state to come back to
        bare: list[float] = []
        results[kind] = {"bare": 0.0}
        for phase in PHASES:
            method, step = in_phase(space, optimizer, phase)
            ratios = []
            for number in range(rounds + 1):
                alone = timed(clock, optimizer)
                ratio = timed(clock, optimizer, method, step, phase in CHANGES) / alone
                if number:  # the first warms up
                    bare.append(alone)
                    ratios.append(ratio)
            results[kind][phase] = statistics.median(ratios)
        results[kind]["bare"] = 1e3 * statistics.median(bare)
        if name == peer.NETWORK and kind in peer.VARIANTS and peer.available():
            results[kind] |= peer.measured(space, optimizer, kind, rounds, clock)
    return results


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """One column per network and optimizer."""
    columns = [(network, kind) for network in results for kind in results[network]]
    lines = [
        "| phase | target | " + " | ".join(f"{network}, {kind}" for network, kind in columns) + " |",
        "|---|---|" + "---|" * len(columns),
        "| bare step, ms | | " + " | ".join(f"{results[n][k]['bare']:.1f}" for n, k in columns) + " |",
    ]
    for phase in (*PHASES, *peer.PHASES):
        row = [f"{results[n][k][phase]:.2f}" if phase in results[n][k] else "" for n, k in columns]
        if any(row):
            lines.append(f"| {phase} | {f'{TARGETS[phase]:.2f}' if phase in TARGETS else ''} | {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--optimizers", nargs="*", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="of this process, for machines that others use too")
    parser.add_argument("--write", type=Path, help="a file for the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.manual_seed(0)
    shown = table({name: measured(name, options.optimizers, options.rounds, clock) for name in options.networks})
    kind = "CPU time of the process" if options.cpu_time else "wall time"
    about = (
        f"Ratios to the bare `optimizer.step()`, medians of {options.rounds} pairs of steps; {kind}, "
        f"{options.threads} thread(s), torch {torch.__version__}, {platform.processor() or platform.machine()}. The "
        "targets are for AdamW(foreach=True)."
    )
    print(f"{about}\n\n{shown}")
    if options.write:
        command = f"python -m benchmarks.optimizer_step --rounds {options.rounds} --threads {options.threads}"
        command += " --cpu-time" * options.cpu_time
        for option in ("networks", "optimizers"):
            if len(chosen := getattr(options, option)) < len(parser.get_default(option)):
                command += f" --{option} " + " ".join(f'"{name}"' for name in chosen)
        text = f"# What the methods add to a step\n\n    {command}\n\n{about}\n\n{shown}\n"
        options.write.write_text(text)


if __name__ == "__main__":
    main()
