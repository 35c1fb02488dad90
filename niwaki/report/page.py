"""Write a drawing as one HTML page without other files: no script, no style sheet, no font.

Modules are rows, groups are lines that stop at the modules they run through, as on a railway map. Structures that can
be erased are dashed lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from niwaki.report.drawing import Drawing, GroupPath, ModuleNode, PathStop, StructurePath, form

_ROW = 22  # heights and widths in pixels
_TRACK = 16
_NAMES = 430
_CHIPS = 110
_LETTER = 6.7

_STYLE = """
:root { color-scheme: light dark; --ink: #111827; --soft: #6b7280; --rule: #e5e7eb; --paper: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --soft: #9ca3af; --rule: #374151; --paper: #111827; }
}
body { font: 14px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem; }
h1 { font-size: 1.3rem; margin: 0; } p { margin: .3rem 0; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--rule); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code, svg text { font-family: ui-monospace, monospace; font-size: 11px; }
.chip { display: inline-block; width: .8em; height: .8em; border-radius: 2px; }
.map { overflow-x: auto; }
svg text { fill: var(--ink); } svg .soft { fill: var(--soft); } svg .rule { stroke: var(--rule); }
.group path { fill: none; stroke-width: 2.5; } .group .ring { fill: var(--paper); stroke-width: 2.5; }
.whole path { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 4 3; } .whole rect { fill: var(--soft); }
.group:hover path { stroke-width: 5; } svg:has(.group:hover) .group:not(:hover) { opacity: .15; }
"""


@form(".html")
def html_page(drawing: Drawing) -> str:
    """A page with a summary, the reasons for pins, and the map."""
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{escape(drawing.title)}</title><style>{_STYLE}</style></head>
<body>
<h1>{escape(drawing.title)}</h1>
<p>{escape(drawing.summary)}</p>
<p>A row is a module, a line is a group: its units are removed at all its stops together. A filled dot
computes the units, a ring reads them, a dot in a ring does both. Squares are pins.{_of_structures(drawing)} Point at
anything to read more.</p>
{_reasons(drawing)}
<div class="map">
{_map(drawing)}
</div>
</body>
</html>
"""


def _of_structures(drawing: Drawing) -> str:
    if not drawing.structures:
        return ""
    return " A dashed line is a structure that can be erased, with all modules that it stops at."


def _reasons(drawing: Drawing) -> str:
    rows = [
        f'<tr><td><span class="chip" style="background:{drawing.colour(number)}"></span></td>'
        f"<td>{escape(reason.text)}</td><td>{'<br>'.join(f'<code>{escape(line)}</code>' for line in reason.lines)}</td>"
        f'<td class="number">{reason.positions:,}</td><td class="number">{reason.params:,}</td></tr>'
        for number, reason in enumerate(drawing.reasons)
    ]
    if not rows:
        return "<p>Nothing is pinned.</p>"
    head = '<tr><th></th><th>pinned because</th><th>where</th><th class="number">positions</th>'
    return f'<table>{head}<th class="number">parameters held back</th></tr>{"".join(rows)}</table>'


def _map(drawing: Drawing) -> str:
    tracks = _tracks([(line.stops[0].block, line.stops[-1].block) for line in drawing.lines])
    dashed = _tracks([(whole.blocks[0], whole.blocks[-1]) for whole in drawing.structures])
    after = max(tracks, default=0) + 1
    right = _NAMES + _CHIPS + (after + max(dashed, default=-1) + 1) * _TRACK
    labels = _labels(drawing)
    longest = max((len(text) for text in labels.values()), default=0)
    width, height = right + 20 + longest * _LETTER, (len(drawing.blocks) + 1) * _ROW
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" role="img">']
    for number, block in enumerate(drawing.blocks):
        out += _row(drawing, number, block, right)
    for number, (line, track) in enumerate(zip(drawing.lines, tracks, strict=True)):
        out.append(_group(line, _NAMES + _CHIPS + track * _TRACK, f"hsl({number * 137.5 % 360:.0f} 65% 48%)"))
    for whole, track in zip(drawing.structures, dashed, strict=True):
        out.append(_whole(whole, _NAMES + _CHIPS + (after + track) * _TRACK))
    out += [f'<text x="{right + 8}" y="{_y(block) + 4}">{escape(text)}</text>' for block, text in labels.items()]
    return "\n".join([*out, "</svg>"])


