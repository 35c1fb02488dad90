"""One process per model, with a cap on time and on memory, so that a crash or a runaway is a row like any other.

Processes are forked from one that has imported the libraries, so no time is lost there, and a sweep sees one version of
the code from beginning to end.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
_BUSY = 4.0
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Job:
    """``work`` fills the JSON file at ``path``.

    ``seconds`` are CPU time: on a busy machine the clock may show four times as many.
    """

    row: Row
    work: Callable[[Path], None]
    path: Path
    gigabytes: float
    seconds: float


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    since: float = field(default_factory=time.monotonic)


def run(jobs: list[Job], at_once: int) -> Iterator[Row]:
    """The rows of all jobs, as they finish."""
    waiting, running = list(reversed(jobs)), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_start(waiting.pop()))
            for one in list(running):
                late = time.monotonic() - one.since > _BUSY * one.job.seconds
                if late:
                    _kill(one.process)
                if late or not one.process.is_alive():
                    one.process.join()
                    running.remove(one)
                    yield _finished(one, late)
            time.sleep(0.05)
    finally:
        for one in running:
            _kill(one.process)


def _start(job: Job) -> _Running:
    job.path.parent.mkdir(parents=True, exist_ok=True)
    job.path.unlink(missing_ok=True)
    process = _FORK.Process(target=_inside, args=(job,), daemon=True)
    process.start()
    return _Running(job, process)


def _inside(job: Job) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = os.open(job.path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    cap = int(job.gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
    resource.setrlimit(resource.RLIMIT_CPU, (int(job.seconds), int(job.seconds) + 5))
    torch.set_num_threads(1)
    job.work(job.path)


def _kill(process: BaseProcess) -> None:
    """The process and whatever it started: it leads a session of its own."""
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.join()


def _finished(one: _Running, late: bool) -> Row:
    row = dict(one.job.row)
    if one.job.path.exists():
        row |= json.loads(one.job.path.read_text())
    row["seconds"] = time.monotonic() - one.since
    if late or one.process.exitcode == -signal.SIGXCPU:
        row |= {"timeout": True, "error": f"not finished after {one.job.seconds:.0f} s of CPU time"}
    elif row.get("stage") != "done" and "error" not in row:
        row["error"] = f"the process ended with exit code {one.process.exitcode}"
    one.job.path.write_text(json.dumps(row))
    return row
