"""What a row comes to."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
LEAST_COVERAGE = 0.15
VERDICTS = ("exact", "low", "wrong", "crash", "timeout", "does not run")


def verdict(row: Row) -> str:
    """One word of `VERDICTS`, a crash with its stage.

    exact: all plans, outputs and gradients; low: exact, but less than 15 % of the parameters in units; does not run:
    the dense model itself fails, so it says nothing about niwaki.
    """
    stage = row.get("stage", "start")
    if stage in ("start", "build", "dense"):
        return "does not run"
    if row.get("wrong"):
        return "wrong"
    if row.get("timeout"):
        return "timeout"
    if "error" in row:
        return f"crash({stage})"
    return "exact" if row["coverage"] >= LEAST_COVERAGE else "low"


def short(row: Row) -> str:
    """The verdict without its stage."""
    return verdict(row).split("(")[0]


def why(row: Row) -> str:
    """One line on a row that falls short."""
    word = short(row)
    if word == "wrong":
        gradient = row.get("backward")
        return (
            f"outputs {row['forward']:.1e}, gradients {'-' if gradient is None else format(gradient, '.1e')}, "
            f"first in {row.get('diverges')!r}"
        )
    if word in ("crash", "timeout", "does not run"):
        return f"{row.get('stage', 'start')}: {row.get('error', '')}"
    pins = row.get("pins", [])
    total = max(1, row["params"])
    return "; ".join(f"{pin['reason']} ({pin['entries'] / total:.0%})" for pin in pins[:3])[:300] or "nothing is a unit"
