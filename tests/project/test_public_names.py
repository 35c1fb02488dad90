"""The public surface is frozen: a change of a name, a command or an option is a decision, not an accident."""

from __future__ import annotations

import inspect

import pytest
import typer

import niwaki
from niwaki.cli.app import app

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
    "H2SPG",
    "HESSO",
    "HSPG",
    "LHSPG",
    "NiwakiError",
    "Plan",
    "Schedule",
    "SearchSpace",
    "SecondDerivatives",
    "ShrinkPolicy",
    "Surgeon",
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
    "prune",
    "reestimate_norms",
    "refine",
    "reindex",
    "save",
    "score",
    "search_space",
    "shrink",
    "zero_",
}


def test_public_names() -> None:
    assert set(niwaki.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(niwaki, name) is not None


def test_public_names_are_documented() -> None:
    for name in PUBLIC - {"__version__"}:
        assert inspect.getdoc(getattr(niwaki, name)), name


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
    options = {
        name: {option for parameter in command.params for option in parameter.opts if option != "--help"}
        for name, command in commands.items()
    }
    assert options == {
        "train": {
            *("--model", "--data", "--method", "--keep-macs", "--keep-params", "--epochs", "--batch-size", "--lr"),
            *("--seed", "--prune-start", "--prune-until", "--out", "--device", "--resume", "--overwrite"),
            *("--checkpoint-every", "--shrink", "--erase", "--narrow"),
        },
        "prune": {
            *("model", "--weights", "--data", "--keep-macs", "--keep-params", "--keep-memory", "--method", "--rounds"),
            *("--repair", "--refine", "--images", "--batch-size", "--seed", "--out", "--device", "--overwrite"),
        },
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
