"""The table of methods: each can be chosen by its name, keeps its promises in the main job, and resumes there."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from handmade import MLP, mlp_space
from typer.testing import CliRunner

import niwaki
from niwaki.cli.app import app
from niwaki.core.edits import EraseModules
from niwaki.errors import MethodError, UnknownName
from niwaki.methods import HESSO, Schedule
from niwaki.methods.registry import Training, attach, erasing, holding_out, methods, register
from niwaki.selection.budget import Budget
from niwaki.train import job
from niwaki.train.checkpoint import read_checkpoint, write_checkpoint
from niwaki.train.data import load_images
from niwaki.train.loop import Silent, TrainingRun
from niwaki.train.recipe import Recipe

SHORT = Recipe(model="mlp", epochs=4, batch_size=128, periods=3, prune_until=0.6, width=0.25, keep_macs=0.4)


def short(name: str, erase: bool = False) -> Recipe:
    """A short recipe of a method; on a super-network where structures are erased."""
    if erase or not erasing().get(name, True):
        return replace(SHORT, method=name, model="supernet", erase=True, keep_macs=0.6)
    return replace(SHORT, method=name)


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_trains_by_its_name(name: str, tmp_path: Path) -> None:
    report = job.train(short(name), tmp_path / "out", Silent(), measure_seconds=0.02)
    plan = niwaki.Plan.from_json((tmp_path / "out/plan.json").read_text())
    assert plan.provenance["method"] == report.recipe["method"] == name
    assert report.small.macs <= short(name).keep_macs * report.dense.macs and report.check["holds"]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", sorted(erasing()))
def test_structures_are_erased_by_the_main_job(name: str, narrow: bool, tmp_path: Path) -> None:
    recipe = replace(short(name, erase=True), narrow=narrow, keep_macs=0.4)
    report = job.train(recipe, tmp_path / "out", Silent(), measure_seconds=0.02)
    plan = niwaki.Plan.from_json((tmp_path / "out/plan.json").read_text())
    assert report.small.macs <= 0.4 * report.dense.macs and report.check["holds"]
    assert plan.provenance["method"] == name and (narrow or plan.edits_of(EraseModules))
    widths = [name for name in plan.kept if not name.endswith("(whole)") and plan.kept[name]]
    assert narrow or all(len(plan.kept[name]) == plan.units[name] for name in widths)


def test_what_a_method_cannot_do_is_said(tmp_path: Path) -> None:
    cpu, images = torch.device("cpu"), load_images("digits", 0)
    with pytest.raises(
        MethodError, match="dhspg makes layers narrower, and erases no structures. Those that do are h2spg"
    ):
        TrainingRun(replace(short("dhspg"), erase=True), images, cpu)
    with pytest.raises(MethodError, match=r"narrow=True \(--narrow\) makes layers narrower beside erasing structures"):
        TrainingRun(replace(SHORT, narrow=True), images, cpu)
    with pytest.raises(MethodError, match=r"h2spg erases whole structures. Ask for that \(erase=True, or --erase"):
        TrainingRun(replace(SHORT, method="h2spg"), images, cpu)


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_resumes_in_the_main_job(name: str, tmp_path: Path) -> None:
    """Through the files of a run, wherever it stops: the same bits."""
    images, cpu = load_images("digits", 0), torch.device("cpu")
    whole = TrainingRun(short(name), images, cpu)
    stops = range(0, whole.steps, 9)
    for step in stops:
        whole.advance(Silent(), step)
        write_checkpoint(tmp_path / str(step), whole.checkpoint())
    whole.advance(Silent())
    for step in stops:
        resumed = TrainingRun(short(name), images, cpu)
        resumed.restore(read_checkpoint(tmp_path / str(step)))
        resumed.advance(Silent())
        for value, other in zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
            assert torch.equal(value, other), f"{name}, resumed after step {step}"
        assert resumed.plan().to_json() == whole.plan().to_json()


def test_the_command_line_offers_every_method() -> None:
    told = " ".join(CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output.split())
    assert "adahspg, ato, dhspg, gap, greg1, greg2, h2spg, hesso, hesso-cric, hspg, weightmom or none" in told


def test_names_are_the_classes_own_and_stand_in_one_place() -> None:
    """One plug-in is one file and one import line: no other file of the package knows the name of a method."""
    root = Path(niwaki.__file__).parent
    assert set(methods()) == {
        "ato",
        "hesso",
        "hesso-cric",
        "hspg",
        "adahspg",
        "dhspg",
        "h2spg",
        "greg1",
        "greg2",
        "weightmom",
        "gap",
    }
    for name in methods():
        said = [
            str(path.relative_to(root))
            for path in root.rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and node.value == name
        ]
        defaults = ["train/recipe.py"] if name == Recipe().method else []
        assert len(set(said) - set(defaults)) == 1, said


def test_unknown_and_doubled_names() -> None:
    model = MLP()
    training = Training(
        mlp_space(model),
        torch.optim.SGD(model.parameters(), lr=0.1),
        Budget(macs=0.5),
        Schedule(start=1, until=20),
        lambda: model(torch.zeros(1, 6)).sum(),
    )
    with pytest.raises(
        UnknownName, match=r"There is no method 'magic'. Registered are: adahspg, ato, dhspg, gap, greg1"
    ):
        attach("magic", training)
    with pytest.raises(MethodError, match="There is already a method 'hesso'. Give the new one another name"):
        register("hesso", lambda t: HESSO(t.space, t.optimizer, t.budget, t.schedule))
    assert attach("hesso", training).name == "hesso"


@pytest.mark.parametrize("name", sorted(holding_out()))
def test_what_learns_from_held_out_batches_asks_for_them(name: str) -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = Training(mlp_space(model), optimizer, Budget(macs=0.5), Schedule(1, 20), lambda: torch.zeros(()))
    with pytest.raises(
        MethodError, match=f"^{name} learns from batches that are held out of the training, and this tra"
    ):
        attach(name, training)
