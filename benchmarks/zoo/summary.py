"""What several runs found, as the tables of `RESULTS.md`: Markdown. Of a model that is in more than one, the last row
counts; each row knows the commit that it was made on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.zoo.tables import macs_off
from benchmarks.zoo.verdict import VERDICTS, short, verdict, why

Row = dict[str, Any]
_SLOW = 10.0
_OFF = 0.005  # of the MACs of the dense model


def merged(runs: Iterable[Sequence[Row]]) -> tuple[list[Row], list[Row]]:
    """The last row of every model, and the last one with Torch-Pruning beside it."""
    last: dict[tuple[str, str], Row] = {}
    beside: dict[tuple[str, str], Row] = {}
    for row in (row for rows in runs for row in rows):
        last[row["zoo"], row["name"]] = row
        if "peer" in row:
            beside[row["zoo"], row["name"]] = row
    return sorted(last.values(), key=_order), sorted(beside.values(), key=_order)


def summary(rows: Sequence[Row], beside: Sequence[Row]) -> str:
    """All tables."""
    return "\n\n".join(
        [
            _verdicts(rows),
            "## What was run on which commit\n\n" + _provenance(rows),
            "## Every model that falls short\n\n" + _falling_short(rows),
            f"## Analysis over {_SLOW:.0f} s of CPU\n\n" + _slow(rows),
            "## Not compared in train mode, or only in float32\n\n" + _uncompared(rows),
            "## Beyond the tolerances, but within ten times their own round-off\n\n" + _noisy(rows),
            "## Predictions\n\n" + _predictions(rows),
            "## Beside Torch-Pruning\n\n" + _peers(beside),
        ]
    )


def _order(row: Row) -> tuple[str, str]:
    return row["zoo"], row["name"]


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    found = list(lines)
    if not found:
        return "None."
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*head, *("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in found)])


def _zoos(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for zoo in dict.fromkeys(row["zoo"] for row in rows):
        yield zoo, [row for row in rows if row["zoo"] == zoo]
    yield "all", list(rows)


def _percentiles(rows: Sequence[Row], value: Callable[[Row], float | None]) -> str:
    found = [number for number in map(value, rows) if number is not None]
    return " / ".join(f"{np.percentile(found, share):.2f}" for share in (50, 90, 100)) if found else "-"


def _verdicts(rows: Sequence[Row]) -> str:
    columns = ("zoo", "models", *VERDICTS, "mean coverage", "analysis, CPU s: median / 90th / max", "without rehearsal")
    lines = []
    for zoo, chosen in _zoos(rows):
        words = Counter(short(row) for row in chosen)
        coverage = np.mean([row["coverage"] for row in chosen if "coverage" in row])
        times = [_percentiles(chosen, lambda row, key=key: row.get(key)) for key in ("analysis_cpu_s", "solve_cpu_s")]
        counts = (str(words[word]) for word in VERDICTS)
        lines.append((zoo, str(len(chosen)), *counts, f"{coverage:.3f}", *times))
    return _table(columns, lines)


def _provenance(rows: Sequence[Row]) -> str:
    counted = Counter((row["zoo"], row.get("commit", "not noted"), row.get("seeds", 0)) for row in rows)
    columns = ("zoo", "commit", "random plans per model", "models")
    return _table(columns, ((zoo, commit, str(seeds), str(n)) for (zoo, commit, seeds), n in sorted(counted.items())))


def _falling_short(rows: Sequence[Row]) -> str:
    found = sorted((row for row in rows if short(row) != "exact"), key=lambda row: VERDICTS.index(short(row)))
    cells = ((row["zoo"], row["name"], verdict(row), f"{row.get('coverage', 0):.3f}", why(row)) for row in found)
    return _table(("zoo", "model", "verdict", "coverage", "why"), cells)


def _slow(rows: Sequence[Row]) -> str:
    found = sorted((row for row in rows if row.get("analysis_cpu_s", 0) > _SLOW), key=lambda r: -r["analysis_cpu_s"])
    columns = ("zoo", "model", "with rehearsal", "without")
    cells = ((r["zoo"], r["name"], f"{r['analysis_cpu_s']:.1f}", f"{r['solve_cpu_s']:.1f}") for r in found)
    return _table(columns, cells)


def _uncompared(rows: Sequence[Row]) -> str:
    done = [row for row in rows if row.get("stage") == "done"]
    found = [row for row in done if row.get("backward") is None or row.get("precision", "float64") != "float64"]
    columns = ("zoo", "model", "outputs compared in", "why no gradients")
    told = ((row.get("precision", "-"), row.get("refusal") or _compared(row)) for row in found)
    return _table(columns, ((row["zoo"], row["name"], *cells) for row, cells in zip(found, told, strict=True)))


def _noisy(rows: Sequence[Row]) -> str:
    found = [row for row in rows if row.get("noise") and not row.get("wrong")]
    columns = ("zoo", "model", "outputs", "gradients", "the reference from itself")
    keys = ("forward", "backward", "noise")
    numbers = ((format(row.get(key) or 0.0, ".0e") for key in keys) for row in found)
    return _table(columns, ((row["zoo"], row["name"], *cells) for row, cells in zip(found, numbers, strict=True)))


def _compared(row: Row) -> str:
    return "not noted" if row.get("backward") is None else "they were compared"


def _predictions(rows: Sequence[Row]) -> str:
    wrong = [f"{row['name']}" for row in rows if row.get("params_right") is False]
    off = [(row["name"], share) for row in rows if (share := macs_off(row)) is not None and abs(share) > _OFF]
    listed = ", ".join(f"{name} ({share:+.1%})" for name, share in sorted(off, key=lambda item: -abs(item[1])))
    return (
        f"Parameters of a cut that are not as predicted: {', '.join(wrong) or 'none'}. MACs of a cut, as a share of "
        f"the dense model's, more than {_OFF:.1%} off what torch's counter says: {listed or 'none'}."
    )


def _peers(rows: Sequence[Row]) -> str:
    if not rows:
        return "Not run."
    verdicts = Counter(_peer_verdict(row) for row in rows)
    words = sorted(verdicts, key=lambda word: (word != "exact", word))
    lines = []
    for zoo, chosen in _zoos(rows):
        timed = [row for row in chosen if row["peer"].get("build_cpu_s")]
        ours = str(sum(short(row) in ("exact", "low") for row in chosen))
        counts = Counter(_peer_verdict(row) for row in chosen)
        ratios = [
            _ratios([row[key] / row["peer"]["build_cpu_s"] for row in timed if key in row])
            for key in ("solve_cpu_s", "analysis_cpu_s")
        ]
        lines.append((zoo, str(len(chosen)), ours, *(str(counts[word]) for word in words), *ratios))
    columns = ("zoo", "models", "niwaki exact", *(f"its {word}" for word in words))
    return _table((*columns, "time, without rehearsal: median / 90th", "with rehearsal"), lines)


def _peer_verdict(row: Row) -> str:
    peer = row["peer"]
    return f"out of time ({peer.get('stage')})" if peer.get("timeout") else str(peer.get("verdict", "ends by itself"))


def _ratios(found: Sequence[float]) -> str:
    return " / ".join(f"{np.percentile(found, share):.1f}" for share in (50, 90)) + " times its" if found else "-"
