"""`niwaki train --erase`: whole structures leave, the network may shrink on the way, and every phase resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from short_runs import Recorder, train

import niwaki
from niwaki.core.edits import EraseModules
from niwaki.errors import Interrupted
from niwaki.io.reading import read_plan
from niwaki.networks import ImageTask, build_model
from niwaki.train.checkpoint import read_checkpoint
from niwaki.train.loop import Silent
from niwaki.train.recipe import Recipe

RECIPE = Recipe(
    model="supernet",
    method="h2spg",
    keep_macs=0.4,
    epochs=2,
    batch_size=128,
    periods=3,
    prune_until=0.5,
    width=0.5,
    erase=True,
    shrink=True,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by `RECIPE`."""
    out = tmp_path_factory.mktemp("erasing") / "out"
    with torch.random.fork_rng():
        train(RECIPE, out, Silent())
    return out


def test_structures_leave(whole: Path) -> None:
    report = niwaki.load_run(whole).report
    assert report.small.macs <= 0.4 * report.dense.macs and report.small.params < report.dense.params
    assert report.check["deviation"] < 1e-5
    assert report.map is not None and any(one.erased for one in report.map.structures)
    assert sum(block.params for block in report.map.blocks) == report.dense.params  # modules that have left, too
    plan = read_plan(whole)
    assert plan.edits_of(EraseModules) and plan.provenance["method"] == "h2spg"
    small = niwaki.load(build_model("supernet", ImageTask(10, 1, (8, 8)), 0.5), whole)
    assert sum(p.numel() for p in small.parameters()) == report.small.params


@pytest.mark.parametrize(
    ("stop", "holds", "shrunk"),
    [(1, set(), False), (4, {"scores"}, False), (8, {"chosen"}, False), (20, {"chosen"}, True)],
    ids=["waiting", "scoring", "half-space", "shrunk"],
)
def test_each_phase_resumes_to_the_same_bits(
    stop: int, holds: set[str], shrunk: bool, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        train(RECIPE, out, Recorder(stop_at=stop))
    saved = read_checkpoint(out).state["optimizer"]["niwaki"]
    assert saved["state"].keys() & {"scores", "chosen"} == holds
    assert shrunk == (not saved["remains"]["here"].all()) == (saved["state"]["ended"] is not None)
    train(RECIPE, out, Silent(), resume=True)
    for name in ("model.safetensors", "plan.json"):
        assert (whole / name).read_bytes() == (out / name).read_bytes()
