"""`niwaki prune`: make a trained network smaller without training it, and say what was lost."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from niwaki.cli.inputs import output_directory
from niwaki.cli.tables import latency_row
from niwaki.core.describe import new_weights
from niwaki.post_training.iterative import REPAIRS
from niwaki.report import PAGE_FILE, RoundBar, RunReport
from niwaki.report.content import headline_of
from niwaki.train.pruning import PruningRecipe, prune_trained

_MODEL = "resnet, mlp, superresnet, unets, cells, supernet, timm:NAME, torchvision:NAME or path/to/file.py:factory"


def prune(
    model: Annotated[str, typer.Argument(help=f"{_MODEL}; a factory may return a trained network")],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="those of its training: a .safetensors, .pt or .pth file of a state dictionary, or a directory that "
            "niwaki wrote  \\[default: as the factory makes it]",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, an .npz file with images and labels, or a folder of images per class  \\[default: those of "
            "the training, or digits]"
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="scale and crop all images to this size, 64 or 64x96 (height by width)  \\[default: as the training "
            "did]",
        ),
    ] = None,
    keep_macs: Annotated[
        float | None,
        typer.Option(help="multiply-accumulates to keep: a fraction up to 1, or a number  \\[default: 0.5]"),
    ] = None,
    keep_params: Annotated[
        float | None, typer.Option(help="parameters to keep: a fraction up to 1, or a number")
    ] = None,
    keep_memory: Annotated[
        float | None, typer.Option(help="bytes of parameters and buffers to keep: a fraction up to 1, or a number")
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="what chooses the units: surgeon, cap, hap, or a criterion such as taylor1 or magnitude"),
    ] = "surgeon",
    rounds: Annotated[
        int | None, typer.Option(help="how often the network is scored on the way  \\[default: 4; 1 with --refine]")
    ] = None,
    repair: Annotated[
        str | None,
        typer.Option(
            help=f"of the remaining weights: {', '.join(REPAIRS)}  \\[default: compensate; norms with --method hap]"
        ),
    ] = None,
    refine: Annotated[
        int, typer.Option(help="how often every group is tried wider and narrower, which takes minutes")
    ] = 0,
    images: Annotated[int, typer.Option(help="training images that score and repair")] = 1024,
    repair_images: Annotated[
        int | None,
        typer.Option(help="training images of the last repair; see niwaki.compensate on memory  \\[default: --images]"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="images per batch")] = 128,
    seed: Annotated[
        int | None,
        typer.Option(
            help="random seed (choice of the images, and their split if the training's is not known)  \\[default: that "
            "of the training, or 0]"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(parser=output_directory, metavar="PATH", help="output directory")] = Path("out"),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier run in --out")] = False,
) -> None:
    """Make a trained network smaller without training it, and save it."""
    if keep_macs is keep_params is keep_memory is None:
        keep_macs = 0.5
    recipe = PruningRecipe(
        model=model,
        data=data,
        weights=weights,
        keep_macs=keep_macs,
        keep_params=keep_params,
        keep_memory=keep_memory,
        method=method,
        rounds=rounds,
        repair=repair,
        refine=refine,
        images=images,
        repair_images=repair_images,
        batch_size=batch_size,
        seed=seed,
        image_size=image_size,
    )
    console, errors = Console(), Console(stderr=True)
    bar: Any = RoundBar(errors) if errors.is_terminal else nullcontext()
    with bar as told:
        report = prune_trained(recipe, out, device=device, overwrite=overwrite, told=told)
    console.print(f"{headline_of(report)}", style="bold", highlight=False)
    console.print(pruning_table(report))
    console.print(f"Saved to [bold]{escape(str(out))}[/]: model.safetensors, plan.json, report.json, report.html")
    console.print(
        f"Look at it: {out / PAGE_FILE}\nUse it:     niwaki.load_run({str(out)!r})", highlight=False, markup=False
    )


def pruning_table(report: RunReport) -> Table:
    """Dense against cut against repaired: accuracy, loss, cost and latency."""
    dense, small, repair = report.dense, report.small, report.repair
    assert repair is not None
    repaired = report.recipe["repair"] != "none"
    table = Table(title=escape(f"{report.recipe['model']} on {report.data['name']}"), title_justify="left")
    for name in ("", "dense", *(("cut", "repaired") if repaired else ("cut",)), "ratio"):
        table.add_column(name, justify="right" if name else "left")
    lost = [f"{dense.accuracy:.2%}", *([f"{repair['accuracy_before']:.2%}"] if repaired else [])]
    table.add_row("test accuracy", *lost, f"{small.accuracy:.2%}", "")
    losses = [f"{repair['losses'][name]:.3f}" for name in ("dense", "cut", "repaired") if name in repair["losses"]]
    table.add_row("loss on the batches", *losses, "")
    same = [""] if repaired else []
    for name, before, after in (
        ("MACs", dense.macs, small.macs),
        ("parameters", dense.params, small.params),
        ("memory, KiB", dense.memory // 2**10, small.memory // 2**10),
    ):
        table.add_row(name, f"{before:,}", *same, f"{after:,}", f"{after / max(before, 1):.1%}")
    for number, (old, new) in enumerate(zip(dense.latency, small.latency, strict=True)):
        name, first, second, share = latency_row(old, new, report.ratios[number])
        table.add_row(name, first, *same, second, share)
    left = "".join(f" Not repaired: {escape(name)}, {escape(why)}." for name, why in repair["left"].items())
    layers = f" {new_weights(repair['layers'])}" if report.recipe["repair"] == "compensate" else ""
    table.caption = (
        f"Units chosen by {escape(repair['method'])} in {repair['rounds']} round"
        f"{'s' if repair['rounds'] > 1 else ''}. The cut is exact: max. difference "
        f"{report.check['deviation']:.1e} (relative).{layers}{left} It took {report.seconds:.0f} s on "
        f"{report.versions['device']}."
    )
    table.caption_justify = "left"
    return table