def _row(drawing: Drawing, number: int, block: ModuleNode, right: int) -> list[str]:
    y = _y(number)
    name = block.name or "(the model)"
    about = f"{name}: {block.kind}, {block.params:,} parameters"
    out = [
        f'<line class="rule" x1="0" x2="{right}" y1="{y + _ROW / 2}" y2="{y + _ROW / 2}"/>',
        f'<text x="0" y="{y + 4}"><title>{escape(about)}</title>{escape(_short(name, 40))} '
        f'<tspan class="soft">{escape(_short(block.kind, 20))}</tspan></text>',
    ]
    for position, pinned in enumerate(block.pins):
        x = _NAMES + 14 * position
        if x > _NAMES + _CHIPS - 24:
            break  # the squares to the left are those of the reasons that hold back the most parameters
        text = "\n".join(pinned.lines)
        out.append(
            f'<rect class="pin" x="{x}" y="{y - 5}" width="10" height="10" rx="2" '
            f'fill="{drawing.colour(pinned.reason)}"><title>{escape(text)}</title></rect>'
        )
    return out


def _group(line: GroupPath, x: int, colour: str) -> str:
    group = line.group
    about = [f"{group.name}: {group.units:,} {group.kind}, {group.params:,} parameters lie in them", *group.tensors]
    if group.inexact is not None:
        about.insert(1, f"inexact: {group.inexact}")
    title = escape("\n".join(about))
    top, bottom = _y(line.stops[0].block), _y(line.stops[-1].block)
    stops = "".join(_stop(stop, x, colour) for stop in line.stops)
    return f'<g class="group"><title>{title}</title><path stroke="{colour}" d="M{x} {top}V{bottom}"/>{stops}</g>'


def _whole(whole: StructurePath, x: int) -> str:
    title = escape("\n".join([whole.about, *whole.parameters]))
    top, bottom = _y(whole.blocks[0]), _y(whole.blocks[-1])
    stops = ""
    for block in whole.blocks:
        half = 5 if block in whole.makes else 3
        stops += f'<rect x="{x - half}" y="{_y(block) - half}" width="{2 * half}" height="{2 * half}"/>'
    return f'<g class="group whole"><title>{title}</title><path d="M{x} {top}V{bottom}"/>{stops}</g>'


def _stop(stop: PathStop, x: int, colour: str) -> str:
    y = _y(stop.block)
    ring = f'<circle class="ring" cx="{x}" cy="{y}" r="5" stroke="{colour}"/>'
    full = f'<circle cx="{x}" cy="{y}" r="{3 if stop.reads else 6}" fill="{colour}"/>'
    return (ring if stop.reads else "") + (full if stop.computes else "")


def _labels(drawing: Drawing) -> dict[int, str]:
    """The texts beside the rows in which groups begin."""
    labels: dict[int, list[str]] = {}
    for line in drawing.lines:
        labels.setdefault(line.stops[0].block, []).append(f"{line.group.name}: {line.group.units:,} {line.group.kind}")
    return {block: ";  ".join(texts) for block, texts in labels.items()}


def _tracks(lines: Sequence[tuple[int, int]]) -> list[int]:
    """For each line, from its first to its last row and in the order of the first, the first free track."""
    ends: list[int] = []
    tracks = []
    for first, last in lines:
        track = next((track for track, end in enumerate(ends) if end < first), len(ends))
        ends[track : track + 1] = [last]
        tracks.append(track)
    return tracks


def _y(block: int) -> int:
    return block * _ROW + _ROW // 2 + 2


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else "…" + text[1 - most :]
