"""The command line: one clear sentence and a non-zero exit for whatever goes wrong, and nothing half written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from niwaki.cli.app import main

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
SHORT = ("--epochs", "2", "--batch-size", "64")


class Outcome:
    """What a command wrote and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def niwaki(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs the command in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["niwaki", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        text = capsys.readouterr()
        return Outcome(code, text.out, text.err)

    return run


def test_train_prints_a_table_and_saves(niwaki, tmp_path: Path) -> None:
    outcome = niwaki("train", *SHORT, "--keep-macs", "0.5", "--out", "run")
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["small"]["accuracy"] == report["dense"]["accuracy"]
    assert report["small"]["macs"] <= 0.5 * report["dense"]["macs"]
    for text in ("epoch   2/2", "MACs left 50%", "test accuracy", "parameters", "latency, batch 1", "The cut is exact"):
        assert text in outcome.out, outcome.out
    assert f"{report['small']['params']:,}" in outcome.out
    assert sorted(entry.name for entry in (tmp_path / "run").iterdir()) == [
        "model.safetensors",
        "plan.json",
        "report.html",
        "report.json",
    ]


def test_a_baseline_is_trained_and_told_first(niwaki, tmp_path: Path) -> None:
    outcome = niwaki("train", "--model", "mlp", *SHORT, "--out", "run", "--baseline")
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    dense, small = report["baseline"]["accuracy"], report["small"]["accuracy"]
    assert json.loads((tmp_path / "run" / "baseline" / "report.json").read_text())["small"]["accuracy"] == dense
    assert "baseline epoch   2/2" in outcome.out and f"{dense:.2%}" in outcome.out
    told = f"2.5 times fewer MACs, {100 * dense:.1f} → {100 * small:.1f} % accuracy, "
    assert outcome.out.index(told) < outcome.out.index("mlp on digits") < outcome.out.index("MACs left  ")
    assert 'polyline class="dense"' in (tmp_path / "run" / "report.html").read_text()
    assert "niwaki.load_run('run')" in outcome.out.splitlines()[-1]
    assert niwaki("report", "run").out == "run/report.html\n"
    (tmp_path / "run").rename(tmp_path / "baseline")  # a run of its own, where another's baseline would be
    before = (tmp_path / "baseline" / "report.json").read_bytes()
    outcome = niwaki("train", "--model", "mlp", *SHORT, "--out", ".", "--baseline")
    assert outcome.code == 1 and "'baseline' already holds a run (report.json), and --baseline trains" in outcome.err
    assert (tmp_path / "baseline" / "report.json").read_bytes() == before and not (tmp_path / "report.json").exists()


def test_train_on_an_archive_with_a_model_from_a_file(niwaki, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = (generator.integers(0, 100, (80, 10, 12, 3)) + 150 * y[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "my.npz", images=x, labels=y)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def small(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(12, num_classes))\n"
    )
    outcome = niwaki("train", "--model", "net.py:small", "--data", "my.npz", "--epochs", "8", "--batch-size", "10")
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "out" / "report.json").read_text())["data"]["shape"] == [3, 10, 12]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere.npz"), "There is no data at 'nowhere.npz'"),
        (("--data", "text.npz"), "'text.npz' cannot be read as an .npz archive"),
        (("--model", "resnot"), "There is no model 'resnot'"),
        (("--model", "nowhere.py:net"), "There is no file 'nowhere.py'"),
        (("--model", "wrong.py:wrong_size"), "The model 'wrong.py:wrong_size' cannot take images of 1x8x8"),
        (("--model", "wrong.py:unbounded", "--epochs", "4"), "The loss became"),
        (
            ("--method", "magic"),
            "There is no method 'magic'. Choose adahspg, ato, dhspg, ",
        ),
        (("--keep-macs", "0.0001"), "macs"),
        (("--keep-macs", "0"), "macs=0.0 is not a budget"),
        (("--keep-params", "-3"), "params=-3.0 is not a budget"),
        (("--epochs", "0"), "epochs is 0"),
        (("--epochs", "1", "--batch-size", "2000"), "1 optimizer step cannot prune a network"),
        (("--lr", "nan"), "lr is nan"),
        (("--device", "warp"), "The device 'warp' cannot be used here"),
        (("--out", "text.npz"), "The output 'text.npz' is a file"),
        (("--out", "text.npz/below"), "lies below"),
        (("--resume",), "There is no checkpoint in 'out' to resume from"),
    ],
)
def test_bad_input_is_one_sentence(niwaki, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "wrong.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def wrong_size():\n    return nn.Sequential(nn.Flatten(), nn.Linear(100, 10))\n"
        "class unbounded(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(64, 8), nn.Linear(8, 10)\n"
        "    def forward(self, x):\n        return self.b(torch.relu(self.a(x.flatten(1)))) * 1e38 * 1e38\n"
    )
    before = sorted(entry.name for entry in tmp_path.iterdir() if entry.name != "__pycache__")
    outcome = niwaki("train", *arguments)
    assert outcome.code == 1
    assert outcome.err.startswith("niwaki: ")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name != "__pycache__") == before


