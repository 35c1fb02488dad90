"""Rows of results: one per trained network, appended to a file of JSON lines as soon as it is there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Job:
    """One network to train. ``budget``: the measure that is limited, and the share of it to keep; a dense network has
    the share 1. ``recipe``: everything else that its result depends on, in words."""

    task: str
    arm: str
    budget: str
    share: float
    seed: int
    recipe: str


@dataclass(frozen=True, slots=True)
class Row:
    """A trained network. ``value`` is the accuracy (a share) or the loss (nats per token) after the last step, ``macs``
    and ``params`` are shares of the dense network, ``seconds`` of one thread on a CPU, of the clock on a GPU."""

    task: str
    arm: str
    budget: str
    share: float
    seed: int
    recipe: str
    measure: str
    value: float
    macs: float
    params: float
    dense_macs: int
    dense_params: int
    seconds: float
    device: str
    niwaki: str
    torch: str

    @property
    def job(self) -> Job:
        return Job(**{field.name: getattr(self, field.name) for field in fields(Job)})


def read(path: Path) -> list[Row]:
    """The rows of a file; a last line that a killed run left unfinished is not there."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):
            rows.append(Row(**json.loads(line)))
    return rows


def append(path: Path, row: Row) -> None:
    """Add a row, on a line of its own even after a line that was left unfinished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    whole = before[: before.rfind(b"\n") + 1]
    if whole != before:
        path.write_bytes(whole)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def missing(jobs: Iterable[Job], rows: Iterable[Row]) -> list[Job]:
    """The jobs that no row answers."""
    known = {row.job for row in rows}
    return [job for job in jobs if job not in known]
