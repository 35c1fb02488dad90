"""Rows as a table of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.accuracy.arms import ARMS
from benchmarks.accuracy.rows import NAMES, Row
from benchmarks.accuracy.summary import Summary, best_baseline, dense_of, summaries

HEADINGS = (
    "task",
    "budget",
    "moment",
    "arm",
    "mean",
    "seeds",
    "over the best baseline",
    "MACs",
    "parameters",
    "training time",
)


def table(rows: Sequence[Row], held_out: bool = False) -> str:
    """One line per task, budget, moment and arm."""
    every = summaries(rows)
    lines = [HEADINGS, ("---",) * 4 + ("---:",) * 6]
    lines += [_line(one, every, held_out) for one in every]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(rows: Sequence[Row], held_out: bool = False) -> str:
    """`table`; then the recipes, and the commits that trained."""
    recipes = dict.fromkeys(f"* {row.recipe}: {row.about}" for row in rows)
    made = sorted({f"{row.commit or '?'} (torch {row.torch}, {row.device}, {row.threads} thread)" for row in rows})
    below = "Recipes:\n\n" + "\n".join(recipes), "Trained by: " + "; ".join(made) + "."
    return "\n\n".join([table(rows, held_out), *below])


def _line(one: Summary, every: Sequence[Summary], held_out: bool) -> tuple[str, ...]:
    digits = 2 if one.first.measure == "accuracy" else 3
    time = one.time(dense_of(one, every))
    return (
        one.first.task,
        f"{one.first.budget:.0%} of the {NAMES[one.first.limited]}",
        f"{one.first.moment:.0%}" if ARMS[one.first.arm].prunes else "",
        one.first.arm,
        f"{one.mean(held_out):.{digits}f}",
        " ".join(f"{value:.{digits}f}" for value in one.values(held_out)),
        _difference(one, every, digits, held_out),
        f"{one.average('macs'):.1%}",
        f"{one.average('params'):.1%}",
        "" if time is None else f"{time:.2f}",
    )


def _difference(one: Summary, every: Sequence[Summary], digits: int, held_out: bool) -> str:
    best = best_baseline(one, every, held_out)
    gap = None if best is None or one.first.budget == 1 else one.over(best, held_out)
    if gap is None or best is None:
        return ""
    error = "" if gap.error is None else f" ± {gap.error:.{digits}f}"
    return f"{gap.mean:+.{digits}f}{error} ({best.first.arm})"
