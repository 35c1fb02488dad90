"""A run from its data to its files: trained, pruned, cut, saved; and nothing is overwritten or half written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from short_runs import CPU, SHORT, ShortRun, train

import niwaki
from niwaki.errors import FileFormatError, RunError
from niwaki.networks import ImageTask, build_model
from niwaki.train import job
from niwaki.train.batches import Batches
from niwaki.train.data import load_images
from niwaki.train.loop import Silent
from niwaki.train.recipe import Recipe


def test_a_run_trains_cuts_and_saves(short_run: ShortRun) -> None:
    out, report, recorder = short_run.out, short_run.report, short_run.told
    files = ["model.safetensors", "plan.json", "report.html", "report.json"]
    assert sorted(entry.name for entry in out.iterdir()) == files
    assert report.dense.accuracy == report.small.accuracy
    assert report.small.macs <= 0.4 * report.dense.macs
    assert report.small.params < report.dense.params
    assert report.check["deviation"] < 1e-5
    assert [step.step for step in recorder.steps] == list(range(1, 23))
    assert [result.macs_left for result in recorder.epochs][-1] <= 0.4
    assert json.loads((out / "report.json").read_text())["small"]["macs"] == report.small.macs
    images = load_images("digits", SHORT.seed)
    fresh = build_model("resnet", ImageTask(10, 1, (8, 8)), SHORT.width).eval()
    small = niwaki.load(fresh, out)
    batches = Batches(images, 128, 0, 0, CPU)
    from niwaki.train.scores import accuracy

    assert accuracy(small, batches) == report.small.accuracy
    loaded = niwaki.load_run(out)  # the same, but it normalises by itself
    right = loaded(images.test_x).argmax(1) == images.test_y
    assert not loaded.training and float(right.double().mean()) == pytest.approx(report.small.accuracy)
    assert loaded.report.to_json() == report.to_json()


def test_without_a_method_nothing_leaves(tmp_path: Path) -> None:
    report = train(Recipe(method="none", keep_macs=None, epochs=1, width=0.5), tmp_path / "out", Silent())
    assert report.small.macs == report.dense.macs
    assert report.small.params == report.dense.params


def test_a_run_repeats_to_the_bit(short_run: ShortRun, tmp_path: Path) -> None:
    train(SHORT, tmp_path, Silent())
    assert (tmp_path / "model.safetensors").read_bytes() == (short_run.out / "model.safetensors").read_bytes()


def test_a_finished_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(RunError, match="already holds a run.*--overwrite"):
        train(SHORT, tmp_path, Silent())
    with pytest.raises(RunError, match="has finished: there is nothing to resume"):
        train(SHORT, tmp_path, Silent(), resume=True)


def test_a_page_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    out, recipe = tmp_path / "out", Recipe(model="mlp", epochs=1, batch_size=256, method="none", width=0.1)
    monkeypatch.setattr(job, "write_run_page", fail)
    with pytest.raises(OSError, match="No space left"):
        train(recipe, out, Silent())
    assert sorted(entry.name for entry in out.iterdir()) == ["model.safetensors", "plan.json", "report.json"]
    assert niwaki.report(out).name == "report.html"


def test_no_network_stands_under_the_report_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    out, recipe = tmp_path / "out", Recipe(model="mlp", epochs=1, batch_size=256, method="none", width=0.1)
    train(recipe, out, Silent())
    monkeypatch.setattr(job, "write_report", fail)
    with pytest.raises(OSError, match="No space left"):
        train(dataclasses.replace(recipe, seed=1), out, Silent(), overwrite=True)
    with pytest.raises(FileFormatError, match="Name the directory that"):
        niwaki.load_run(out)


def test_a_page_of_ones_own_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(RunError, match=r"already holds a run \(report.html\).*--overwrite"):
        train(SHORT, tmp_path, Silent())
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Bad(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(64, 8), nn.Linear(8, 10)\n"
        "    def forward(self, x):\n        return self.b(torch.relu(self.a(x.flatten(1)))) / 0.0\n"
    )
    with pytest.raises(RunError, match=r"The loss became nan at step 1 \(epoch 1\). Lower the learning rate"):
        train(Recipe(model=f"{tmp_path}/m.py:Bad", epochs=2), tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()
