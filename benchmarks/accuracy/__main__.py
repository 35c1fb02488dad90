"""Accuracy at a given cost: every method beside dense training and baselines.

    python -m benchmarks.accuracy run --tasks fashion --budget 0.5 0.35 0.2 --data DIR
    python -m benchmarks.accuracy run --tasks fashion --moment 0.07 0.2 0.31 0.45 --arms hesso magnitude --data DIR
    python -m benchmarks.accuracy run --tasks digits         # a task of seconds, which needs no data
    python -m benchmarks.accuracy run --tasks cifar10-resnet56 cifar10-resnet18 --budget 0.5 0.2 --data DIR   # on a GPU
    python -m benchmarks.accuracy run --tasks cifar10-resnet56 --smoke --data DIR   # few images and steps: does it run
    python -m benchmarks.accuracy show --plots DIR           # the table and three plots, from the results on disk
    python -m benchmarks.accuracy readme                     # the picture and the tables of README.md and RESULTS.md

All arms of a task share network, recipe, number of optimizer steps, seeds (weights, order of examples) and data, and
are measured after the last step. The *moment* of a run is the share of it after which the last removed unit is zero:
methods end there, baselines cut there, and each method is trained once more at its own default. ``narrow`` has HESSO's
final widths (seed 0) from the first step, with fresh weights. What is chosen is chosen on training data that are held
out (``show --held-out``).

Every network is one line of a file of ``--out``; only what has no line yet is trained, so the same command resumes.

The data folder holds ``cifar10/cifar10_train_1.npz`` to ``5``, ``fashion_mnist/fashion_mnist.npz``,
``text/tinyshakespeare.txt``, ``text/tinystories_tok512.npz`` and ``weights/stories260K/``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.accuracy.arms import ARMS
from benchmarks.accuracy.chart import chart
from benchmarks.accuracy.plots import plots
from benchmarks.accuracy.protocol import jobs, trained
from benchmarks.accuracy.readme import ROOT, readme
from benchmarks.accuracy.rows import NAMES, append, missing, read
from benchmarks.accuracy.setting import DEFAULT_MOMENT
from benchmarks.accuracy.table import markdown
from benchmarks.accuracy.tasks import TASKS
from benchmarks.accuracy.where import Where
from niwaki.networks.torchvision_cpu import load

COMPARED = ("dense", "hesso", "narrow", "random", "magnitude", "taylor1")


def run(options: argparse.Namespace) -> int:
    """Train what is missing."""
    load()  # transformers imports torchvision
    torch.set_num_threads(options.threads)
    console = Console(width=150, highlight=False)
    where = Where(options.data, torch.device(options.device), options.smoke, options.all_images)
    wanted = jobs(where, options.tasks, options.arms, options.budget, options.moment, range(options.seeds), options.of)
    wanted = missing(wanted, read(options.out))
    for number, job in enumerate(wanted, 1):
        row = trained(job, where, read(options.out), options.save)
        append(options.out, row)
        value = f"{row.test:.2%}" if row.measure == "accuracy" else f"{row.test:.3f} nats"
        console.print(
            f"{number}/{len(wanted)} {row.task} {row.arm} {row.budget:g} at {row.moment:g} seed {row.seed}: {value}, "
            f"{row.macs:.1%} of the MACs, {row.seconds:.0f} s"
        )
    return 0


def show(options: argparse.Namespace) -> int:
    """The table, and the plots."""
    rows = [row for row in read(options.out) if row.task in options.tasks and row.arm in options.arms]
    print(markdown(rows, options.held_out))
    if options.plots:
        plots(rows, options.plots, options.moment, options.held_out)
    if options.chart:
        chart(rows, options.tasks[0], options.moment, options.chart)
    return 0


def write_readme(options: argparse.Namespace) -> int:
    """The picture and the tables of README.md and RESULTS.md."""
    readme(options.out)
    return 0


def main() -> int:
    options = _options()
    do: int = options.do(options)
    return do


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("run", help="train what is missing")
    training.set_defaults(do=run)
    showing = commands.add_parser("show", help="print a table of what there is, as Markdown")
    showing.set_defaults(do=show)
    face = commands.add_parser("readme", help="write the picture and the tables of README.md and RESULTS.md")
    face.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/accuracy/results", help="folder of results; %(default)s"
    )
    face.set_defaults(do=write_readme)
    for one, arms in ((training, COMPARED), (showing, tuple(ARMS))):
        one.add_argument("--tasks", nargs="+", choices=TASKS, required=one is training, default=list(TASKS))
        one.add_argument("--arms", nargs="+", choices=ARMS, default=list(arms))
        one.add_argument("--out", type=Path, default=Path("out/accuracy"), help="folder of results; %(default)s")
    training.add_argument("--budget", nargs="+", type=float, default=[0.35], help="shares to keep, of the MACs")
    training.add_argument(
        "--of", choices=NAMES, default="macs", help="what the budgets are shares of; default: %(default)s"
    )
    training.add_argument("--moment", nargs="+", type=float, default=[DEFAULT_MOMENT], help="shares of the run")
    training.add_argument("--seeds", type=int, default=3, help="how many, from 0; default: %(default)s")
    training.add_argument("--data", type=Path, help="the folder of the data")
    training.add_argument("--save", type=Path, help="a folder for the weights of every network that is trained")
    training.add_argument(
        "--all-images",
        action="store_true",
        help="train on the images that are held out, too: for dense networks beside published ones",
    )
    training.add_argument("--smoke", action="store_true", help="few examples and steps: does it run here")
    training.add_argument("--threads", type=int, default=1, help="of the CPU; default: %(default)s")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training.add_argument("--device", default=device, help="default here: %(default)s")
    showing.add_argument("--held-out", action="store_true", help="measured on held-out training data, for choices")
    showing.add_argument("--moment", type=float, default=DEFAULT_MOMENT, help="of the plots over MACs and time")
    showing.add_argument("--plots", type=Path, help="a folder for the plots")
    showing.add_argument("--chart", type=Path, help="an SVG of the first task, as in the README")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
