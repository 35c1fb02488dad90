"""What `niwaki train` prints at its end: the sentence for a colleague, the table, the curves, the notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from niwaki.core.describe import counted, percent
from niwaki.performance.measure import Latency, Ratio
from niwaki.report import PAGE_FILE, RunReport
from niwaki.report.content import accuracies, headline_of
from niwaki.train.recipe import NO_METHOD, Recipe

_BARS = "▁▂▃▄▅▆▇█"
_LONGEST = 40  # letters of a curve


def report_parts(report: RunReport, out: Path) -> Iterator[RenderableType]:
    """The parts of the report of a run in ``out``, in their order."""
    yield Text(f"\n{headline_of(report)}", style="bold")
    yield _table(report)
    if len(report.history) > 1:
        yield Text("\n".join(_curves(report)))
    yield Text("\n".join(_notes(report)))
    yield Text(f"Saved to {out}: model.safetensors, plan.json, report.json, {PAGE_FILE}")
    yield Text(f"Look at it: {out / PAGE_FILE}\nUse it:     niwaki.load_run({str(out)!r})")


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """Values as a row of bars between ``low`` and ``high``, in at most 40 letters.

    >>> sparkline([0.0, 0.5, 1.0], 0.0, 1.0)
    '▁▅█'
    """
    step = max(1, -(-len(values) // _LONGEST))
    shown = [values[min(start + step, len(values)) - 1] for start in range(0, len(values), step)]
    span = (high - low) or 1.0
    return "".join(_BARS[round((len(_BARS) - 1) * min(max((value - low) / span, 0), 1))] for value in shown)


def latency_row(old: Latency, new: Latency, ratio: Ratio | None) -> tuple[str, str, str, str]:
    """Two latencies with their middle halves below, and their ratio: dim where it cannot be told apart from 1."""
    share = ""
    if ratio is not None:
        share = f"{ratio.median:.1%}\n{100 * ratio.lower:.0f} – {100 * ratio.upper:.0f}"
        share = f"[dim]{share}[/]" if ratio.lower <= 1 <= ratio.upper else share
    return f"latency, batch {old.shapes[0][0]}", _time(old), _time(new), share


def _table(report: RunReport) -> Table:
    """Dense against small: accuracy, cost, latency."""
    dense, small = report.dense, report.small
    table = Table(title=escape(f"{report.recipe['model']} on {report.data['name']}"), title_justify="left")
    for name in ("", "dense", "small", "of dense"):
        table.add_column(name, justify="right" if name else "left")
    before, after = accuracies(report)
    table.add_row("test accuracy", "–" if before is None else f"{before:.2%}", f"{after:.2%}", "")
    for name, first, second in (("MACs", dense.macs, small.macs), ("parameters", dense.params, small.params)):
        table.add_row(name, f"{first:,}", f"{second:,}", f"{second / first:.1%}")
    sizes = (f"{one.memory / 2**10:,.0f} KiB" for one in (dense, small))
    table.add_row("memory", *sizes, f"{small.memory / dense.memory:.1%}")
    for number, (old, new) in enumerate(zip(dense.latency, small.latency, strict=True)):
        table.add_row(*latency_row(old, new, report.ratios[number] if report.ratios else None))
    return table


def _curves(report: RunReport) -> Iterator[str]:
    accuracy = [entry["accuracy"] for entry in report.history]
    yield f"accuracy   {sparkline(accuracy, min(accuracy), max(accuracy))}  {accuracy[-1]:.1%}"
    macs = [entry["macs_left"] for entry in report.history]
    yield f"MACs left  {sparkline(macs, 0.0, 1.0)}  {macs[-1]:.0%}"


def _notes(report: RunReport) -> Iterator[str]:
    yield (
        f"The cut is exact: max. difference {report.check['deviation']:.1e} (relative). {percent(report.coverage)} of "
        f"the parameters are prunable. Trained in {report.seconds:.0f} s on {report.versions['device']}."
    )
    recipe = Recipe(**report.recipe)
    periods = recipe.schedule(int(report.history[-1]["step"])).periods
    if recipe.method != NO_METHOD and periods < recipe.periods:
        yield f"Units left in {counted(periods, 'portion')}, not {recipe.periods}: there were few optimizer steps."
    if report.baseline is not None:
        yield f"Dense accuracy: of the same training without pruning ({report.baseline.seconds:.0f} s)."
    elif recipe.method != NO_METHOD:
        yield "The accuracy of the dense network was not measured; --baseline trains it, too."


def _time(one: Latency) -> str:
    low, middle, high = (time / 1e3 for time in (one.lower_us, one.median_us, one.upper_us))
    return f"{middle:.2f} ms\n{low:.2f} – {high:.2f}"
