"""The picture and the tables of README.md and RESULTS.md, from the rows on disk.

    python -m benchmarks.accuracy readme

writes `docs/accuracy.svg` and a table between two marks in each of the pages. For the README, a task whose dense
network has no row in the folder of results yet is read from `float32/` below it. Lines without a row are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.chart import chart
from benchmarks.accuracy.rows import Row, read
from benchmarks.accuracy.setting import DEFAULT_MOMENT
from benchmarks.accuracy.summary import Summary, dense_of, summaries
from benchmarks.accuracy.table import table as every_row

ROOT = Path(__file__).parents[2]
BEGIN = "<!-- python -m benchmarks.accuracy readme writes from here -->"
END = "<!-- to here -->"
OLDER = "float32"
RESULTS = "benchmarks/accuracy/RESULTS.md"
PICTURED = "cifar10-airbench-8"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: what it is of, as rows have it, and in words."""

    arm: str
    budget: float
    moment: float
    words: str


TABLE: dict[str, tuple[str, tuple[Line, ...]]] = {  # by task: what it is, and its lines
    PICTURED: (
        "**CIFAR-10**, six convolutions, 8 epochs",
        (
            Line("hesso", 0.2, DEFAULT_MOMENT, "**HESSO**, units reach zero at 35 % of the run"),
            Line("magnitude", 0.2, DEFAULT_MOMENT, "the smallest units cut at 35 % of the run"),
            Line("narrow", 0.2, 0.0, "a narrow network from the start"),
            Line("random", 0.2, DEFAULT_MOMENT, "units cut at random at 35 % of the run"),
        ),
    ),
    "fashion": (
        "**Fashion-MNIST**, residual network, 10 epochs",
        (
            Line("hesso", 0.2, DEFAULT_MOMENT, "**HESSO**, units reach zero at 35 % of the run"),
            Line("magnitude", 0.2, DEFAULT_MOMENT, "the smallest units cut at 35 % of the run"),
            Line("narrow", 0.2, 0.0, "a narrow network from the start"),
            Line("random", 0.2, DEFAULT_MOMENT, "units cut at random at 35 % of the run"),
        ),
    ),
    "cifar10-finetune-200-steps": (
        "**CIFAR-10**, a trained ResNet-20, 200 steps of fine-tuning",
        (
            Line("prune", 0.5, 0.0, "**niwaki.prune** before the first step"),
            Line("hesso", 0.5, 0.1, "**HESSO** at 10 % of these steps"),
            Line("hesso", 0.5, DEFAULT_MOMENT, "**HESSO** at 35 % of these steps"),
            Line("magnitude", 0.5, DEFAULT_MOMENT, "the smallest units cut at 35 % of these steps"),
            Line("magnitude", 0.5, 0.0, "the smallest units cut before the first step"),
            Line("prune", 0.3, 0.0, "**niwaki.prune** before the first step"),
            Line("magnitude", 0.3, 0.0, "the smallest units cut before the first step"),
        ),
    ),
}


def rows_of(task: str, folder: Path) -> list[Row]:
    """The rows of a task, of the present recipe where its dense network has one."""
    for place in (folder, folder / OLDER):
        rows = [row for row in read(place) if row.task == task]
        if any(row.arm == "dense" for row in rows):
            return rows
    return []


def table(folder: Path) -> str:
    """The table, as Markdown."""
    lines = [
        "| | of the MACs | accuracy, % | seeds | HESSO's lead | training time |",
        "|---|---|---|---|---|---|",
    ]
    for task, (about, wanted) in TABLE.items():
        every = summaries(rows_of(task, folder))
        dense = next((one for one in every if one.first.arm == "dense"), None)
        if dense is None:
            continue
        lines.append(_cells(f"{about}: dense", dense, None, every))
        for line in wanted:
            hesso = _find(every, Line("hesso", line.budget, DEFAULT_MOMENT, ""))
            if (one := _find(every, line)) is not None:
                lines.append(_cells(line.words, one, hesso, every))
    return "\n".join(lines)


def _find(every: Sequence[Summary], line: Line) -> Summary | None:
    wanted = ("macs", line.arm, line.budget, line.moment)
    return next(
        (one for one in every if (one.first.limited, one.first.arm, one.first.budget, one.first.moment) == wanted), None
    )


def _cells(words: str, one: Summary, hesso: Summary | None, every: Sequence[Summary]) -> str:
    gap = None if hesso is None or hesso is one else hesso.over(one)
    lead = "" if gap is None else f"{gap.mean:+.2f}" + ("" if gap.error is None else f" ± {gap.error:.2f}")
    time = one.time(dense_of(one, every))
    cells = (
        f"{100 * one.first.budget:.0f} %",
        f"{one.mean():.2f}",
        f"{len(one.rows)}",
        lead,
        f"{time:.2f}" if time else "",
    )
    return f"| {' | '.join((words, *cells))} |"


def written(page: Path, table: str) -> str:
    """The text of a page with the table between its marks.

    Raises:
        SystemExit: the marks are missing.
    """
    marks = re.compile(f"({re.escape(BEGIN)}\n).*?(\n{re.escape(END)})", flags=re.DOTALL)
    text = page.read_text()
    if not marks.search(text):
        raise SystemExit(f"{page.name} lacks the marks {BEGIN} and {END}, between which the table belongs.")
    return marks.sub(lambda found: f"{found[1]}\n{table}\n{found[2]}", text)


def readme(folder: Path, root: Path = ROOT) -> None:
    """Write the picture and the tables."""
    for name, made in (("README.md", table(folder)), (RESULTS, every_row(read(folder)))):
        (root / name).write_text(written(root / name, made))
    chart(rows_of(PICTURED, folder), PICTURED, DEFAULT_MOMENT, root / "docs" / "accuracy.svg")
