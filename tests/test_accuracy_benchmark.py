"""benchmarks/accuracy on a task of seconds: every arm, what a cut in the middle changes, and results on disk."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import niwaki
from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy.arms import ARMS, METHODS
from benchmarks.accuracy.images import ImageTask
from benchmarks.accuracy.networks import CifarResNet, RowReader, VisionTransformer, llama
from benchmarks.accuracy.results import append, missing, read
from benchmarks.accuracy.show import plot
from benchmarks.accuracy.task import Recipe, Task
from benchmarks.accuracy.tasks import TASKS, Where, built
from benchmarks.accuracy.training import Training
from benchmarks.accuracy.verdicts import verdicts
from niwaki.train.data import load_images
from niwaki.train.networks import ResNet
from niwaki.train.torchvision_cpu import load

CPU = Where(None, torch.device("cpu"))


def brief(where: Where, seed: int, steps: int = 60) -> Task:
    """The digits, a network of four layers, a few steps."""

    def build(classes: int, channels: int, size: tuple[int, int], width: float) -> torch.nn.Module:
        return ResNet(classes, channels, size, (round(8 * width), round(16 * width)), blocks=1)

    return ImageTask("digits", Recipe(steps, 32, 0.05), load_images("digits", seed), build, where.device)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "torch-pruning"])
def test_every_arm_learns_within_the_budget(arm: str) -> None:
    task = brief(CPU, 0)
    model = ARMS[arm](task, 0, niwaki.Budget(macs=0.5))
    dense, cost = (niwaki.search_space(m, task.example(), rehearse=False).cost() for m in (task.network(1.0), model))
    assert cost.macs <= (1.0 if arm == "dense" else 0.5) * dense.macs
    assert arm == "dense" or cost.macs > 0.42 * dense.macs
    assert task.evaluate(model) > 0.2  # of ten classes


def test_torch_pruning_meets_the_same_budget() -> None:
    pytest.importorskip("torch_pruning")
    task = brief(CPU, 0)
    model = ARMS["torch-pruning"](task, 0, niwaki.Budget(macs=0.5))
    dense, cost = (niwaki.search_space(m, task.example(), rehearse=False).cost() for m in (task.network(1.0), model))
    assert 0.42 * dense.macs < cost.macs <= 0.5 * dense.macs
    assert task.evaluate(model) > 0.2


@pytest.mark.parametrize("adam", [False, True])
def test_a_cut_in_the_middle_changes_nothing(adam: bool) -> None:
    task = brief(CPU, 0, 40)
    task.recipe = Recipe(40, lr=0.01 if adam else 0.05, adam=adam)
    cut, whole = Training(task, 0), Training(task, 0)
    for run in (cut, whole):
        run.attach("hesso", niwaki.Budget(macs=0.5))
        run.advance(run.schedule.until - 1)
        run.model.double()
    whole.schedule = replace(whole.schedule, until=1_000)  # which is never reached: it stays as large as it is
    task._mean, task._std = task._mean.double(), task._std.double()  # type: ignore[attr-defined]
    method = whole.method
    assert method is not None
    x = task.example()
    for run in (cut, whole):
        run.optimizer.state.clear()
        run.advance(20)
    small = niwaki.cut(whole.model, method.plan())
    assert sum(p.numel() for p in cut.model.parameters()) == sum(p.numel() for p in small.parameters())
    torch.testing.assert_close(cut.model.eval()(x), small.eval()(x), rtol=1e-9, atol=1e-9)


def test_the_command_resumes_and_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(command.TASKS, "digits", brief)
    arguments = ["compare", "--tasks", "digits", "--arms", "dense", "hesso", "--shares", "0.5", "--seeds", "1"]
    arguments += ["--out", str(tmp_path), "--device", "cpu"]

    def run(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["accuracy", *arguments, *more])
        return command.main()

    assert run() in (0, 1)
    file = tmp_path / "compare.jsonl"
    before = file.read_text()
    assert before.count("\n") == 2
    assert run() == 2, "results are never overwritten"
    lines = before.splitlines(keepends=True)
    file.write_text(lines[0] + lines[1][:40])  # killed while it wrote
    assert run("--resume") in (0, 1)
    again, first = read(file), lines[0]
    assert file.read_text().startswith(first) and len(again) == 2
    assert again[1].value == json.loads(lines[1])["value"], "the same seed gives the same network"
    assert run("--show") in (0, 1)


def test_longer_runs_are_other_jobs_in_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once, thrice = (built("digits", replace(CPU, longer=longer), 0) for longer in (1, 3))
    assert thrice.recipe == replace(once.recipe, steps=3 * once.recipe.steps)
    assert command.about(once) != command.about(thrice)
    arguments = ["defaults", "--tasks", "digits", "--longer", "3", "--show", "--out", str(tmp_path)]
    row = rows_of(tmp_path, {"dense": 0.9})[0]
    append(tmp_path / "defaults-longer3.jsonl", row)
    append(tmp_path / "defaults-longer3.jsonl", replace(row, arm="hesso", share=0.6, value=0.7))
    monkeypatch.setattr(sys, "argv", ["accuracy", *arguments])
    assert command.main() == 1, "20 points are lost"


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="needs cifar10 in the folder of the data: give it with --data"):
        TASKS["cifar10"](CPU, 0)
    with pytest.raises(SystemExit, match="There is no weights/stories260K in"):
        TASKS["stories"](Where(tmp_path, CPU.device), 0)


def rows_of(tmp_path: Path, values: dict[str, float], measure: str = "accuracy") -> list[command.Row]:
    """Made-up results."""
    for arm, value in values.items():
        share = 1.0 if arm == "dense" else 0.3
        append(
            tmp_path / "rows.jsonl",
            command.Row(
                "digits", arm, "macs", share, 0, "", measure, value, share, share, 10, 10, 1.0, "cpu", "0", "0"
            ),
        )
    return read(tmp_path / "rows.jsonl")


def test_verdicts_say_who_wins(tmp_path: Path) -> None:
    values = {"dense": 0.9, "hesso": 0.8, "dhspg": 0.7, "narrow": 0.75, "random": 0.6}
    rows = rows_of(tmp_path, values)
    assert [holds for _, holds in verdicts("compare", rows)] == [True, True]
    assert verdicts("compare", rows_of(tmp_path / "b", values | {"narrow": 0.85})) == [
        ("digits, 30% of the macs: the best method is hesso, by -5.00 better than the best baseline, narrow", False),
        ("digits, 30% of the macs: only the best is better than hesso (narrow is)", False),
    ]
    assert verdicts("deep", rows_of(tmp_path / "c", {"hesso": 0.8, "hesso-cric": 0.79})) == [
        ("digits, 30% of the macs: hesso-cric is at least hesso (-1.00)", False)
    ]
    assert verdicts("defaults", rows_of(tmp_path / "d", {"dense": 0.9, "hesso": 0.895})) == [
        ("digits, 30% of the macs: hesso loses at most 1 point to dense training (0.50)", True)
    ]
    both = rows_of(tmp_path / "n", {"dense": 0.9, "hesso": 0.88, "narrow": 0.87})
    both += [replace(row, seed=1, value=row.value - 0.01 * (row.arm == "hesso")) for row in both]
    assert verdicts("defaults", both) == [
        (
            "digits, 30% of the macs: hesso loses at most 1 point to dense training (2.50 ± 0.71 by seed; narrow loses "
            "3.00)",
            False,
        )
    ]
    assert verdicts("defaults", rows_of(tmp_path / "e", {"hesso": 1.5, "narrow": 1.4}, "loss")) == [
        ("digits, 30% of the macs: hesso's loss is not above the narrow network's (+0.100 nats)", False)
    ]
    assert missing([rows[0].job, replace(rows[0].job, seed=1)], rows) == [replace(rows[0].job, seed=1)]
    assert set(METHODS) < set(ARMS)


def test_a_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(rows_of(tmp_path, {"dense": 0.9, "hesso": 0.8}), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize("width", [1.0, 0.8, 0.3])
def test_networks_of_all_widths_run(width: float) -> None:
    x = torch.randn(2, 1, 8, 8)
    for model in (
        CifarResNet(10, 1, width, 1),
        VisionTransformer(10, 1, (8, 8), width, 1),
        RowReader(10, 1, (8, 8), width),
    ):
        assert model(x).shape == (2, 10)


def test_narrow_llamas_are_ones_that_transformers_takes() -> None:
    pytest.importorskip("transformers")
    load()
    sizes = {"vocab_size": 9, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "head_dim": 4}
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    for eighths in range(8, 0, -1):
        model = llama(eighths / 8, **sizes, num_attention_heads=8, num_key_value_heads=4)
        assert model(input_ids=tokens).logits.shape == (1, 5, 9)
