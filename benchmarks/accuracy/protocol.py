"""Which networks a comparison needs, and how one is trained and measured."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

import niwaki
from benchmarks.accuracy.arms import ARMS, Setting
from benchmarks.accuracy.rows import NAMES, Job, Row
from benchmarks.accuracy.tasks import TASKS
from benchmarks.accuracy.where import Where

WIDTHS_OF = "hesso"  # whose final widths the narrow network has


def jobs(
    where: Where,
    tasks: Sequence[str],
    arms: Sequence[str],
    budgets: Sequence[float],
    moments: Sequence[float],
    seeds: Iterable[int],
    limited: str = "macs",
) -> list[Job]:
    """All networks, seed by seed, so that a run that is stopped has whole comparisons. All arms prune at the same
    ``moments``, and a method once more at its own. ``budgets``: shares of the dense network's ``limited``."""
    found: dict[Job, None] = {}
    for seed in seeds:
        for task in tasks:
            recipe = TASKS[task](where, seed).fingerprint
            for budget in budgets:
                for name in arms:
                    arm = ARMS[name]
                    own = () if arm.own is None else (arm.own,)
                    for moment in (*moments, *own) if arm.prunes else (0.0,):
                        if arm.gradual and not moment:
                            continue
                        of = (budget, limited) if arm.cuts else (1.0, "macs")
                        found[Job(task, name, of[0], moment, seed, recipe, of[1])] = None
    return list(found)


def trained(job: Job, where: Where, rows: Sequence[Row], save: Path | None = None) -> Row:
    """Train one network. ``rows``: the results so far, in which a narrow network finds its widths. ``save``: a folder
    for its weights."""
    task = TASKS[job.task](where, job.seed)
    arm = ARMS[job.arm]
    widths = _widths(job, rows) if arm.needs_widths else None
    clock = time.process_time if where.device.type == "cpu" else time.perf_counter
    begin = clock()
    run = arm.train(Setting(task, job.seed, job.budget, job.moment, widths, job.limited))
    if where.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = clock() - begin
    torch.manual_seed(job.seed)
    dense = niwaki.search_space(task.prepared(task.network()), task.example(), rehearse=False).cost()
    cost = run.space(rehearse=False).cost()
    row = Row(
        **{name: getattr(job, name) for name in Job.__dataclass_fields__},
        about=task.described,
        measure=task.measure,
        test=task.evaluate(run.model),
        held_out=task.evaluate(run.model, held_out=True),
        macs=cost.macs / dense.macs,
        params=cost.params / dense.params,
        dense_macs=dense.macs,
        dense_params=dense.params,
        widths=run.widths or (),
        seconds=round(seconds, 1),
        device=torch.cuda.get_device_name() if where.device.type == "cuda" else where.device.type,
        threads=torch.get_num_threads(),
        commit=commit(),
        niwaki=niwaki.__version__,
        torch=version("torch"),
    )
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        name = f"{job.task}-{job.arm}-{job.budget:g}-{job.moment:g}-{job.seed}.safetensors"
        told = {key: str(value) for key, value in asdict(row).items()}
        save_file({key: x.contiguous().cpu() for key, x in run.model.state_dict().items()}, save / name, told)
    return row


def _widths(job: Job, rows: Sequence[Row]) -> tuple[int, ...]:
    moment = ARMS[WIDTHS_OF].own
    assert moment is not None
    wanted = Job(job.task, WIDTHS_OF, job.budget, moment, 0, job.recipe, job.limited)
    for row in rows:
        if row.job == wanted:
            return row.widths
    raise SystemExit(
        f"The arm {job.arm!r} has the widths of {WIDTHS_OF!r} with seed 0 at {job.budget:.0%} of the "
        f"{NAMES[job.limited]}, which is not among the results of {job.task!r}: train that first."
    )


def commit() -> str:
    """The commit of this code, with a + if files differ from it; empty outside of a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        state = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if state.stdout.strip() else "")
