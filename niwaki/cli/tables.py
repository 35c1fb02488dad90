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
    for before_ms, after_ms in zip(dense.latency, small.latency, strict=True):
        ratio = after_ms.median_ms / before_ms.median_ms
        table.add_row(f"latency, batch {before_ms.batch}", str(before_ms), str(after_ms), f"{ratio:.1%}")
    table.caption = (
        f"The cut is exact: it deviates by {report.check['deviation']:.1e} of the largest output. "
        f"{report.coverage:.1%} of the parameters could have left. Trained in {report.seconds:.0f} s on "
        f"{report.versions['device']}."
    )
    table.caption_justify = "left"
    return table
