"""Accuracy at a given cost: HESSO against dense training, random and one-shot pruning, and a narrow network.

    python benchmarks/accuracy.py                                     # digits, five seeds
    python benchmarks/accuracy.py --fashion fashion_mnist.npz         # and Fashion-MNIST, three seeds
    python benchmarks/accuracy.py --deep --fashion fashion_mnist.npz  # HESSO-CRIC beside HESSO, 70 to 90 % of all units

All arms of a task share the recipe, the number of optimizer steps, the seeds (weights, order of images) and the test
images; accuracy is that of the last epoch. ``random`` and ``one-shot`` train densely until the step at which HESSO has
removed everything, are cut there to the same budget, and train on. ``narrow`` is the built-in network with all widths
scaled to the same MACs, trained from scratch. Any registered method can be an arm. ``--deep`` limits units instead of
MACs and compares HESSO-CRIC with HESSO, three seeds. Prints a table and writes every single run to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import niwaki
from niwaki.methods.registry import methods
from niwaki.train.data import load_images
from niwaki.train.loop import Run, Silent, accuracy
from niwaki.train.recipe import Recipe

ARMS = ("dense", "hesso", "one-shot", "random", "narrow")
CORRECTED = ("hesso", "hesso-cric")
DEEP = (0.3, 0.2, 0.1)  # shares of the units to keep


@dataclass(frozen=True)
class Experiment:
    """A data set, a budget, and what to compare on it."""

    name: str
    recipe: Recipe
    seeds: int
    arms: tuple[str, ...]
    margin: float
    train_limit: int | None = None
    cut_at: float | None = None


@dataclass(frozen=True)
class Result:
    """One trained network."""

    experiment: str
    arm: str
    seed: int
    accuracy: float
    macs: int
    params: int
    dense_macs: int
    dense_params: int
    seconds: float


def one_run(experiment: Experiment, arm: str, seed: int) -> Result:
    """Train one arm with one seed."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    images = load_images(experiment.recipe.data, seed)
    if experiment.train_limit is not None:
        images = images.first(experiment.train_limit)
    recipe = replace(experiment.recipe, seed=seed, method=arm if arm in methods() else "none")
    if arm == "narrow":
        recipe = replace(recipe, width=narrow_width(experiment, images.first(64)))
    cpu = torch.device("cpu")
    run = Run(recipe, images, cpu)
    dense = run.space.cost() if arm != "narrow" else Run(experiment.recipe, images, cpu).space.cost()
    if arm in ("one-shot", "random"):
        share = recipe.prune_until if experiment.cut_at is None else experiment.cut_at
        run.advance(Silent(), round(share * run.steps))
        scores = niwaki.score(run.space, "magnitude" if arm == "one-shot" else "random")
        run.replace_model(niwaki.cut(run.model, niwaki.choose(run.space, scores, recipe.budget())))
    run.advance(Silent())
    plan = run.plan()
    final = run.model if plan is None else niwaki.cut(run.model, plan)
    cost = niwaki.search_space(final, run.batches.example(), rehearse=False).cost()
    return Result(
        experiment=experiment.name,
        arm=arm,
        seed=seed,
        accuracy=accuracy(final, run.batches),
        macs=cost.macs,
        params=cost.params,
        dense_macs=dense.macs,
        dense_params=dense.params,
        seconds=time.perf_counter() - begin,
    )


def narrow_width(experiment: Experiment, images: object) -> float:
    """The largest width, in steps of half a channel of the last stage, whose MACs are within the budget."""
    from niwaki.train.models import Task, build_model

    task = Task(images.classes, images.channels, images.size)  # type: ignore[attr-defined]
    example = torch.zeros(1, task.channels, *task.size)
    limit = None
    for step in range(128, 0, -1):
        space = niwaki.search_space(build_model(experiment.recipe.model, task, step / 128), example, rehearse=False)
        macs = space.cost().macs
        limit = limit or macs * (experiment.recipe.keep_macs or 1.0)
        if macs <= limit:
            return step / 128
    raise SystemExit("No width meets the budget.")


def table(experiment: Experiment, results: Sequence[Result]) -> Table:
    """One row per arm."""
    out = Table(
        title=f"{experiment.name}: {experiment.seeds} seeds, {experiment.recipe.epochs} epochs, "
        f"{experiment.recipe.budget()}",
        title_justify="left",
    )
    for heading in ("arm", "accuracy", "each seed", "less than dense", "MACs", "parameters", "s per run"):
        out.add_column(heading, justify="left" if heading == "arm" else "right")
    dense = accuracies(results, "dense")
    for arm in experiment.arms:
        mine = [result for result in results if result.arm == arm]
        values = accuracies(results, arm)
        gaps = [100 * (a - b) for a, b in zip(dense or values, values, strict=True)]
        spread = f" ± {statistics.stdev(gaps):.2f}" if len(gaps) > 1 else ""
        out.add_row(
            arm,
            f"{statistics.mean(values):.2%}",
            " ".join(f"{100 * value:.2f}" for value in values),
            "" if arm == "dense" or not dense else f"{statistics.mean(gaps):.2f}{spread}",
            f"{statistics.mean(r.macs / r.dense_macs for r in mine):.1%}",
            f"{statistics.mean(r.params / r.dense_params for r in mine):.1%}",
            f"{statistics.mean(r.seconds for r in mine):.0f}",
        )
    return out


def accuracies(results: Sequence[Result], arm: str) -> list[float]:
    """Test accuracy by seed."""
    return [r.accuracy for r in sorted(results, key=lambda r: r.seed) if r.arm == arm]


