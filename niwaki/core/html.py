"""Values as tables in a notebook: HTML that takes its colours from the page around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from niwaki.core.plan import Plan
    from niwaki.core.space import SearchSpace

_MOST = 40
_CELL = "padding:.15em .9em .15em 0;border:0;border-bottom:1px solid #8884;background:none"


def html_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[object]], notes: Iterable[str] = ()) -> str:
    """A table with a title above and notes below it. Numbers, and texts that begin with a digit, stand to the right.

    >>> html_table("<b>", ["name", "units"], [["conv", 12]]).count("&lt;b&gt;")
    1
    """
    every = [list(row) for row in rows]
    shown, rest = every[:_MOST], every[_MOST:]
    head = "".join(f'<th style="{_CELL};text-align:left;font-weight:500;opacity:.7">{escape(h)}</th>' for h in headings)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in shown)
    below = [*([f"and {len(rest):,} more rows"] if rest else []), *notes]
    told = "".join(f'<div style="opacity:.7;font-size:90%">{escape(note)}</div>' for note in below)
    return (
        f'<div><div style="font-weight:600;white-space:pre-line">{escape(title)}</div>'
        f'<table style="border-collapse:collapse;margin:.4em 0"><tr>{head}</tr>{body}</table>{told}</div>'
    )


def bar_of(share: float) -> str:
    """A fraction as a bar of eight letters, which needs no style.

    >>> bar_of(0.5), bar_of(1.0)
    ('████░░░░', '████████')
    """
    full = round(8 * share)
    return "█" * full + "░" * (8 - full)


def plan_html(plan: Plan) -> str:
    """What a plan costs, and what it keeps of each group."""
    about = str(plan).splitlines()
    costs = [line.strip() for line in about[1:] if " -> " in line]
    rows = [
        (name, len(kept), plan.units[name], bar_of(len(kept) / max(plan.units[name], 1)))
        for name, kept in plan.kept.items()
    ]
    return html_table(about[0], ("group", "keeps", "of", ""), rows, costs)


def space_html(space: SearchSpace) -> str:
    """The groups of a search space, what it costs, and the most frequent reasons for pins."""
    about = str(space).splitlines()
    groups = [
        (group.name, group.units, len({piece.tensor for piece in group.slices}), group.inexact or "")
        for group in space.width_groups
    ]
    reasons: dict[str, list[str]] = {}
    for pin in space.pins:
        reasons.setdefault(pin.reason, []).append(f"{pin.parameter} dim {pin.dim}")
    pins = [(reason, len(found), found[0]) for reason, found in sorted(reasons.items(), key=lambda item: -len(item[1]))]
    first = html_table(about[0], ("group", "units", "tensors", ""), groups, [line.strip() for line in about[1:3]])
    second = html_table("Pinned", ("reason", "dimensions", "for example"), pins) if pins else ""
    return first + second


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    side = "right" if text[:1].isdigit() and " " not in text else "left"
    return f'<td style="{_CELL};text-align:{side}">{escape(text)}</td>'