def test_unknown_options_are_refused(niwaki) -> None:
    outcome = niwaki("train", "--sparsity", "0.5")
    assert outcome.code == 2
    assert "--sparsity" in outcome.err


def test_help_names_the_commands(niwaki) -> None:
    outcome = niwaki("--help")
    assert outcome.code == 0
    assert "train" in outcome.out and "inspect" in outcome.out


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("train", "[default: 0.4]"),
        ("train", "[default: one epoch]"),
        ("inspect", "[default: the usual input of the network]"),
        ("inspect", "[default: its usual number]"),
    ],
)
def test_defaults_in_brackets_are_no_markup(niwaki, command: str, default: str) -> None:
    outcome = niwaki(command, "--help")
    assert default in " ".join(outcome.out.replace("│", " ").split())


def test_an_unwritable_output_is_one_sentence(niwaki, monkeypatch: pytest.MonkeyPatch) -> None:
    from niwaki.train import job

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied", "out")

    monkeypatch.setattr(job, "write_checkpoint", refuse)
    outcome = niwaki("train", *SHORT)
    assert outcome.code == 1
    assert outcome.err == "niwaki: [Errno 13] Permission denied: 'out'\n"


def test_a_second_run_needs_a_word(niwaki) -> None:
    assert niwaki("train", *SHORT).code == 0
    outcome = niwaki("train", *SHORT)
    assert outcome.code == 1
    assert "already holds a run" in outcome.err
    outcome = niwaki("train", "--resume")
    assert outcome.code == 1
    assert "has finished: there is nothing to resume" in outcome.err
    assert niwaki("train", *SHORT, "--overwrite").code == 0


def test_interrupt_and_resume(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "niwaki.cli", "train"]
    process = subprocess.Popen(
        [*command, "--epochs", "30", "--out", str(tmp_path / "out")],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list((tmp_path / "out" / "checkpoints").glob("step-*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.startswith("niwaki: Interrupted after step ")
    assert errors.count("\n") == 1
    assert "continue with --resume" in errors
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["checkpoints"]
    refused = subprocess.run(
        [*command, "--resume", "--lr", "0.3", "--out", str(tmp_path / "out")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1
    assert "was started with the default --lr, not 0.3" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seed", "-1"), "seed is -1, but must be a whole number from 0 to 4294967295"),
        (("--seed", "99999999999999999999999"), "seed is 99999999999999999999999, but must be"),
        (("--out", ""), "--out is empty. Name a directory"),
    ],
)
def test_bad_seeds_and_places_are_one_sentence(
    niwaki, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = niwaki("train", *SHORT, *arguments)
    assert outcome.code == 1 and outcome.err.startswith("niwaki: ") and message in outcome.err
    assert outcome.err.count("\n") == 1 and not list(tmp_path.iterdir()), outcome.err


def test_option_defaults_are_the_recipe() -> None:
    """What --help promises is what `Recipe` does."""
    from niwaki.cli.app import command_of
    from niwaki.cli.train import train
    from niwaki.train.recipe import Recipe

    defaults = Recipe().to_dict()
    for parameter in command_of(train).params:
        if parameter.name in defaults and parameter.name != "keep_macs":
            assert parameter.default == defaults[parameter.name], parameter.name
