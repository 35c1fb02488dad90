"""What `niwaki.ATO` costs over a whole run, beside the same training without it: CPU time, and peak memory.

python -m benchmarks.masks.whole_run time small|resnet|decoder [--steps 300]
python -m benchmarks.masks.whole_run reckon small|resnet|decoder [--steps 1500 5000]
python -m benchmarks.masks.whole_run memory|peak resnet|decoder plain|analysed|ato

``time``: two trainings of the same network take turns, step by step, so that what else the machine does is the same for
both. ATO has its default arguments, a budget of half of the MACs, and a schedule from a tenth to seven tenths of the
run; its controller learns on two held-out batches of the training's size. *small* is the built-in ResNet on 64 images
of 8 pixels; the others are those of `benchmarks.masks.cost`.

``reckon``: for networks that are too slow for a whole run. The schedule is so short that a few steps go through all
phases; what each kind of step takes longer than the same step of the plain training is its median there, and counts as
often as it occurs in runs of so many steps.

``memory`` and ``peak``: one process for each, since a peak is that of a process. The schedule is so short that thirty
steps go through all of its phases. The target is the training's peak and one copy of the gated weights. *allocated*,
which ``memory`` prints, is what torch holds at most in one step, in which the controller takes one too, beyond what
there is before it. ``peak`` prints that of the process, which has what the allocator keeps besides. *analysed* is the
training alone in a process that has made the search space: what the analysis imports, and memory that it has had, stay
in the process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import niwaki
from benchmarks.masks.cost import MIB, decoder, resnet
from niwaki.masks.training import LATE
from niwaki.methods.stages import Stages
from niwaki.networks.small import ResNet
from niwaki.per_unit.unit_gates import UnitGates

Loss = Callable[[nn.Module], Tensor]
MEMORY = "[memory]"  # as the profiler calls events of its allocator
BRIEF = 50  # steps of a schedule that has all phases
FEW = 30  # steps of which memory is looked at


def small() -> tuple[nn.Module, Tensor, Loss, type[Any]]:
    """Images and classes."""
    model = ResNet(10, 1, (8, 8), (16, 32, 64), blocks=1)
    x, y = torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))
    return model, x[:1], lambda model: nn.functional.cross_entropy(model(x), y), torch.optim.SGD


def default_schedule(steps: int) -> niwaki.Schedule:
    """From a tenth to seven tenths of a run."""
    return niwaki.Schedule(start=max(2, steps // 10), until=7 * steps // 10, periods=1)


class Run:
    """A training that repeats one batch, with ATO or without."""

    def __init__(self, network: str, ato: bool, steps: int, analysed: bool = False) -> None:
        torch.manual_seed(0)
        self.model, inputs, self.loss, kind = {"small": small, "resnet": resnet, "decoder": decoder}[network]()
        more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        self.optimizer = kind(self.model.parameters(), lr=1e-3, **more)
        self.method: niwaki.ATO | None = None
        self.spent = 0.0
        if analysed:
            niwaki.search_space(self.model, inputs)
        if ato:
            schedule = default_schedule(steps)
            began = time.process_time()
            self.space = niwaki.search_space(self.model, inputs)
            self.method = niwaki.ATO(
                *(self.space, self.optimizer, niwaki.Budget(macs=0.5), schedule),
                loss_fn=lambda model, batch: self.loss(model),
                batches=[0, 1],
            )
            self.begun = time.process_time() - began

    def step(self) -> None:
        """One step, whose time counts."""
        began = time.process_time()
        self.model.train()
        self.optimizer.zero_grad()
        self.loss(self.model).backward()
        self.optimizer.step()
        self.spent += time.process_time() - began


def timed(network: str, steps: int) -> None:
    """Print one line."""
    plain, ato = Run(network, False, steps), Run(network, True, steps)
    for number in range(steps):
        for run in (plain, ato) if number % 2 else (ato, plain):
            run.step()
    assert ato.method is not None
    more = ato.spent / plain.spent - 1
    print(
        f"{network}: {steps} steps, {plain.spent:.1f} s without ATO and {ato.spent:.1f} s with it, {more:+.1%}; "
        f"{ato.method.step} steps counted, phase {ato.method.progress.phase}, {ato.method.progress.macs:.1%} of the "
        f"MACs; analysis and constructor {ato.begun:.1f} s"
    )


def reckoned(network: str, lengths: list[int]) -> None:
    """Print one line for each length."""
    plain, ato = Run(network, False, BRIEF), Run(network, True, BRIEF)
    method = ato.method
    assert method is not None
    stages, found = Stages.of(default_schedule(BRIEF)), dict[str, list[float]]()
    for number in range(BRIEF):
        taken, before = method.selector.controller.taken, (plain.spent, ato.spent)
        for run in (plain, ato) if number % 2 else (ato, plain):
            run.step()
        learnt = method.selector.controller.taken > taken
        looks = learnt and method.selector.controller.training.looks(stages.progress(method.step))
        projects = stages.project < method.step <= stages.until
        kind = ("looks" if looks else "settles" if learnt else "") + " and projects" * projects
        if stages.start <= method.step <= stages.until:
            found.setdefault("plain", []).append(plain.spent - before[0])
            found.setdefault(kind, []).append(ato.spent - before[1] - (plain.spent - before[0]))
    print(network, {kind: f"{1000 * statistics.median(one):.1f} ms ({len(one)})" for kind, one in found.items()})
    more = {kind: statistics.median(one) for kind, one in found.items()}
    for steps in lengths:
        stages = Stages.of(default_schedule(steps))
        looks = sum(stages.controls(n) and stages.progress(n) < LATE for n in range(steps))
        settles = stages.controller_steps - looks
        extra = (
            looks * more["looks"],
            settles * more["settles and projects"],
            (stages.until - stages.project) * more[" and projects"],
        )
        share = [one / (steps * more["plain"]) for one in extra]
        told = f"{looks} looks {share[0]:.1%}, {settles} settle {share[1]:.1%}, projection {share[2]:.1%}"
        print(f"{steps} steps: {told}; in all {sum(share):.1%}")


def allocated(run: Run) -> float:
    """The most that torch holds within a step beyond what there is before it, in MiB, without any gradients before."""
    run.optimizer.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run.step()
    events = sorted((e.start_ns(), e.nbytes()) for e in watched.profiler.kineto_results.events() if e.name() == MEMORY)
    held, most = 0, 0
    for _, size in events:
        held += size
        most = max(most, held)
    return most / 2**20


def peak(network: str, how: str) -> None:
    """Print one line."""
    run = Run(network, how == "ato", FEW, how == "analysed")
    for _ in range(FEW):
        run.step()
    print(f"{network} {how}: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB:,.0f} MiB")


def memory(network: str, how: str) -> None:
    """Print one line."""
    run = Run(network, how == "ato", FEW, how == "analysed")
    for _ in range(FEW // 3):
        run.step()
    weights = sum(p.numel() * p.element_size() for p in run.model.parameters()) / 2**20
    told = f"{network} {how}: allocated {allocated(run):,.0f} MiB in a step, weights {weights:,.0f} MiB"
    if how == "ato":
        sizes = dict(run.model.named_parameters())
        names = {name for name, _, _ in UnitGates(run.space).factors(torch.ones(run.space.num_units))}
        gated = sum(sizes[name].numel() * sizes[name].element_size() for name in names) / 2**20
        told += f", gated weights {gated:,.0f} MiB"
    print(told)


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("time", "reckon", "memory", "peak"))
    parser.add_argument("network", choices=("small", "resnet", "decoder"))
    parser.add_argument("how", nargs="?", choices=("plain", "analysed", "ato"), default="ato")
    parser.add_argument("--steps", type=int, nargs="+", default=[300])
    given = parser.parse_args()
    if given.what == "time":
        timed(given.network, given.steps[0])
    elif given.what == "reckon":
        reckoned(given.network, given.steps)
    elif given.what == "peak":
        peak(given.network, given.how)
    else:
        memory(given.network, given.how)


if __name__ == "__main__":
    main()
