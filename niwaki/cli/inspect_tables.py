"""The tables that `niwaki inspect` prints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from niwaki.core.cost import Cost
from niwaki.core.describe import counted, percent
from niwaki.report.inspection import Inspection

_MOST_GROUPS = 20
_MOST_REASONS = 40
_MOST_LINES = 3
_NUMBER = re.compile(r"(?<![^._])\d+(?![^._])")  # a whole part of a name, as in encoder_layer_0.mlp


def inspection_tables(found: Inspection) -> Iterator[RenderableType]:
    """The tables of an inspection: groups, costs, pins, whether cuts are exact, and notes."""
    yield from _groups(found)
    yield from _predictions(found)
    if found.reasons:
        yield from _reasons(found)
    if found.structures:
        yield from _structures(found)
    if found.law is not None:
        yield Text(found.law.verdict if found.law.holds else f"NOT EXACT. {found.law.verdict}")
        if any(group.inexact for group in found.groups):
            yield Text("Only the exact units were checked: cuts of inexact ones change the result.")
    for note in found.notes:
        yield Text(f"Note: {note}")


def _groups(found: Inspection) -> Iterator[RenderableType]:
    """The groups, by the parameters that they reach; groups that differ only in the number of a layer share a row."""
    yield Text(
        f"{found.model}: {found.units:,} units in {counted(len(found.groups), 'group')}; {percent(found.coverage)} of "
        f"the parameters lie in at least one unit (analysed in {found.seconds:.1f} s)"
    )
    table = Table()
    table.add_column("group", overflow="fold")
    table.add_column("units", justify="right")
    table.add_column("unit type")
    table.add_column("parameters", justify="right")
    table.add_column("tensors", justify="right")
    rows: dict[tuple[str, int, str, int, int], list[str]] = {}
    inexact = any(group.inexact for group in found.groups)
    for group in found.groups:
        kind = f"{group.kind}, inexact" if group.inexact else group.kind
        key = (_NUMBER.sub("*", group.name), group.units, kind, group.params, len(group.tensors))
        rows.setdefault(key, []).append(group.name)
    for (pattern, units, kind, params, tensors), names in list(rows.items())[:_MOST_GROUPS]:
        name = names[0] if len(names) == 1 else f"{len(names)} x {pattern}"
        table.add_row(escape(name), f"{units:,}", kind, f"{params:,}", f"{tensors:,}")
    more = f"... and {sum(map(len, list(rows.values())[_MOST_GROUPS:]))} smaller groups. " * (len(rows) > _MOST_GROUPS)
    caption = f"{more}parameters: those in the units of a group; a weight between two groups is in both."
    caption += " inexact: removing such a unit changes the result although it is zero." * inexact
    yield table
    yield Text(caption)


def _predictions(found: Inspection) -> Iterator[RenderableType]:
    """The cost of the network at several budgets; accuracy is not predicted."""
    yield Text(f"\nPredicted cost, for {found.inputs}")
    table = Table()
    for heading in ("MACs to keep", "MACs", "fraction", "parameters", "fraction"):
        table.add_column(heading, justify="right")
    table.add_row("dense", *_cost(found.dense, found.dense))
    for prediction in found.predictions:
        if prediction.cost is None:
            table.add_row(f"{prediction.keep_macs:.0%}", escape(prediction.problem or ""), "", "", "")
        else:
            table.add_row(f"{prediction.keep_macs:.0%}", *_cost(prediction.cost, found.dense))
    table.add_row("minimum", *_cost(found.least, found.dense))
    caption = (
        f"Units chosen by {found.criterion}, on random weights: this predicts the cost of a cut, not its accuracy. "
        "minimum: the fewest possible units in every group."
    )
    yield table
    yield Text(caption)


def _cost(cost: Cost, dense: Cost) -> tuple[str, str, str, str]:
    return (
        f"{cost.macs:,}",
        f"{cost.macs / max(dense.macs, 1):.1%}",
        f"{cost.params:,}",
        f"{cost.params / max(dense.params, 1):.1%}",
    )


def _structures(found: Inspection) -> Iterator[RenderableType]:
    """The structures that can be erased, the most expensive first, and how many cannot for each reason."""
    erasable = sorted((one for one in found.structures if one.erasable), key=lambda one: (-one.macs, -one.params))
    yield Text(f"\nStructures: {len(erasable)} of {len(found.structures)} can be erased, each by itself")
    table = Table()
    table.add_column("structure", overflow="fold")
    table.add_column("MACs", justify="right")
    table.add_column("params", justify="right")
    table.add_column("added at", overflow="fold")
    rows: dict[tuple[str, int, int, str], list[str]] = {}
    for one in erasable:
        key = (_NUMBER.sub("*", one.name), one.macs, one.params, one.location.brief)
        rows.setdefault(key, []).append(one.name)
    for (pattern, macs, params, where), names in list(rows.items())[:_MOST_GROUPS]:
        name = names[0] if len(names) == 1 else f"{len(names)} x {pattern}"
        table.add_row(escape(name), f"{macs:,}", f"{params:,}", escape(where))
    yield table
    more = sum(map(len, list(rows.values())[_MOST_GROUPS:]))
    if more:
        yield Text(f"... and {more} smaller ones.")
    for reason, number in Counter(one.refused for one in found.structures if one.refused).most_common(_MOST_REASONS):
        yield Text(f"{number} cannot: {reason}")


def _reasons(found: Inspection) -> Iterator[RenderableType]:
    """The reasons for pins, and the fraction of the parameters that each of them holds back."""
    yield Text(f"\nPinned, for {len(found.reasons)} reasons")
    table = Table()
    table.add_column("params held back", justify="right")
    table.add_column("entries", justify="right")
    for heading in ("reason", "where", "example"):
        table.add_column(heading, overflow="fold")
    for reason in found.reasons[:_MOST_REASONS]:
        more = [f"and {len(reason.lines) - _MOST_LINES} more lines"] * (len(reason.lines) > _MOST_LINES)
        table.add_row(
            f"{reason.params / max(found.dense.params, 1):.1%}",
            f"{reason.positions:,}",
            escape(reason.text),
            escape("\n".join([*reason.lines[:_MOST_LINES], *more])),
            escape(reason.first),
        )
    more_reasons = f"... and {len(found.reasons) - _MOST_REASONS} more reasons. " * (len(found.reasons) > _MOST_REASONS)
    caption = (
        f"{more_reasons}params held back: the fraction of the parameters that lie in no unit because of it. A "
        "parameter can be held back by several reasons, one in each of its dimensions."
    )
    yield table
    yield Text(caption)
