"""What the methods add to ``optimizer.step()``: medians of interleaved steps on ResNet-50's parameters, one process.

    python benchmarks/optimizer_step.py --rounds 15 --threads 2

One model, one optimizer, random gradients; the methods are attached and detached around single steps, so that all
variants see the same memory. ``fading`` and ``scoring and fading`` are taken in the sixth of ten periods at half the
MACs: half of what leaves is zero already, a tenth is fading. The half-space methods are taken while they change all
units (DHSPG: those that half the MACs ask for). HESSO-CRIC is taken in the middle of a cycle whose trial is half the
MACs, and at the end of a cycle of one window, where everything is taken back and the next trial chosen; its idle,
scoring, fading and keeping are HESSO's code, and taken once more. Needs torchvision.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.optim import SGD, AdamW, Optimizer

import niwaki
from niwaki.methods.attach import Method
from niwaki.methods.fading import FADING, IMPORTANT, ZERO
from niwaki.methods.half_space import HalfSpace
from niwaki.methods.snapshot import Snapshot
from niwaki.selection import select
from niwaki.train.torchvision_cpu import load

TARGETS = {"idle": 1.05, "scoring": 1.7, "fading": 1.20, "keeping zeros": 1.12}
HALF_SPACE = ("HSPG stage 1", "HSPG stage 2", "AdaHSPG+ proximal", "AdaHSPG+ half-space", "DHSPG window", "DHSPG")
CRIC = ("CRIC idle", "CRIC scoring", "CRIC trial", "CRIC end of a cycle", "CRIC fading", "CRIC keeping zeros")
TARGETS |= {"CRIC idle": 1.05, "CRIC scoring": 1.7, "CRIC fading": 1.20, "CRIC keeping zeros": 1.12}
TARGETS |= dict.fromkeys(HALF_SPACE, 1.6) | {"DHSPG window": 1.7}

OPTIMIZERS: dict[str, Callable[[list[torch.nn.Parameter]], Optimizer]] = {
    "AdamW(foreach=True)": lambda parameters: AdamW(parameters, lr=1e-6, foreach=True),
    "AdamW(fused=True)": lambda parameters: AdamW(parameters, lr=1e-6, fused=True),
    "SGD(momentum=0.9)": lambda parameters: SGD(parameters, lr=1e-6, momentum=0.9, foreach=True),
}


def method_in(space: niwaki.SearchSpace, optimizer: Optimizer, phase: str) -> tuple[niwaki.HESSO, int]:
    """A detached HESSO, and the number of steps done when the step to be timed begins."""
    schedule = niwaki.Schedule(start=1001, until=2010, periods=10)
    method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.5), schedule)
    method.detach()
    leaving, step = {"idle": (0.0, 0.0), "scoring": (0.0, 0.0)}.get(phase, (0.5, 0.6)), {"idle": 0, "scoring": 1004}
    if phase == "keeping zeros":
        leaving = (1.0, 1.0)
    keep = [
        select(space, np.ones(space.num_units), {"macs": (1 - 0.5 * share) * space.cost().macs}) for share in leaving
    ]
    status = np.full(space.num_units, IMPORTANT, np.int8)
    status[~keep[1]] = FADING
    status[~keep[0]] = ZERO
    method.restore({"status": torch.from_numpy(status), "samples": 0})
    return method, {**step, "fading": 1550, "scoring and fading": 1606, "keeping zeros": 3000}[phase]


def corrected(space: niwaki.SearchSpace, optimizer: Optimizer, phase: str) -> tuple[niwaki.CRIC, int]:
    """The same of HESSO-CRIC."""
    schedule = niwaki.Schedule(start=1001, until=4010, periods=10)
    method = niwaki.CRIC(space, optimizer, niwaki.Budget(macs=0.5), schedule, layers=0, cycle=10)
    method.detach()
    state = method.state()
    half = select(space, np.ones(space.num_units), {"macs": 0.5 * space.cost().macs})
    trials = state["trials"] | {"trial": torch.from_numpy(~half), "cycle": 1, "began": 1010}
    if phase in ("CRIC trial", "CRIC end of a cycle"):
        state |= {"trials": trials, "snapshot": Snapshot.of(space.model, optimizer).data()}
    if phase in ("CRIC fading", "CRIC keeping zeros"):
        gone = FADING if phase == "CRIC fading" else ZERO
        status = np.where(half, IMPORTANT, gone).astype(np.int8)
        state |= {"trials": trials | {"ended": 1020}, "status": torch.from_numpy(status)}
    method.restore(state)
    steps = {"CRIC idle": 0, "CRIC scoring": 1004, "CRIC trial": 1014, "CRIC end of a cycle": 1019, "CRIC fading": 1100}
    return method, steps.get(phase, 5000)


def half_space(space: niwaki.SearchSpace, optimizer: Optimizer, phase: str) -> tuple[HalfSpace, int]:
    """The same of a half-space method, with a penalty that changes nothing."""
    schedule, budget = niwaki.Schedule(start=11, until=10**6), niwaki.Budget(macs=0.5)
    method: HalfSpace
    if phase.startswith("HSPG"):
        method = niwaki.HSPG(space, optimizer, budget, schedule, penalty=1e-9)
    elif phase.startswith("AdaHSPG+"):
        method = niwaki.AdaHSPG(space, optimizer, budget, schedule, penalty=1e-9)
    else:
        method = niwaki.DHSPG(space, optimizer, budget, schedule, penalty=1e-9, window=10**5)
    method.detach()
    state = method.state()
    if phase == "AdaHSPG+ half-space":
        method.restore(state | {"mode": "half-space"})
    if phase == "DHSPG":
        keep = select(space, np.ones(space.num_units), {"macs": 0.5 * space.cost().macs})
        method.restore(state | {"chosen": torch.from_numpy(~keep)})
    return method, {"HSPG stage 1": 4}.get(phase, 14)


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


def main() -> None:
    """Print one table per optimizer, and all numbers as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="of this process, for machines that others use too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.manual_seed(0)

    model = load().models.resnet50(weights=None)
    space = niwaki.search_space(model, torch.randn(1, 3, 224, 224))
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-2
    results = {}
    for name, build in OPTIMIZERS.items():
        optimizer = build(parameters)
        optimizer.step()  # so that there is a state to come back to
        phases = ("idle", "scoring", "fading", "scoring and fading", "keeping zeros", *CRIC, *HALF_SPACE)
        methods: dict[str, tuple[Method, int]] = {
            phase: (half_space if phase in HALF_SPACE else corrected if phase in CRIC else method_in)(
                space, optimizer, phase
            )
            for phase in phases
        }
        seconds: dict[str, list[float]] = {"bare": [], **{phase: [] for phase in phases}}
        for round_number in range(options.rounds + 2):
            for variant, times in seconds.items():
                again = variant == "CRIC end of a cycle"
                taken = timed(clock, optimizer, *methods.get(variant, ()), again=again)
                if round_number >= 2:
                    times.append(taken)
        medians = {variant: statistics.median(times) for variant, times in seconds.items()}
        results[name] = {variant: round(value * 1e3, 2) for variant, value in medians.items()}
        print(f"{name}: bare step {medians['bare'] * 1e3:.1f} ms")
        for phase in phases:
            target = f"  (target {TARGETS[phase]:.2f})" if phase in TARGETS and "foreach" in name else ""
            print(f"  {phase:20} {medians[phase] / medians['bare']:.3f}{target}")
    print(
        json.dumps(
            {
                "milliseconds": results,
                "rounds": options.rounds,
                "threads": options.threads,
                "clock": "cpu time" if options.cpu_time else "wall time",
                "torch": torch.__version__,
                "machine": platform.processor() or platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
