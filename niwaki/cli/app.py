"""The `niwaki` command. Errors are one sentence on stderr and a non-zero exit code.

Each command is a file of its own, which is imported when it is called: `niwaki --help` does not wait for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from niwaki.errors import Interrupted, NiwakiError
from niwaki.version import __version__

app = typer.Typer(
    help="Prune a PyTorch network while it trains; the smaller network equals the trained one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# What stands behind the name of a command, --help included, is read by the command itself.
_UNREAD = {"ignore_unknown_options": True, "allow_extra_args": True}


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"niwaki {__version__}\n")
        raise typer.Exit


@app.callback()
def niwaki(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command(add_help_option=False, context_settings=_UNREAD)
def train(context: typer.Context) -> None:
    """Train a network once, prune it on the way, and save the smaller one."""
    from niwaki.cli.train import train as function

    _run(context, function)


@app.command(add_help_option=False, context_settings=_UNREAD)
def prune(context: typer.Context) -> None:
    """Make a trained network smaller without training it, and save it."""
    from niwaki.cli.prune import prune as function

    _run(context, function)


@app.command(add_help_option=False, context_settings=_UNREAD)
def report(context: typer.Context) -> None:
    """Write the page of a run again, from its report.json."""
    from niwaki.cli.report import report as function

    _run(context, function)


@app.command(add_help_option=False, context_settings=_UNREAD)
def inspect(context: typer.Context) -> None:
    """Print what of a network can be pruned, what cannot, and why, without training it."""
    from niwaki.cli.inspect import inspect as function

    _run(context, function)


def command_of(function: Callable[..., None]) -> typer.core.TyperCommand:
    """A function with annotated options as a command."""
    alone = typer.Typer(add_completion=False)
    alone.command()(function)
    command = typer.main.get_command(alone)
    assert isinstance(command, typer.core.TyperCommand)
    return command


def _run(context: typer.Context, function: Callable[..., None]) -> None:
    command = command_of(function)
    with command.make_context(context.info_name, context.args, parent=context.parent) as inner:
        command.invoke(inner)


def main() -> None:
    """Run the command line; the entry point of the console script."""
    try:
        app(standalone_mode=True)
    except Interrupted as stop:
        _say(stop)
        sys.exit(130)
    except NiwakiError as error:
        _say(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("niwaki: interrupted.\n")
        sys.exit(130)
    except OSError as error:
        _say(error)
        sys.exit(1)


def _say(error: Exception) -> None:
    sys.stderr.write(f"niwaki: {error}\n")
