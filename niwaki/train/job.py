"""Train once, prune on the way, cut, check, measure, save."""

from __future__ import annotations

import copy
import dataclasses
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import niwaki
from niwaki.core.cost import Cost
from niwaki.core.describe import counted
from niwaki.core.devices import usable_device
from niwaki.errors import Interrupted, RunError
from niwaki.io import PLAN_FILE, WEIGHTS_FILE
from niwaki.io.atomic import write_atomically
from niwaki.report import PAGE_FILE, REPORT_FILE, Figures, Latencies, RunReport, write_run_page
from niwaki.report.drawing import drawing
from niwaki.train.batches import Batches
from niwaki.train.checkpoint import FOLDER, Checkpoint, read_checkpoint, remove_checkpoints, write_checkpoint
from niwaki.train.data import Images, load_images
from niwaki.train.loop import EpochResult, RunObserver, TrainingProgress, TrainingRun
from niwaki.train.recipe import Recipe
from niwaki.train.scores import accuracy
from niwaki.train.trained_on import split_of

AUTO = "auto"


def train(
    recipe: Recipe,
    out: Path,
    observer: RunObserver,
    *,
    device: str = "cpu",
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int | None = None,
    measure_seconds: float = 2.0,
) -> RunReport:
    """Train by ``recipe`` and write ``model.safetensors``, ``plan.json``, ``report.json`` and ``report.html`` to
    ``out``.

    Args:
        recipe: the network, the data and the settings.
        out: a directory; it must be empty or new unless the run resumes or overwrites.
        observer: is called at every step and epoch, and may ask to stop.
        device: a torch device, such as ``cpu`` or ``cuda``.
        resume: continue from the last checkpoint in ``out``, which must be of the same recipe.
        overwrite: replace the results of an earlier run in ``out`` when this one has finished.
        checkpoint_every: optimizer steps between checkpoints; default: one epoch.
        measure_seconds: the time to measure latency, for one image and for a batch.

    Raises:
        Interrupted: the observer asked to stop; a checkpoint has been written.
        NiwakiError: the run cannot start or continue; no incomplete file is left.
    """
    begin = time.perf_counter()
    checkpoint = _prepare(recipe, out, resume=resume, overwrite=overwrite)
    split = split_of(recipe.data, recipe.seed, recipe.weights)
    images = load_images(recipe.data, split, recipe.size())
    run = TrainingRun(recipe, images, device_named(device))
    dense = copy.deepcopy(run.model)
    if checkpoint is not None:
        run.restore(checkpoint)
    if overwrite and not resume:
        remove_checkpoints(out)
    every = checkpoint_every or run.batches.per_epoch
    while run.step < run.steps:
        finished = run.advance(observer, min(run.steps, (run.step // every + 1) * every))
        write_checkpoint(out, run.checkpoint())
        if not finished or (observer.should_stop() and run.step < run.steps):
            raise Interrupted(
                f"Interrupted after step {run.step} of {run.steps}. A checkpoint is in {str(out)!r}: "
                "continue with --resume."
            )
    report = finish(run, dense, out, time.perf_counter() - begin, measure_seconds)
    remove_checkpoints(out)
    write_run_page(report, out)  # last: the run is complete without it, and `niwaki report` writes it again
    return report


def finish(run: TrainingRun, dense: nn.Module, out: Path, seconds: float, measure_seconds: float) -> RunReport:
    """Cut the trained network, check that the cut is exact, measure both networks, and save them with their report.

    ``dense``: a network of the same architecture, with any weights. ``seconds``: the time of the training.

    Raises:
        RunError: the cut changed the network; nothing is saved.
    """
    plan = run.plan() or run.space.plan(np.ones(run.space.num_units, dtype=bool), {"method": "none"})
    small = niwaki.cut(run.model, plan)
    check = niwaki.check(run.model, plan, run.batches.example(8))
    if not check.holds:
        raise RunError(f"The small network would not equal the trained one, so nothing was saved. {check}")
    before, after = accuracy(run.model, run.batches), accuracy(small, run.batches)
    measured = latencies(dense.to(run.device), small, run.batches, measure_seconds)
    costs = {"dense": run.space.cost(), "small": run.space.cost(plan)}
    figures = {
        name: figures_of(name, share, costs[name], measured) for name, share in (("dense", before), ("small", after))
    }
    report = RunReport(
        recipe=run.recipe.to_dict(),
        data=facts_of(run.images, split_of(run.recipe.data, run.recipe.seed, run.recipe.weights)),
        versions=versions(run.device),
        dense=figures["dense"],
        small=figures["small"],
        coverage=run.space.coverage,
        check=dataclasses.asdict(check),
        kept={name: (len(kept), plan.units[name]) for name, kept in plan.kept.items()},
        history=tuple(
            {
                "step": r.epoch * run.batches.per_epoch,
                "epoch": r.epoch,
                "loss": r.loss,
                "accuracy": r.accuracy,
                "macs_left": r.macs_left,
            }
            for r in run.history
        ),
        seconds=seconds,
        ratios=tuple(both.ratios["small"] for both in measured),
        map=drawing(run.space, f"{run.recipe.model} on {run.images.name}", plan, dense),
    )
    save_run(small, report, out)
    return report


def save_run(small: nn.Module, report: RunReport, out: Path) -> None:
    """Save the network of a run, then its report as data. Those of an earlier run go first: wherever this fails, no
    network stands beside the report of another."""
    for name in (REPORT_FILE, PAGE_FILE):
        (out / name).unlink(missing_ok=True)
    niwaki.save(small, out)
    write_report(report, out)


def write_report(report: RunReport, out: Path) -> None:
    """Write the report of a run as data."""
    write_atomically(out / REPORT_FILE, report.to_json().encode())


def facts_of(images: Images, split: int) -> dict[str, Any]:
    """The data of a report. ``split``: the seed that divided them for training and testing."""
    mean, std = images.statistics()
    return {
        "name": images.name,
        "train": len(images.train_y),
        "test": len(images.test_y),
        "classes": images.classes,
        "shape": list(images.train_x.shape[1:]),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "split": split,
        "test_checksum": images.test_checksum,
        **({"labels": list(images.labels)} if images.labels else {}),
    }


def versions(device: torch.device) -> dict[str, str]:
    """The versions of a report, and what the run took place on."""
    return {
        "niwaki": niwaki.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": _describe(device),
    }


def check_output(out: Path) -> None:
    """Raise `RunError` unless ``out`` is a directory, or can become one."""
    if out.exists() and not out.is_dir():
        raise RunError(f"The output {str(out)!r} is a file. Name a directory with --out.")
    for parent in out.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise RunError(f"The output {str(out)!r} lies below {str(parent)!r}, which is a file.")
            break


def held_by(out: Path) -> str | None:
    """The file or folder of an earlier run in ``out``; None if there is none."""
    names = (REPORT_FILE, PAGE_FILE, WEIGHTS_FILE, PLAN_FILE, FOLDER)
    return next((name for name in names if out.is_dir() and (out / name).exists()), None)


def _prepare(recipe: Recipe, out: Path, *, resume: bool, overwrite: bool) -> Checkpoint | None:
    """Check the output directory before anything is computed; returns the checkpoint to resume from, or None."""
    check_output(out)
    if resume:
        if (out / REPORT_FILE).exists() and not (out / FOLDER).exists():
            raise RunError(f"The run in {str(out)!r} has finished: there is nothing to resume.")
        checkpoint = read_checkpoint(out)
        if odd := recipe.differences(checkpoint.facts["recipe"]):
            there, here = checkpoint.facts["recipe"][odd[0]], recipe.to_dict()[odd[0]]
            raise RunError(
                f"The run in {str(out)!r} was started with {_said(odd[0], there)}, not {here!r}. Omit the option "
                "to resume it, or start another run."
            )
        return checkpoint
    if not overwrite and (name := held_by(out)):
        raise RunError(
            f"{str(out)!r} already holds a run ({name}). Continue with --resume, replace it with --overwrite, "
            "or choose another --out."
        )
    return None


def _said(name: str, value: object) -> str:
    return f"the default {name}" if value is None else f"{name} = {value!r}"


def latencies(dense: nn.Module, small: nn.Module, batches: Batches, seconds: float) -> tuple[Latencies, ...]:
    """Latency of both networks, called ``dense`` and ``small``, on one image and on a training batch."""
    networks = {"dense": dense, "small": small}
    counts = (1, batches.batch_size)
    return tuple(niwaki.latency(networks, batches.example(count), seconds=seconds) for count in counts)


def figures_of(name: str, accuracy: float, cost: Cost, measured: tuple[Latencies, ...]) -> Figures:
    """One network of a report, under its name in ``measured``."""
    return Figures(accuracy, cost.params, cost.macs, cost.memory, tuple(both.networks[name] for both in measured))


def device_named(name: str) -> torch.device:
    """The device of this name; ``auto`` is CUDA's where there is one, else the CPU.

    Raises:
        RunError: it cannot be used here.
    """
    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return usable_device(name)


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {counted(torch.get_num_threads(), 'thread')}"


__all__ = ["AUTO", "REPORT_FILE", "EpochResult", "RunObserver", "TrainingProgress", "finish", "train"]
