"""`niwaki report`: write the page of a run again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import niwaki
from niwaki.cli.inputs import output_directory


def report(
    out: Annotated[Path, typer.Argument(parser=output_directory, metavar="PATH", help="the directory of the run")],
) -> None:
    """Write the page of a run again, from its report.json."""
    sys.stdout.write(f"{niwaki.report(out)}\n")
