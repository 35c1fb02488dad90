"""What a sweep found, as tables."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.zoo.verdict import VERDICTS, short, verdict, why

Row = dict[str, Any]
_SLOW = 10.0
_NAMES = re.compile(r"'[^']*'|\b\d[\d.,]*\b")


def show(rows: list[Row], console: Console) -> None:
    """Everything, the summary last."""
    if not rows:
        console.print("Nothing matches.")
        return
    console.print(_all(rows))
    console.print(_reasons(rows))
    console.print(_operators(rows))
    console.print(_slow(rows))
    if any("peer" in row for row in rows):
        console.print(_peers(rows))
    console.print(_short_falling(rows))
    console.print(_summary(rows))


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)


def _all(rows: list[Row]) -> Table:
    peers = any("peer" in row for row in rows)
    columns = ["zoo", "model", "verdict", "coverage", "removed", "forward", "backward", "params right", "MACs off"]
    columns += ["analysis s", "CPU s", "no rehearsal s", "model s"] + (["peer", "their s", "ratio"] if peers else [])
    table = _table("All models", columns)
    for row in sorted(rows, key=lambda row: (row["zoo"], row["name"])):
        cells = [row["zoo"], row["name"], verdict(row)]
        cells += [_number(row.get(key), form) for key, form in _COLUMNS]
        right = row.get("params_right")
        cells[7:7] = ["-" if right is None else "yes" if right else "NO", _number(macs_off(row), ".1%")]
        if peers:
            peer = row.get("peer", {})
            cells += [peer.get("verdict", "-"), _number(peer.get("build_s"), ".2f"), _number(_ratio(row), ".2f")]
        table.add_row(*cells)
    return table


_COLUMNS = (
    ("coverage", ".3f"),
    ("removed", ".1%"),
    ("forward", ".0e"),
    ("backward", ".0e"),
    ("analysis_s", ".2f"),
    ("analysis_cpu_s", ".2f"),
    ("solve_s", ".2f"),
    ("forward_s", ".3f"),
)


def macs_off(row: Row) -> float | None:
    """How far the predicted share of MACs of a cut is from the share that torch's counter sees."""
    if not row.get("macs_counted") or not row.get("macs"):
        return None
    return float(row["macs_predicted"] / row["macs"] - row["macs_counted_cut"] / row["macs_counted"])


def plain(reason: str) -> str:
    """A reason without names and numbers, to count like ones together."""
    return _NAMES.sub("…", reason)


def _reasons(rows: list[Row]) -> Table:
    models: dict[str, set[str]] = defaultdict(set)
    lost: dict[str, float] = defaultdict(float)
    samples: dict[str, str] = {}
    analysed = [row for row in rows if "pins" in row]
    for row in analysed:
        for pin in row["pins"]:
            reason = plain(pin["reason"])
            models[reason].add(f"{row['zoo']}:{row['name']}")
            lost[reason] += pin["entries"] / max(1, row["params"])
            samples.setdefault(reason, f"{row['name']}: {pin['where']}")
    table = _table(
        f"Reasons of pins over {len(analysed)} analysed models (mean share: entries in pinned positions, all models; "
        "an entry pinned in one dimension can still leave through another)",
        ("reason", "models", "mean share", "for example"),
    )
    for reason in sorted(lost, key=lambda reason: -lost[reason])[:60]:
        share = lost[reason] / max(1, len(analysed))
        table.add_row(reason, str(len(models[reason])), f"{share:.2%}", samples[reason])
    return table


def _operators(rows: list[Row]) -> Table:
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for pin in row.get("pins", []):
            if "no rule" in pin["reason"]:
                for operator in re.findall(r"\b\w+\.\w+(?:\.\w+)?\b", pin["reason"])[:1]:
                    found[operator].add(row["name"])
    table = _table("Operators without a rule", ("operator", "models", "which"))
    for operator, names in sorted(found.items(), key=lambda item: -len(item[1])):
        table.add_row(operator, str(len(names)), ", ".join(sorted(names)[:8]))
    return table


