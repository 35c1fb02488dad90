"""Rows of one arm over its seeds, and how they differ from those of another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.accuracy.arms import ARMS
from benchmarks.accuracy.rows import Row


@dataclass(frozen=True, slots=True)
class Summary:
    """The rows of one arm at one budget and moment, by seed."""

    rows: tuple[Row, ...]

    @property
    def first(self) -> Row:
        """What all of them share may be read from this one."""
        return self.rows[0]

    def values(self, held_out: bool = False) -> list[float]:
        """Per cent, or nats, by seed."""
        scale = 100 if self.first.measure == "accuracy" else 1
        return [scale * (row.held_out if held_out else row.test) for row in self.rows]

    def mean(self, held_out: bool = False) -> float:
        """Of `values`."""
        return statistics.mean(self.values(held_out))

    def better(self, held_out: bool = False) -> float:
        """The mean, such that more is better."""
        return self.mean(held_out) if self.first.measure == "accuracy" else -self.mean(held_out)

    def average(self, field: str) -> float:
        """The mean of a field over the seeds."""
        return statistics.mean(getattr(row, field) for row in self.rows)

    def time(self, dense: Summary | None) -> float | None:
        """The mean share of the dense network's training time, over the seeds that both have and that ran alike."""
        seconds = {_machine(row): row.seconds for row in dense.rows} if dense else {}
        shares = [row.seconds / seconds[_machine(row)] for row in self.rows if _machine(row) in seconds]
        return statistics.mean(shares) if shares else None

    def over(self, other: Summary, held_out: bool = False) -> Difference | None:
        """By how much the values exceed those of ``other`` with the same seeds; None without a common seed."""
        theirs = {row.seed: value for row, value in zip(other.rows, other.values(held_out), strict=True)}
        mine = {row.seed: value for row, value in zip(self.rows, self.values(held_out), strict=True)}
        gaps = [value - theirs[seed] for seed, value in mine.items() if seed in theirs]
        if not gaps:
            return None
        error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None
        return Difference(statistics.mean(gaps), error)


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of paired differences, and its standard error where there are two or more."""

    mean: float
    error: float | None


def summaries(rows: Iterable[Row]) -> list[Summary]:
    """One for each task, recipe, budget, moment and arm: tasks by name, large budgets first, then by moment and as
    `ARMS` has them."""
    found: dict[tuple[str, str, str, float, float, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.task, row.recipe, row.limited, -row.budget, row.moment, row.arm), []).append(row)
    order = list(ARMS)
    keys = sorted(found, key=lambda key: (*key[:5], order.index(key[5])))
    return [Summary(tuple(sorted(found[key], key=lambda row: row.seed))) for key in keys]


def dense_of(one: Summary, every: Sequence[Summary]) -> Summary | None:
    """The dense network of the same task and recipe."""
    return next((other for other in every if other.first.arm == "dense" and _same_task(one, other)), None)


def best_baseline(one: Summary, every: Sequence[Summary], held_out: bool = False) -> Summary | None:
    """The best of the other baselines of the same task, recipe and budget that cut at the same moment or never; of all
    moments where none did."""
    pool = [
        other
        for other in every
        if ARMS[other.first.arm].baseline
        and other.first.arm not in ("dense", one.first.arm)
        and _same_task(one, other)
        and (other.first.budget, other.first.limited) == (one.first.budget, one.first.limited)
    ]
    alike = [other for other in pool if not ARMS[other.first.arm].prunes or other.first.moment == one.first.moment]
    pool = alike if any(ARMS[other.first.arm].prunes for other in alike) else pool
    return max(pool, key=lambda other: other.better(held_out), default=None)


def _same_task(one: Summary, other: Summary) -> bool:
    return (one.first.task, one.first.recipe) == (other.first.task, other.first.recipe)


def _machine(row: Row) -> tuple[int, str, int]:
    return row.seed, row.device, row.threads
