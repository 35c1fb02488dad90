"""The public surface is frozen: a change of a name, a command or an option is a decision, not an accident."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import niwaki
from niwaki.cli import inspect as inspect_command
from niwaki.cli import prune as prune_command
from niwaki.cli import report as report_command
from niwaki.cli import train as train_command
from niwaki.cli.app import app, command_of

PUBLIC = {
    "ATO",
    "ATP",
    "AdaHSPG",
    "Budget",
    "CRIC",
    "Checkpoints",
    "DDPMasks",
    "DDPTraining",
    "DHSPG",
    "GReg1",
    "GaP",
    "GReg2",
    "H2SPG",
    "HAP",
    "HESSO",
    "HSPG",
    "LHSPG",
    "NiwakiError",
    "Plan",
    "Schedule",
    "SearchSpace",
    "SecondDerivatives",
    "ShrinkPolicy",
    "CaP",
    "Surgeon",
    "WeightMom",
    "__version__",
    "check",
    "choose",
    "choose_iteratively",
    "compensate",
    "cut",
    "distillation",
    "register_state_layout",
    "export",
    "fold_constants",
    "latency",
    "latency_profile",
    "load",
    "load_optimizer",
    "load_program",
    "load_run",
    "prune",
    "reestimate_norms",
    "refine",
    "reindex",
    "report",
    "save",
    "score",
    "search_space",
    "shrink",
    "timed",
    "zero_",
}


def test_public_names() -> None:
    assert set(niwaki.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(niwaki, name) is not None


def test_public_names_are_documented() -> None:
    for name in PUBLIC - {"__version__"}:
        assert inspect.getdoc(getattr(niwaki, name)), name


def test_type_checkers_know_the_same_names() -> None:
    tree = ast.parse(Path(niwaki.__file__).read_text())
    block = next(
        ast.unparse(node) for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in node.test.id
    )
    told = {
        alias.name: node.module
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == niwaki._HOME_OF
    assert set(told) | {"__version__"} == PUBLIC


def test_completion_shows_what_a_user_calls() -> None:
    assert set(dir(niwaki)) == PUBLIC | {"huggingface", "implants", "integrations", "testing", "unions"}
    assert all(inspect.ismodule(getattr(niwaki, name)) for name in set(dir(niwaki)) - PUBLIC)


def test_help_and_version_need_no_torch() -> None:
    for arguments in (["--help"], ["--version"]):
        code = (
            "import sys; from niwaki.cli.app import app; app(sys.argv[1:], standalone_mode=False); "
            "assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "train" in done.stdout or done.stdout == f"niwaki {niwaki.__version__}\n"


def test_first_parameters() -> None:
    """The order of parameters is part of the interface."""
    first = {
        "search_space": ["model", "example_inputs", "ignored"],
        "cut": ["model", "plan"],
        "zero_": ["model", "plan"],
        "check": ["model", "plan", "inputs"],
        "save": ["small", "directory"],
        "load": ["fresh_dense_model", "directory"],
        "load_optimizer": ["optimizer", "small", "directory"],
        "load_program": ["directory"],
        "load_run": ["directory"],
        "report": ["where", "space", "plan"],
        "choose": ["space", "scores", "budget"],
        "latency": ["model", "inputs"],
        "latency_profile": ["space", "scores", "budget", "inputs"],
        "compensate": ["space", "plan", "batches"],
        "reestimate_norms": ["model", "batches"],
        "export": ["small", "example_inputs", "path"],
        **dict.fromkeys(
            ("ATO", "ATP", "DDPTraining", "HESSO", "CRIC", "HSPG", "AdaHSPG", "DHSPG", "H2SPG", "LHSPG"),
            ["space", "optimizer", "budget", "schedule"],
        ),
    }
    for name, expected in first.items():
        assert list(inspect.signature(getattr(niwaki, name)).parameters)[: len(expected)] == expected, name


def test_commands_and_options() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    functions = {
        "train": train_command.train,
        "prune": prune_command.prune,
        "report": report_command.report,
        "inspect": inspect_command.inspect,
    }
    assert list(commands) == list(functions)
    options = {}
    for name, function in functions.items():
        command = command_of(function)
        assert commands[name].help == str(command.help).splitlines()[0]  # what `niwaki --help` says of it
        options[name] = {option for parameter in command.params for option in parameter.opts if option != "--help"}
    assert options == {
        "train": {
            *("--model", "--data", "--method", "--keep-macs", "--keep-params", "--epochs", "--batch-size", "--lr"),
            *("--seed", "--prune-start", "--prune-until", "--out", "--device", "--resume", "--overwrite"),
            *("--checkpoint-every", "--baseline", "--optimizer", "--weights"),
            *("--image-size", "--periods", "--shrink", "--erase", "--narrow"),
        },
        "prune": {
            *("model", "--weights", "--data", "--keep-macs", "--keep-params", "--keep-memory", "--method", "--rounds"),
            *(
                "--repair",
                "--refine",
                "--image-size",
                "--images",
                "--repair-images",
                "--batch-size",
                "--seed",
                "--out",
                "--device",
                "--overwrite",
            ),
        },
        "report": {"out"},
        "inspect": {
            *("model", "--input", "--classes", "--keep", "--draw", "--check", "--meta", "--allow-inexact", "--json"),
            *("--as-graph", "--erase"),
        },
    }


@pytest.mark.parametrize(
    ("earlier", "now"), [("Shrinking", "ShrinkPolicy"), ("declare_state", "register_state_layout")]
)
def test_names_of_earlier_versions_warn(earlier: str, now: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"niwaki.{earlier} is called niwaki.{now} now"):
        assert getattr(niwaki, earlier) is getattr(niwaki, now)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        niwaki.absent  # noqa: B018
