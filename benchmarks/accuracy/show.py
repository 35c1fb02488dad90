"""Rows as a table and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.table import Table

from benchmarks.accuracy.arms import ARMS, METHODS
from benchmarks.accuracy.results import Row

Value = TypeVar("Value")


HEADINGS = ("task", "to keep", "arm", "mean", "worse than dense", "seeds", "MACs", "parameters", "s per run")


def table(rows: Sequence[Row]) -> Table:
    """One line per task, budget and arm; means over seeds."""
    out = Table()
    for heading in HEADINGS:
        out.add_column(heading, justify="left" if heading in ("task", "to keep", "arm") else "right")
    for task in in_order(row.task for row in rows):
        for line in lines([row for row in rows if row.task == task]):
            out.add_row(*line)
        out.add_section()
    return out


def markdown(rows: Sequence[Row]) -> str:
    """The same as a table of Markdown."""
    every = [HEADINGS, ("---",) * 3 + ("---:",) * 6]
    every += [
        line for task in in_order(row.task for row in rows) for line in lines([r for r in rows if r.task == task])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The lines of one task."""
    found = []
    for budget, share in sorted({(row.budget, -row.share) for row in rows}, key=lambda pair: (pair[1], pair[0])):
        for arm in ARMS:
            same = of(rows, rows[0].task, arm, budget, -share)
            if same:
                kept = f"{-share:.0%} {budget}" if -share < 1 else "all"
                found.append((rows[0].task, kept, arm, *_line(same, rows)))
    return found


def of(rows: Iterable[Row], task: str, arm: str, budget: str, share: float) -> list[Row]:
    """The rows of one arm, by seed."""
    found = [r for r in rows if (r.task, r.arm, r.budget, r.share) == (task, arm, budget, share)]
    return sorted(found, key=lambda row: row.seed)


def better(one: Row) -> float:
    """The measure in points of accuracy, or in nats, such that more is better."""
    return 100 * one.value if one.measure == "accuracy" else -one.value


def mean(rows: Sequence[Row]) -> float:
    """Of `better`."""
    return statistics.mean(better(row) for row in rows)


def lost(rows: Sequence[Row], dense: Sequence[Row]) -> list[float]:
    """By how much each seed is worse than dense training with that seed, where there is one."""
    by_seed = {row.seed: row for row in dense}
    return [better(by_seed[row.seed]) - better(row) for row in rows if row.seed in by_seed]


def _line(same: Sequence[Row], all_of_task: Sequence[Row]) -> tuple[str, ...]:
    digits = 2 if same[0].measure == "accuracy" else 3
    gaps = lost(same, [row for row in all_of_task if row.arm == "dense"])
    spread = f" ± {statistics.stdev(gaps):.{digits}f}" if len(gaps) > 1 else ""
    return (
        f"{abs(mean(same)):.{digits}f}",
        "" if same[0].arm == "dense" or not gaps else f"{statistics.mean(gaps):.{digits}f}{spread}",
        " ".join(f"{abs(better(row)):.{digits}f}" for row in same),
        f"{statistics.mean(row.macs for row in same):.1%}",
        f"{statistics.mean(row.params for row in same):.1%}",
        f"{statistics.mean(row.seconds for row in same):.0f}",
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy (or loss) against the share of the MACs, one panel per task; bars from the lowest to the highest seed.

    Raises:
        SystemExit: matplotlib is not there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise SystemExit("A plot needs matplotlib: pip install 'niwaki[benchmark]'.") from cause
    tasks = in_order(row.task for row in rows)
    figure = Figure(figsize=(5.5 * len(tasks), 4.5), layout="constrained")
    for panel, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        mine = [row for row in rows if row.task == task]
        for number, arm in enumerate(ARMS):
            shares = sorted({(row.budget, row.share) for row in mine if row.arm == arm})
            if not shares:
                continue
            points = [of(mine, task, arm, *share) for share in shares]
            x = [statistics.mean(row.macs for row in same) for same in points]
            y = [abs(mean(same)) for same in points]
            spread = [[abs(better(row)) for row in same] for same in points]
            bars = [
                [v - min(s) for v, s in zip(y, spread, strict=True)],
                [max(s) - v for v, s in zip(y, spread, strict=True)],
            ]
            style = "-o" if arm in METHODS else "--s"
            panel.errorbar(
                x, y, bars, fmt=style, label=arm, color=f"C{number % 10}", markersize=4, linewidth=1, capsize=2
            )
            if arm == "dense":
                panel.axhline(y[0], color=f"C{number}", linewidth=0.5)
        panel.set_title(task)
        panel.set_xlabel("MACs, share of the dense network")
        panel.set_ylabel("accuracy, %" if mine[0].measure == "accuracy" else "nats per token")
        panel.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def in_order(values: Iterable[Value]) -> list[Value]:
    """Each once, as they come."""
    return list(dict.fromkeys(values))
