"""Every example runs, at the smallest size that shows that it does: its cuts are exact, its files load again."""

from __future__ import annotations

import ast
import importlib.util
import json
import runpy
import sys
from pathlib import Path

import pytest

from niwaki.networks.torchvision_cpu import load

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
MOST_LINES = 60
MODULES = {"haste.py"}  # brings a module of its own, and is as long as that
# The argument of each: epochs, steps or rounds. The others take seconds as they are.
SMALLEST = {
    "ato": "2",
    "bert_trainer": "20",
    "disp_llm": "--steps=4",
    "ema_and_early_stopping": "10",
    "erase_supernet": "1",
    "hap": "3",
    "lightning_trainer": "3",
    "onnx_latency": "3",
    "own_loop": "2",
    "yolo": "1",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _needs(ast.parse(path.read_text()))
    arguments = [SMALLEST[path.stem]] if path.stem in SMALLEST else []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    runpy.run_path(str(path), run_name="__main__")
    if "niwaki.check(" in path.read_text():
        assert "Exact: the cut network equals the masked one" in capsys.readouterr().out


def _needs(code: ast.AST) -> None:
    """Skip if something that the code imports is not installed."""
    names = {alias.name for node in ast.walk(code) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(code) if isinstance(node, ast.ImportFrom)}
    missing = sorted(name for name in {name.split(".")[0] for name in names} if not importlib.util.find_spec(name))
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if names & {"torchvision"} or any(name.startswith(("transformers", "lightning", "ultralytics")) for name in names):
        load()  # they import torchvision, which beside a CPU-only torch needs help


def test_examples_are_short() -> None:
    long = {path.name for path in EXAMPLES if len(path.read_text().splitlines()) > MOST_LINES}
    assert long <= MODULES


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((FOLDER / "quickstart.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells), "Clear the outputs before you commit."
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("EPOCHS = 15", "EPOCHS = 2"), names)
    assert names["again"] is not None
