"""The table that `niwaki train` prints."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from niwaki.report import RunReport


def report_table(report: RunReport) -> Table:
    """Dense against small: accuracy, cost, latency, and whether the cut is exact."""
    dense, small = report.dense, report.small
    table = Table(title=escape(f"{report.recipe['model']} on {report.data['name']}"), title_justify="left")
    table.add_column("")
    table.add_column("before the cut", justify="right")
    table.add_column("after", justify="right")
    table.add_column("ratio", justify="right")
    table.add_row("test accuracy", f"{dense.accuracy:.2%}", f"{small.accuracy:.2%}", "")
    for name, before, after in (("MACs", dense.macs, small.macs), ("parameters", dense.params, small.params)):
        table.add_row(name, f"{before:,}", f"{after:,}", f"{after / before:.1%}")
    table.add_row(
        "memory",
        f"{dense.memory / 2**10:,.0f} KiB",
        f"{small.memory / 2**10:,.0f} KiB",
        f"{small.memory / dense.memory:.1%}",
    )
    for old, new in zip(dense.latency, small.latency, strict=True):
        before_us, after_us = old.median_us, new.median_us
        times = (f"{time / 1e3:.2f} ms" for time in (before_us, after_us))
        table.add_row(f"latency, batch {old.shapes[0][0]}", *times, f"{after_us / before_us:.1%}")
    table.caption = (
        f"The cut is exact: max. difference {report.check['deviation']:.1e} (relative). "
        f"{report.coverage:.1%} of the parameters are prunable. Trained in {report.seconds:.0f} s on "
        f"{report.versions['device']}."
    )
    table.caption_justify = "left"
    return table
