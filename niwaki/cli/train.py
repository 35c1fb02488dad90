"""`niwaki train`: train a network once, prune it on the way, and save the smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from niwaki.cli.inputs import output_directory
from niwaki.cli.live import LiveObserver
from niwaki.cli.tables import report_parts
from niwaki.errors import RunError
from niwaki.report import REPORT_FILE, read_report
from niwaki.train.baseline import add_baseline, baseline_waits, check_place
from niwaki.train.checkpoint import read_checkpoint
from niwaki.train.job import AUTO
from niwaki.train.job import train as run_job
from niwaki.train.recipe import LEARNING_RATES, NO_METHOD, Recipe, choices

_DEFAULT = Recipe()
_MODEL = "resnet, mlp, superresnet, unets, cells, supernet, timm:NAME, torchvision:NAME or path/to/file.py:factory"


def train(
    context: typer.Context,
    model: Annotated[str, typer.Option(help=_MODEL)] = _DEFAULT.model,
    data: Annotated[
        str,
        typer.Option(
            help="digits, an .npz file with images and labels, or a folder of images per class, perhaps in train/ and "
            "val/"
        ),
    ] = _DEFAULT.data,
    method: Annotated[str, typer.Option(help=f"{choices()}, which trains the dense network")] = _DEFAULT.method,
    keep_macs: Annotated[
        float | None,
        typer.Option(help="multiply-accumulates to keep: a fraction up to 1, or a number  \\[default: 0.4]"),
    ] = None,
    keep_params: Annotated[
        float | None, typer.Option(help="parameters to keep: a fraction up to 1, or a number")
    ] = None,
    epochs: Annotated[int, typer.Option(help="passes over the training images")] = _DEFAULT.epochs,
    batch_size: Annotated[int, typer.Option(help="images per optimizer step")] = _DEFAULT.batch_size,
    optimizer: Annotated[str, typer.Option(help=f"{' or '.join(LEARNING_RATES)}")] = _DEFAULT.optimizer,
    lr: Annotated[
        float | None,
        typer.Option(
            help="peak learning rate  \\[default: "
            + ", ".join(f"{rate:g} for {name}" for name, rate in LEARNING_RATES.items())
            + "]"
        ),
    ] = _DEFAULT.lr,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="where the training starts: a .safetensors, .pt or .pth file of a state dictionary, or a directory "
            "that niwaki wrote  \\[default: random weights]",
        ),
    ] = _DEFAULT.weights,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="scale and crop all images to this size, 64 or 64x96 (height by width)  \\[default: as they are]",
        ),
    ] = _DEFAULT.image_size,
    periods: Annotated[
        int, typer.Option(help="portions in which units leave; fewer where there are fewer optimizer steps")
    ] = _DEFAULT.periods,
    seed: Annotated[int, typer.Option(help="random seed (initialisation, split, order, augmentation)")] = _DEFAULT.seed,
    prune_start: Annotated[
        float, typer.Option(help="fraction of the run after which pruning begins")
    ] = _DEFAULT.prune_start,
    prune_until: Annotated[
        float, typer.Option(help="fraction of the run after which pruning is complete")
    ] = _DEFAULT.prune_until,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="remove units as they reach zero: the rest of the run is cheaper")
    ] = _DEFAULT.shrink,
    erase: Annotated[
        bool,
        typer.Option("--erase", help="erase whole branches and blocks instead of units (h2spg, hesso, hesso-cric)"),
    ] = _DEFAULT.erase,
    narrow: Annotated[
        bool, typer.Option("--narrow", help="with --erase: remove units as well, whichever is worth less for its cost")
    ] = _DEFAULT.narrow,
    out: Annotated[Path, typer.Option(parser=output_directory, metavar="PATH", help="output directory")] = Path("out"),
    device: Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")] = AUTO,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="then train the dense network as well, to compare with")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the last checkpoint in --out")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an earlier run in --out, and its baseline")
    ] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="optimizer steps between checkpoints  \\[default: one epoch]")
    ] = None,
) -> None:
    """Train a network once, prune it on the way, and save the smaller one."""
    if keep_macs is None and keep_params is None:
        keep_macs = _DEFAULT.keep_macs
    options: dict[str, Any] = {
        "model": model,
        "data": data,
        "method": method,
        "keep_macs": keep_macs,
        "keep_params": keep_params,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "prune_start": prune_start,
        "prune_until": prune_until,
        "shrink": shrink,
        "erase": erase,
        "narrow": narrow,
        "optimizer": optimizer,
        "weights": weights,
        "image_size": image_size,
        "periods": periods,
    }
    console = Console()
    options_of_run: dict[str, Any] = {"device": device, "checkpoint_every": checkpoint_every}
    continues = resume and (out / REPORT_FILE).exists() and baseline_waits(out)
    if continues:
        baseline, report = True, read_report(out)
    else:
        recipe = _resumed(context, options, out) if resume else Recipe(**options)
        if baseline and recipe.method != NO_METHOD:
            check_place(out, overwrite=overwrite)
        with LiveObserver(console, recipe.epochs) as observer:
            report = run_job(recipe, out, observer, resume=resume, overwrite=overwrite, **options_of_run)
    if baseline and report.recipe["method"] != NO_METHOD:
        with LiveObserver(console, report.recipe["epochs"], "baseline") as observer:
            report = add_baseline(report, out, observer, overwrite=overwrite and not continues, **options_of_run)
    for part in report_parts(report, out):
        console.print(part, highlight=False)


def _resumed(context: typer.Context, options: dict[str, Any], out: Path) -> Recipe:
    """The recipe of the interrupted run; raises if an option of this call differs from it."""
    if out.is_dir() and (out / REPORT_FILE).exists():
        raise RunError(f"The run in {str(out)!r} has finished: there is nothing to resume.")
    recipe = Recipe(**read_checkpoint(out).facts["recipe"])
    given = {name: value for name, value in options.items() if _was_given(context, name)}
    if odd := recipe.differences(given):
        name = odd[0]
        there, option = recipe.to_dict()[name], f"--{name.replace('_', '-')}"
        said = f"the default {option}" if there is None else f"{option} {there}"
        raise RunError(
            f"The run in {str(out)!r} was started with {said}, not {given[name]}. Omit the option to resume "
            "it, or start another run."
        )
    return recipe


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
