"""The tables that the commands print."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

import niwaki
from niwaki.core.space import SearchSpace
from niwaki.errors import BudgetError
from niwaki.report import RunReport

_MOST_GROUPS = 20
_MOST_REASONS = 40


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


def groups_table(space: SearchSpace) -> Table:
    """What could leave, largest groups first."""
    table = Table(
        title=f"Search space: {space.num_units} units in {len(space.groups)} groups; {space.coverage:.1%} of the "
        "parameters lie in at least one unit",
        title_justify="left",
    )
    table.add_column("group")
    table.add_column("units", justify="right")
    table.add_column("runs through")
    for group in sorted(space.groups, key=lambda group: -group.units)[:_MOST_GROUPS]:
        tensors = list(dict.fromkeys(piece.tensor for piece in group.slices if piece.parameter))
        more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        table.add_row(escape(group.name), f"{group.units:,}", escape(", ".join(tensors[:3]) + more))
    if len(space.groups) > _MOST_GROUPS:
        table.caption = f"... and {len(space.groups) - _MOST_GROUPS} smaller groups"
    return table


def budgets_table(space: SearchSpace, shares: Sequence[float]) -> Table:
    """What the network would cost at several budgets."""
    dense = space.cost()
    table = Table(title="Predicted cost (units of the least magnitude leave first)", title_justify="left")
    for heading in ("MACs to keep", "MACs", "share", "parameters", "share"):
        table.add_column(heading, justify="right")
    table.add_row("dense", f"{dense.macs:,}", "100.0%", f"{dense.params:,}", "100.0%")
    scores = niwaki.score(space, "magnitude") if space.groups else None
    for share in shares:
        try:
            if scores is None:
                break
            cost = space.cost(niwaki.choose(space, scores, niwaki.Budget(macs=share)))
        except BudgetError:
            table.add_row(f"{share:.0%}", "out of reach", "", "", "")
            continue
        table.add_row(
            f"{share:.0%}",
            f"{cost.macs:,}",
            f"{cost.macs / dense.macs:.1%}",
            f"{cost.params:,}",
            f"{cost.params / dense.params:.1%}",
        )
    return table


def pins_table(space: SearchSpace) -> Table:
    """What can never leave, grouped by reason and source line, most positions first."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for pin in space.pins:
        where = f"{_shortened(pin.location.file)}:{pin.location.line}" if pin.location else ""
        key = (pin.reason, where)
        counts[key] += pin.count
        examples.setdefault(key, f"{pin.parameter} dim {pin.dim}")
    table = Table(title=f"Pinned: {len(space.pins)} dimensions, {len(counts)} reasons", title_justify="left")
    table.add_column("positions", justify="right")
    for heading in ("reason", "where", "first"):
        table.add_column(heading, overflow="fold")
    for (reason, where), count in counts.most_common(_MOST_REASONS):
        table.add_row(f"{count:,}", escape(reason), escape(where), escape(examples[reason, where]))
    if len(counts) > _MOST_REASONS:
        table.caption = f"... and {len(counts) - _MOST_REASONS} more reasons"
    return table


def _shortened(file: str) -> str:
    """A source file as seen from here, or from where packages are installed."""
    _, marker, inside = file.rpartition("site-packages/")
    return inside if marker else os.path.relpath(file) if file.startswith(os.getcwd() + os.sep) else file
