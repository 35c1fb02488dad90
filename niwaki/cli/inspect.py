"""`niwaki inspect`: what of a network can be pruned, what cannot, and why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from niwaki.cli.inputs import parse_inputs, parse_shares
from niwaki.cli.inspect_model import Request, inspect_model
from niwaki.cli.inspect_tables import inspection_tables
from niwaki.errors import NiwakiError
from niwaki.networks import forms
from niwaki.report.draw import check_drawable, draw


def inspect(
    model: Annotated[str, typer.Argument(help=f"{forms()}; an hf: configuration that names its class needs no CLASS")],
    input: Annotated[
        list[str] | None,
        typer.Option(
            help="shape of an input: 1x3x224x224, 1x16:int64 or, for a keyword, input_ids=1x16:int64; once per "
            "argument  \\[default: the usual input of the network]"
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="classes of the network's head  \\[default: its usual number]")
    ] = None,
    keep: Annotated[str, typer.Option(help="fractions of the MACs to predict the cost for")] = "0.75,0.5,0.25",
    draw_to: Annotated[
        Path | None,
        typer.Option("--draw", metavar="FILE", help="draw modules and groups: an .html, .dot or .svg (by Graphviz)"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="cut by random plans and compare with the masked network")
    ] = False,
    meta: Annotated[bool, typer.Option("--meta", help="build without weights, on the meta device")] = False,
    allow_inexact: Annotated[
        bool,
        typer.Option(
            "--allow-inexact",
            help="also offer units whose removal changes the result although they are zero, such as the width across a "
            "LayerNorm; --check tests the others",
        ),
    ] = False,
    as_graph: Annotated[
        bool,
        typer.Option(
            "--as-graph",
            help="export the network and analyse the program: sizes that are numbers in the source can be pruned there",
        ),
    ] = False,
    erase: Annotated[
        bool,
        typer.Option("--erase", help="also list structures that could vanish as a whole, and why others cannot"),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON instead of tables")] = False,
) -> None:
    """Print what of a network can be pruned, what cannot, and why, without training it.

    Exit code 0: done; 1: with --check, a cut is not exact; 2: the network could not be inspected.
    """
    try:
        request = Request(
            model, parse_inputs(input or ()), classes, parse_shares(keep), check, meta, allow_inexact, as_graph, erase
        )
        if draw_to is not None:
            check_drawable(draw_to)
        with _progress() as say:
            space, found = inspect_model(request, say)
            if draw_to is not None:
                say(f"drawing {draw_to}")
                draw(space, draw_to, model)
    except (NiwakiError, OSError) as error:
        sys.stderr.write(f"niwaki: {error}\n")
        raise typer.Exit(2) from error
    if as_json:
        sys.stdout.write(found.to_json() + "\n")
    else:
        console = Console()
        for part in inspection_tables(found):
            console.print(part, highlight=False)
        if draw_to is not None:
            console.print(f"Drawn to {draw_to}", markup=False, highlight=False)
    if found.law is not None and not found.law.holds:
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A progress line on stderr, erased afterwards; silent without a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status("starting") as status:
        yield lambda stage: status.update(stage)
