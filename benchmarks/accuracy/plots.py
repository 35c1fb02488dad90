"""Pictures of the rows: accuracy over MACs, over training time, and over the moment of the cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.arms import ARMS
from benchmarks.accuracy.rows import NAMES, Row
from benchmarks.accuracy.summary import Summary, dense_of, summaries

Place = Callable[[Summary], float | None]


def plots(rows: Sequence[Row], folder: Path, moment: float, held_out: bool = False) -> list[Path]:
    """Write ``macs.png`` and ``time.png``, of the arms that cut at ``moment`` or never, and ``moment.png``, of budgets
    for which there are several moments; one panel per task and recipe (and budget). Bars from the lowest to the highest
    seed.

    Raises:
        SystemExit: matplotlib is not there.
    """
    every = summaries(rows)
    shown = [one for one in every if not ARMS[one.first.arm].prunes or one.first.moment == moment]

    def macs(one: Summary) -> float:
        return one.average("macs")

    def time(one: Summary) -> float | None:
        return one.time(dense_of(one, every))

    made = [
        _figure(_by_task(shown), macs, "share of the dense MACs", folder / "macs.png", held_out),
        _figure(_by_task(shown), time, "training time over dense", folder / "time.png", held_out),
        _figure(_by_budget(every), lambda one: one.first.moment, "moment", folder / "moment.png", held_out),
    ]
    return [path for path in made if path is not None]


def _by_task(every: Sequence[Summary]) -> dict[str, list[Summary]]:
    panels: dict[str, list[Summary]] = {}
    for one in every:
        panels.setdefault(f"{one.first.task} {one.first.recipe}", []).append(one)
    return panels


def _by_budget(every: Sequence[Summary]) -> dict[str, list[Summary]]:
    panels: dict[str, list[Summary]] = {}
    for one in every:
        if ARMS[one.first.arm].prunes:
            panels.setdefault(
                f"{one.first.task} {one.first.recipe}, {one.first.budget:.0%} of the {NAMES[one.first.limited]}", []
            ).append(one)
    return {name: some for name, some in panels.items() if len({one.first.moment for one in some}) > 1}


def _figure(panels: dict[str, list[Summary]], place: Place, label: str, path: Path, held_out: bool) -> Path | None:
    try:
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise SystemExit("A plot needs matplotlib: pip install matplotlib.") from cause
    if not panels:
        return None
    figure = Figure(figsize=(5.5 * len(panels), 4.5), layout="constrained")
    for panel, (name, mine) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for number, arm in enumerate(ARMS):
            _curve(panel, [one for one in mine if one.first.arm == arm], place, f"C{number % 10}", held_out)
        panel.set_title(name, fontsize="small")
        panel.set_xlabel(label)
        panel.set_ylabel("accuracy, %" if mine[0].first.measure == "accuracy" else "nats per token")
        if panel.get_legend_handles_labels()[0]:  # none where the dense network is missing
            panel.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _curve(panel: Any, mine: Sequence[Summary], place: Place, color: str, held_out: bool) -> None:
    points = sorted((x, one.mean(held_out), one.values(held_out)) for one in mine if (x := place(one)) is not None)
    if not points:
        return
    x, y = [point[0] for point in points], [point[1] for point in points]
    bars = [[mean - min(seeds) for _, mean, seeds in points], [max(seeds) - mean for _, mean, seeds in points]]
    arm = mine[0].first.arm
    style = "--s" if ARMS[arm].baseline else "-o"
    panel.errorbar(x, y, bars, fmt=style, label=arm, color=color, markersize=4, linewidth=1, capsize=2)
    if not ARMS[arm].cuts:
        panel.axhline(y[0], color=color, linewidth=0.5)
