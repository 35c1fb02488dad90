"""Rows of results: one per trained network, appended to a file of JSON lines as soon as it is there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

NAMES = {"macs": "MACs", "units": "units"}  # what a budget is a share of


@dataclass(frozen=True, slots=True)
class Job:
    """One network to train. ``budget``: the share of the dense network's ``limited`` to keep, MACs or units,
    ``moment``: the share of the run after which the last removed unit is zero; 1 and 0 for arms that have none.
    ``recipe``: the task's fingerprint."""

    task: str
    arm: str
    budget: float
    moment: float
    seed: int
    recipe: str
    limited: str = "macs"


@dataclass(frozen=True, slots=True)
class Row:
    """A trained network, measured after the last step.

    ``test`` and ``held_out`` are accuracies as shares, or losses in nats per token (``measure`` says which); ``macs``
    and ``params`` are shares of the dense network's; ``widths`` the units that each group kept, empty if nothing was
    cut; ``seconds`` of training and pruning: CPU time of the process on a CPU, of the clock on a GPU. ``about``: the
    recipe in words. ``commit``: of the code that trained it.
    """

    task: str
    arm: str
    budget: float
    moment: float
    seed: int
    recipe: str
    about: str
    measure: str
    test: float
    held_out: float
    macs: float
    params: float
    dense_macs: int
    dense_params: int
    widths: tuple[int, ...]
    seconds: float
    device: str
    threads: int
    commit: str
    niwaki: str
    torch: str
    limited: str = "macs"

    @property
    def job(self) -> Job:
        return Job(**{field.name: getattr(self, field.name) for field in fields(Job)})


def read(folder: Path) -> list[Row]:
    """The rows of all files of a folder; a line that a killed run left unfinished is skipped."""
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                continue
            rows.append(Row(**(values | {"widths": tuple(values["widths"])})))
    return rows


def append(folder: Path, row: Row) -> None:
    """Add a row to the file of its task, in one write, so that several runs may share the file; on a line of its own
    even after one that was left unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(row)) + "\n"
    with (folder / f"{row.task}.jsonl").open("a+b", buffering=0) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode())
        os.fsync(file.fileno())


def missing(jobs: Iterable[Job], rows: Iterable[Row]) -> list[Job]:
    """The jobs that no row answers."""
    known = {row.job for row in rows}
    return [job for job in jobs if job not in known]
