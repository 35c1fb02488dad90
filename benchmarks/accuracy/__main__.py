"""Accuracy at a given cost: every method beside dense training and baselines.

    python -m benchmarks.accuracy compare --data DIR         # Fashion-MNIST and CIFAR-10, all arms, 50 and 30 % of MACs
    python -m benchmarks.accuracy deep --data DIR            # HESSO-CRIC beside HESSO, 70 to 90 % of the units leave
    python -m benchmarks.accuracy defaults --data DIR        # six small tasks, HESSO's defaults, 60 % of the MACs
    python -m benchmarks.accuracy defaults --longer 3 ...    # three times the steps, for all arms
    python -m benchmarks.accuracy compare --full --data DIR  # on a GPU: ResNet-56, 200 epochs, bfloat16
    python -m benchmarks.accuracy compare --tasks digits     # needs no data
    python -m benchmarks.accuracy compare --show             # the table again, from the results on disk

All arms of a task share network, recipe, number of optimizer steps, seeds (weights, order of examples) and test data;
the result is that of the last step. Methods have their default arguments and prune from 10 to 35 % of the steps.
``random`` and ``one-shot`` (magnitude) train densely until then, are cut to the same budget and train on;
``torch-pruning`` does that with its group penalty acting while the methods prune; ``narrow`` is the network with all
widths scaled down to the budget, from scratch. Every network is one line of ``--out``/SUITE.jsonl; with ``--resume``
only what has no line yet is trained. Exit code 1: what the comparison should show does not hold.

The data folder holds ``cifar10/cifar10_train_1.npz`` to ``5``, ``fashion_mnist/fashion_mnist.npz``,
``text/tinyshakespeare.txt``, ``text/tinystories_tok512.npz`` and ``weights/stories260K/``.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console

import niwaki
from benchmarks.accuracy.arms import ARMS, BASELINES, METHODS
from benchmarks.accuracy.results import Job, Row, append, missing, read
from benchmarks.accuracy.show import markdown, plot, table
from benchmarks.accuracy.task import Task
from benchmarks.accuracy.tasks import TASKS, Where, built
from benchmarks.accuracy.verdicts import verdicts
from niwaki.train.torchvision_cpu import load


@dataclass(frozen=True, slots=True)
class Suite:
    """What is compared where, unless the command line says otherwise. ``budget``: what is limited, to ``shares``."""

    tasks: tuple[str, ...]
    arms: tuple[str, ...]
    budget: str
    shares: tuple[float, ...]
    seeds: int = 3


SUITES = {
    "compare": Suite(("fashion", "cifar10"), ("dense", *METHODS, *BASELINES), "macs", (0.5, 0.3)),
    "deep": Suite(("digits", "fashion"), ("hesso", "hesso-cric"), "units", (0.3, 0.2, 0.1)),
    "defaults": Suite(
        ("digits", "digits-vit", "fashion", "fashion-gru", "char-llama", "stories"),
        ("dense", "hesso", "narrow"),
        "macs",
        (0.6,),
    ),
}


def jobs(suite: Suite, where: Where) -> list[Job]:
    """All networks, seed by seed, so that a run that is stopped has whole comparisons."""
    found = []
    for seed in range(suite.seeds):
        for name in suite.tasks:
            recipe = about(built(name, where, seed))
            for arm in suite.arms:
                shares = (1.0,) if arm == "dense" else suite.shares
                found += [Job(name, arm, suite.budget, share, seed, recipe) for share in shares]
    return found


def about(task: Task) -> str:
    """The recipe of a task in words."""
    r = task.recipe
    optimizer = "AdamW" if r.adam else "SGD"
    return f"{task.name}: {r.steps} steps of {r.batch}, {optimizer}, lr {r.lr:g}, weight decay {r.weight_decay:g}"


def trained(job: Job, where: Where) -> Row:
    """Train one network."""
    clock = time.process_time if where.device.type == "cpu" else time.perf_counter
    begin = clock()
    task = built(job.task, where, job.seed)
    budget = niwaki.Budget(**{job.budget: job.share})
    model = ARMS[job.arm](task, job.seed, budget)
    value = task.evaluate(model)
    seconds = clock() - begin
    dense = niwaki.search_space(task.prepared(task.network(1.0)), task.example(), rehearse=False).cost()
    cost = niwaki.search_space(model, task.example(), rehearse=False).cost()
    return Row(
        **{name: getattr(job, name) for name in Job.__dataclass_fields__},
        measure=task.measure,
        value=value,
        macs=cost.macs / dense.macs,
        params=cost.params / dense.params,
        dense_macs=dense.macs,
        dense_params=dense.params,
        seconds=round(seconds, 1),
        device=where.device.type,
        niwaki=niwaki.__version__,
        torch=version("torch"),
    )


def main() -> int:
    """Train what is missing, then show everything."""
    options = _options()
    suite = SUITES[options.suite]
    suite = Suite(
        tuple(options.tasks or suite.tasks),
        tuple(options.arms or suite.arms),
        options.budget or suite.budget,
        tuple(options.shares or suite.shares),
        options.seeds or suite.seeds,
    )
    console = Console(width=150)
    longer = "" if options.longer == 1 else f"-longer{options.longer}"
    out = options.out / f"{options.suite}{'-full' if options.full else ''}{longer}.jsonl"
    if not options.show:
        load()  # transformers imports torchvision
        torch.set_num_threads(options.threads)
        if out.exists() and not options.resume:
            console.print(f"{out} is there already: go on with --resume, look at it with --show, or remove it.")
            return 2
        where = Where(options.data, torch.device(options.device), options.full, options.longer)
        wanted = missing(jobs(suite, where), read(out))
        for number, job in enumerate(wanted, 1):
            row = trained(job, where)
            append(out, row)
            value = f"{row.value:.2%}" if row.measure == "accuracy" else f"{row.value:.3f} nats"
            console.print(
                f"{number}/{len(wanted)} {row.task} {row.arm} {row.share:g} seed {row.seed}: {value}, "
                f"{row.macs:.1%} of the MACs, {row.seconds:.0f} s",
                highlight=False,
            )
    rows = [row for row in read(out) if row.task in suite.tasks and row.arm in suite.arms]
    if options.markdown:
        print(markdown(rows))
    else:
        console.print(table(rows))
    found = verdicts(options.suite, rows)
    for words, holds in found:
        console.print(f"{'yes' if holds else 'NO '}  {words}", highlight=False)
    if options.plot:
        plot(rows, options.plot)
    return 0 if all(holds for _, holds in found) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--data", type=Path, help="the folder of the data")
    parser.add_argument("--full", action="store_true", help="the full recipes of fashion and cifar10, for a GPU")
    parser.add_argument("--longer", type=int, default=1, help="so many times the steps of every recipe")
    parser.add_argument("--tasks", nargs="+", choices=TASKS)
    parser.add_argument("--arms", nargs="+", choices=ARMS)
    parser.add_argument("--budget", choices=("macs", "params", "units"), help="what is limited")
    parser.add_argument("--shares", nargs="+", type=float, help="the shares of it to keep")
    parser.add_argument("--seeds", type=int, help="how many, from 0")
    parser.add_argument("--resume", action="store_true", help="train only what has no line in the results yet")
    parser.add_argument("--show", action="store_true", help="train nothing")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--plot", type=Path, help="write a picture of accuracy against MACs (.png, .svg, .pdf)")
    parser.add_argument("--out", type=Path, default=Path("out/accuracy"), help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; default: %(default)s")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="default here: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