def claims(experiment: Experiment, results: Sequence[Result]) -> list[tuple[str, bool]]:
    """What this comparison must show, and whether it does."""
    if experiment.arms == CORRECTED:
        means = [100 * statistics.mean(accuracies(results, arm)) for arm in CORRECTED]
        return [(f"hesso-cric is not below hesso (by {means[1] - means[0]:+.2f} points)", means[1] >= means[0])]
    mean = {arm: statistics.mean(accuracies(results, arm)) for arm in experiment.arms}
    limit = experiment.recipe.keep_macs or 1.0
    gap = 100 * (mean["dense"] - mean["hesso"])
    found = [
        (f"hesso is within {experiment.margin} points of dense ({gap:.2f})", gap <= experiment.margin),
        (
            f"hesso keeps at most {limit:.0%} of the MACs",
            all(r.macs <= limit * r.dense_macs for r in results if r.arm == "hesso"),
        ),
    ]
    for arm, words, slack in (
        ("random", "above a random plan trained on", 0.0),
        ("one-shot", "above one-shot magnitude pruning", 0.0),
        ("narrow", "not below a small network from scratch", 1e-9),
    ):
        if arm in mean:
            better = 100 * (mean["hesso"] - mean[arm])
            found.append((f"hesso is {words} (by {better:+.2f} points)", better + slack > 0))
    return found


def deep(options: argparse.Namespace) -> list[Experiment]:
    """HESSO-CRIC beside HESSO where nearly everything leaves."""
    found = []
    for share in DEEP:
        recipe = Recipe(keep_macs=None, keep_units=share, epochs=options.epochs or 20)
        if options.only != "fashion":
            found.append(Experiment(f"digits, {share:.0%} of the units", recipe, options.seeds or 3, CORRECTED, 0.0))
        if options.fashion is not None and options.only != "digits":
            recipe = replace(recipe, data=str(options.fashion), epochs=options.epochs or 6)
            name = f"Fashion-MNIST, 10,000 images, {share:.0%} of the units"
            found.append(Experiment(name, recipe, options.seeds or 3, CORRECTED, 0.0, 10_000))
    return found


def main() -> None:
    """Run the experiments and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", type=Path, help="an .npz with x_train, y_train, x_test, y_test of Fashion-MNIST")
    parser.add_argument("--deep", action="store_true", help="HESSO-CRIC beside HESSO at 30, 20 and 10 %% of the units")
    parser.add_argument("--only", choices=("digits", "fashion"), help="run one experiment only")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated; default: all")
    parser.add_argument("--seeds", type=int, help="default: five for digits, three for Fashion-MNIST")
    parser.add_argument("--epochs", type=int, help="default: the recipe's for digits, 12 for Fashion-MNIST")
    parser.add_argument("--cut-at", type=float, help="share of the run after which random and one-shot are cut")
    parser.add_argument("--prune-until", type=float, default=Recipe().prune_until, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one core each")
    parser.add_argument("--out", type=Path, default=Path("out/accuracy.json"))
    options = parser.parse_args()
    arms = tuple(options.arms.split(","))
    if options.fashion is not None and not options.fashion.is_file():
        parser.error(f"there is no file {options.fashion}")
    if unknown := set(arms) - set(ARMS) - set(methods()):
        parser.error(f"unknown arms: {', '.join(sorted(unknown))}")

    experiments = deep(options) if options.deep else []
    if options.only != "fashion" and not options.deep:
        recipe = Recipe(keep_macs=0.4, epochs=options.epochs or Recipe().epochs, prune_until=options.prune_until)
        experiments.append(Experiment("digits", recipe, options.seeds or 5, arms, 0.7, None, options.cut_at))
    if options.fashion is not None and options.only != "digits" and not options.deep:
        recipe = Recipe(
            data=str(options.fashion), keep_macs=0.3, epochs=options.epochs or 12, prune_until=options.prune_until
        )
        experiments.append(
            Experiment("Fashion-MNIST, 10,000 images", recipe, options.seeds or 3, arms, 1.5, 10_000, options.cut_at)
        )
    if not experiments:
        parser.error("--only fashion needs --fashion PATH")

    console = Console(width=130)
    tasks = [(e, arm, seed) for e in experiments for seed in range(e.seeds) for arm in e.arms]
    results: list[Result] = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for number, result in enumerate(pool.map(one_run, *zip(*tasks, strict=True)), 1):
            results.append(result)
            console.print(
                f"{number}/{len(tasks)} {result.experiment} {result.arm} seed {result.seed}: {result.accuracy:.2%}, "
                f"{result.macs / result.dense_macs:.1%} of the MACs, {result.seconds:.0f} s",
                highlight=False,
            )
    verdicts = []
    for experiment in experiments:
        mine = [result for result in results if result.experiment == experiment.name]
        console.print(table(experiment, mine))
        known = {"dense", "hesso"} <= set(experiment.arms) or experiment.arms == CORRECTED
        for words, holds in claims(experiment, mine) if known else []:
            console.print(f"{'yes' if holds else 'NO '}  {words}", highlight=False)
            verdicts.append(holds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps(
            {
                "command": " ".join(sys.argv),
                "niwaki": niwaki.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "recipes": {e.name: e.recipe.to_dict() | {"data": Path(e.recipe.data).name} for e in experiments},
                "results": [asdict(result) for result in results],
            },
            indent=1,
        )
    )
    console.print(f"Every run: {options.out}", highlight=False)
    sys.exit(0 if all(verdicts) else 1)


if __name__ == "__main__":
    main()