def _slow(rows: list[Row]) -> Table:
    table = _table(f"Analysis over {_SLOW:.0f} s", ("model", "with rehearsal s", "without s", "model s"))
    for row in sorted(rows, key=lambda row: -row.get("analysis_s", 0.0)):
        if row.get("analysis_s", 0.0) > _SLOW:
            table.add_row(
                row["name"], f"{row['analysis_s']:.1f}", f"{row['solve_s']:.1f}", _number(row.get("forward_s"), ".2f")
            )
    return table


def _short_falling(rows: list[Row]) -> Table:
    table = _table("Every model that falls short", ("zoo", "model", "verdict", "coverage", "why"))
    for row in sorted(rows, key=lambda row: (VERDICTS.index(short(row)), row["zoo"], row["name"])):
        if short(row) != "exact":
            table.add_row(row["zoo"], row["name"], verdict(row), _number(row.get("coverage"), ".3f"), why(row))
    return table


def _summary(rows: list[Row]) -> Table:
    columns = ("zoo", "models", *VERDICTS, "mean coverage", "analysis s: median", "90th", "max", "no rehearsal: median")
    table = _table("Summary", columns)
    zoos = sorted({row["zoo"] for row in rows})
    for zoo in (*zoos, *(["all"] if len(zoos) > 1 else [])):
        chosen = [row for row in rows if zoo in (row["zoo"], "all")]
        words = Counter(short(row) for row in chosen)
        coverage = [row["coverage"] for row in chosen if "coverage" in row]
        seconds = [row["analysis_s"] for row in chosen if "analysis_s" in row] or [0.0]
        solving = [row["solve_s"] for row in chosen if "solve_s" in row] or [0.0]
        table.add_row(
            zoo,
            str(len(chosen)),
            *(str(words[word]) for word in VERDICTS),
            f"{np.mean(coverage or [0.0]):.3f}",
            *(f"{np.percentile(seconds, share):.2f}" for share in (50, 90, 100)),
            f"{np.median(solving):.2f}",
        )
    return table


def _ratio(row: Row) -> float | None:
    theirs = row.get("peer", {}).get("build_s")
    return row["analysis_s"] / theirs if theirs and "analysis_s" in row else None


def _peers(rows: list[Row]) -> Table:
    columns = ("models", "timed", "ours exact", "theirs exact", "of the time", "ours s", "theirs s", "ratio", "ratio")
    table = _table("Beside Torch-Pruning: exact models; analysis, median / 90th percentile", columns)
    table.columns[-2].header, table.columns[-1].header = "ratio of each", "ratio of percentiles"
    kinds = ["classification"] if any(row["kind"] == "classification" for row in rows) else []
    for kind in (*kinds, "all"):
        chosen = [row for row in rows if "peer" in row and kind in (row["kind"], "all")]
        both = [row for row in chosen if _ratio(row) is not None]
        exact = (
            str(sum(short(row) in ("exact", "low") for row in chosen)),
            str(sum(row["peer"].get("verdict") == "exact" for row in chosen)),
        )
        for what, mine, theirs in _TIMES if both else ():
            ours = np.array([row[mine] for row in both])
            peer = np.array([row["peer"][theirs] for row in both])
            percentiles = [(np.percentile(ours, q), np.percentile(peer, q)) for q in (50, 90)]
            table.add_row(
                f"{kind}, {len(chosen)}",
                str(len(both)),
                *exact,
                what,
                " / ".join(f"{pair[0]:.2f}" for pair in percentiles),
                " / ".join(f"{pair[1]:.2f}" for pair in percentiles),
                " / ".join(f"{np.percentile(ours / peer, q):.2f}" for q in (50, 90)),
                " / ".join(f"{pair[0] / pair[1]:.2f}" for pair in percentiles),
            )
    return table


_TIMES = (
    ("with rehearsal, wall", "analysis_s", "build_s"),
    ("with rehearsal, CPU", "analysis_cpu_s", "build_cpu_s"),
    ("trace and solve, wall", "solve_s", "build_s"),
    ("trace and solve, CPU", "solve_cpu_s", "build_cpu_s"),
)
