"""A run that was interrupted or killed continues bit-identically, and no other run in its place."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from short_runs import CPU, SHORT, Recorder, ShortRun, train

from niwaki.errors import Interrupted, RunError
from niwaki.report import read_report
from niwaki.train.baseline import add_baseline, baseline_waits
from niwaki.train.checkpoint import (
    FOLDER,
    read_checkpoint,
)
from niwaki.train.data import load_images
from niwaki.train.loop import Silent, TrainingRun
from niwaki.train.recipe import Recipe


def test_a_baseline_that_is_interrupted_continues(tmp_path: Path) -> None:
    class Stops(Silent):
        def should_stop(self) -> bool:
            return True

    out = tmp_path / "out"
    report = train(Recipe(model="mlp", epochs=2, batch_size=256, periods=2, width=0.1), out, Silent())
    assert report.baseline is None and not baseline_waits(out)
    with pytest.raises(Interrupted):
        add_baseline(report, out, Stops())
    assert baseline_waits(out) and read_report(out).baseline is None
    found = add_baseline(report, out, Silent())
    assert found.baseline is not None and len(found.baseline.history) == 2 and not baseline_waits(out)
    assert read_report(out).to_json() == found.to_json()


def test_a_network_that_shrinks_on_the_way(short_run: ShortRun, tmp_path: Path) -> None:
    """It ends at the plan's costs; a run that is interrupted when it has shrunk goes on to the same bits."""
    shrinking = dataclasses.replace(SHORT, shrink=True)
    report = train(shrinking, tmp_path / "whole", Silent())
    with pytest.raises(Interrupted):
        train(shrinking, tmp_path / "parts", Recorder(stop_at=21))
    saved = read_checkpoint(tmp_path / "parts").state
    assert not saved["optimizer"]["niwaki"]["remains"]["here"].all(), "it has shrunk by then"
    train(shrinking, tmp_path / "parts", Silent(), resume=True)
    for name in ("model.safetensors", "plan.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert report.small.macs == short_run.report.small.macs


@pytest.mark.parametrize("stop", [1, 5, 11, 13, 21])
def test_an_interrupted_run_resumes_to_the_same_bits(stop: int, short_run: ShortRun, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=f"after step {stop} of 22.*--resume"):
        train(SHORT, tmp_path / "parts", Recorder(stop_at=stop))
    assert [entry.name for entry in (tmp_path / "parts").iterdir()] == [FOLDER]
    recorder = Recorder()
    train(SHORT, tmp_path / "parts", recorder, resume=True)
    assert recorder.steps[0].step == stop + 1
    for name in ("model.safetensors", "plan.json"):
        assert (short_run.out / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert read_report(tmp_path / "parts").history == short_run.report.history


LONGER = dataclasses.replace(SHORT, epochs=4)
SCRIPT = f"""
import sys
from pathlib import Path
from niwaki.train.job import train
from niwaki.train.loop import Silent
from niwaki.train.recipe import Recipe
resume = sys.argv[2] == "resume"
train({LONGER}, Path(sys.argv[1]), Silent(), resume=resume, overwrite=not resume,
      checkpoint_every=3, measure_seconds=0.05)
"""


def command(out: Path, resume: bool) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(out), "resume" if resume else "fresh"]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def checkpoints_in(out: Path) -> set[Path]:
    return set((out / FOLDER).glob("step-*"))


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Signal 9 at random moments, again and again, until the run gets through."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(LONGER, whole, Silent())
    generator = random.Random(os.environ.get("NIWAKI_KILL_SEED", "1"))
    kills = 0
    while not kills or not (killed / "report.json").exists():
        if (killed / "report.json").exists():  # on a busy machine a run may end before it is killed: once more
            shutil.rmtree(killed)
        before = checkpoints_in(killed)
        process = subprocess.Popen(
            command(killed, resume=bool(before)), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while kills < 2 and process.poll() is None and checkpoints_in(killed) <= before:
            time.sleep(0.01)
        if kills < 2:
            time.sleep(generator.random() * 0.3)
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        kills += process.returncode != 0
    for name in ("model.safetensors", "plan.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


def test_resuming_needs_the_same_run(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(SHORT, tmp_path / "out", Recorder(stop_at=2))
    with pytest.raises(RunError, match="was started with the default lr, not 0.5"):
        train(dataclasses.replace(SHORT, lr=0.5), tmp_path / "out", Silent(), resume=True)
    checkpoint = read_checkpoint(tmp_path / "out")
    run = TrainingRun(SHORT, load_images("digits", 1), CPU)
    with pytest.raises(RunError, match="The data 'digits' have changed since"):
        run.restore(checkpoint)
    wide = TrainingRun(dataclasses.replace(SHORT, width=1.0), load_images("digits", 0), CPU)
    with pytest.raises(RunError, match="has changed since the checkpoint was written: 'stem.weight' was"):
        wide.restore(checkpoint)
