"""The map of a network as inline SVG: modules are rows, groups are lines that stop at them, as on a railway map.

Where a plan is drawn, a line is as thick as what the plan keeps, on a faint one of the dense thickness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from niwaki.report.drawing import Drawing, GroupPath, PathStop, StructurePath

_ROW = 22  # heights and widths in pixels
_TRACK = 16
_CHIP = 14
_MOST_CHIPS = 6
_LETTER = 6.7
_LONGEST = 40  # letters of a name
_PLAIN = 2.5  # the thickness of a line without a plan
_DENSE = 7.0  # and of one of which all is kept


@dataclass(frozen=True, slots=True)
class _Layout:
    """Rows of neighbouring modules, and where the columns begin."""

    rows: tuple[tuple[int, ...], ...]
    chips: float
    tracks: float

    def y(self, block: int) -> int:
        """The height of a module's row."""
        return next(number for number, row in enumerate(self.rows) if block in row) * _ROW + _ROW // 2 + 2


def map_svg(drawing: Drawing) -> str:
    """The map. Neighbouring modules through which nothing runs share a row."""
    rows = _folded(drawing)
    widest = max((len(_name(drawing, row)) + 1 + len(_kind(drawing, row)) for row in rows), default=0)
    most = min(_MOST_CHIPS, max((len(_pins(drawing, row)) for row in rows), default=0))
    names = widest * _LETTER + 12
    layout = _Layout(rows, names, names + most * _CHIP + 18)
    tracks = _tracks([(line.stops[0].block, line.stops[-1].block) for line in drawing.lines])
    dashed = _tracks([(whole.blocks[0], whole.blocks[-1]) for whole in drawing.structures])
    after = max(tracks, default=0) + 1
    right = layout.tracks + (after + max(dashed, default=-1) + 1) * _TRACK
    labels = _labels(drawing, layout)
    longest = max((len(text) for text in labels.values()), default=0)
    width, height = right + 20 + longest * _LETTER, (len(rows) + 1) * _ROW
    out = [
        f'<svg class="map" width="{width:.0f}" height="{height}" role="img" aria-label="modules and groups of units">'
    ]
    for number, row in enumerate(rows):
        out += _row(drawing, number, row, layout, right)
    for number, (line, track) in enumerate(zip(drawing.lines, tracks, strict=True)):
        out.append(_group(line, layout, layout.tracks + track * _TRACK, f"hsl({number * 137.5 % 360:.0f} 45% 52%)"))
    for whole, track in zip(drawing.structures, dashed, strict=True):
        out.append(_whole(whole, layout, layout.tracks + (after + track) * _TRACK))
    out += [f'<text x="{right + 8:.0f}" y="{y + 4}">{escape(text)}</text>' for y, text in labels.items()]
    return "\n".join([*out, "</svg>"])


def legend(drawing: Drawing) -> str:
    """How to read the map, as HTML."""
    thick = any(line.kept is not None for line in drawing.lines)
    parts = [
        "A row is a module, a line is a group: its units are removed at all its stops together. A filled dot computes "
        "the units, a ring reads them, a dot in a ring does both.",
        "A line is as thick as what was kept, on a faint one of the dense thickness." if thick else "",
        "Squares are pins.",
        "A dashed line is a structure that can be erased, with all modules that it stops at."
        * bool(drawing.structures),
        "Point at anything to read more.",
    ]
    return escape(" ".join(filter(None, parts)))


def _folded(drawing: Drawing) -> tuple[tuple[int, ...], ...]:
    """The rows: modules that something stops at have one each, those between them share one."""
    stops = {stop.block for line in drawing.lines for stop in line.stops}
    stops |= {block for whole in drawing.structures for block in whole.blocks}
    rows: list[list[int]] = []
    for block in range(len(drawing.blocks)):
        if block in stops or not rows or rows[-1][-1] in stops:
            rows.append([block])
        else:
            rows[-1].append(block)
    return tuple(map(tuple, rows))


def _name(drawing: Drawing, row: tuple[int, ...]) -> str:
    if len(row) > 1:
        return f"{len(row)} modules"
    return _short(drawing.blocks[row[0]].name or "(the model)", _LONGEST)


def _kind(drawing: Drawing, row: tuple[int, ...]) -> str:
    return _short(drawing.blocks[row[0]].kind, 20) if len(row) == 1 else "without units"


def _pins(drawing: Drawing, row: tuple[int, ...]) -> dict[int, list[str]]:
    """The texts of all pins of a row by the number of their reason; first those that hold back the most parameters."""
    found: dict[int, list[str]] = {}
    for block in row:
        for pinned in drawing.blocks[block].pins:
            found.setdefault(pinned.reason, []).extend(pinned.lines)
    return dict(sorted(found.items()))


def _row(drawing: Drawing, number: int, row: tuple[int, ...], layout: _Layout, right: float) -> list[str]:
    y = number * _ROW + _ROW // 2 + 2
    blocks = [drawing.blocks[block] for block in row]
    about = "\n".join(f"{one.name or '(the model)'}: {one.kind}, {one.params:,} parameters" for one in blocks)
    out = [
        f'<line class="rule" x1="0" x2="{right:.0f}" y1="{y + _ROW / 2}" y2="{y + _ROW / 2}"/>',
        f'<text x="0" y="{y + 4}"><title>{escape(about)}</title>{escape(_name(drawing, row))} '
        f'<tspan class="soft">{escape(_kind(drawing, row))}</tspan></text>',
    ]
    for position, (reason, lines) in enumerate(list(_pins(drawing, row).items())[:_MOST_CHIPS]):
        out.append(
            f'<rect class="pin" x="{layout.chips + _CHIP * position:.0f}" y="{y - 5}" width="10" height="10" rx="2" '
            f'fill="{drawing.colour(reason)}"><title>{escape(chr(10).join(lines))}</title></rect>'
        )
    return out


def _group(line: GroupPath, layout: _Layout, x: float, colour: str) -> str:
    group = line.group
    kept = "" if line.kept is None else f"keeps {line.kept:,} of "
    about = [
        f"{group.name}: {kept}{group.units:,} {group.kind}, {group.params:,} parameters lie in them",
        *group.tensors,
    ]
    if group.inexact is not None:
        about.insert(1, f"inexact: {group.inexact}")
    path = f'd="M{x:.0f} {layout.y(line.stops[0].block)}V{layout.y(line.stops[-1].block)}"'
    width, ghost = _PLAIN, ""
    if line.kept is not None:
        width = max(0.6, _DENSE * line.kept / group.units)
        ghost = f'<path class="ghost" stroke="{colour}" stroke-width="{_DENSE}" {path}/>'
    stops = "".join(_stop(stop, layout, x, colour) for stop in line.stops)
    return (
        f'<g class="group"><title>{escape(chr(10).join(about))}</title>{ghost}'
        f'<path stroke="{colour}" stroke-width="{width:.1f}" {path}/>{stops}</g>'
    )


def _whole(whole: StructurePath, layout: _Layout, x: float) -> str:
    erased = ["erased"] if whole.erased else []
    title = escape("\n".join([whole.about, *erased, *whole.parameters]))
    stops = ""
    for block in whole.blocks:
        half, y = (5 if block in whole.makes else 3), layout.y(block)
        stops += f'<rect x="{x - half:.0f}" y="{y - half}" width="{2 * half}" height="{2 * half}"/>'
    path = f'<path d="M{x:.0f} {layout.y(whole.blocks[0])}V{layout.y(whole.blocks[-1])}"/>'
    return f'<g class="group whole{" gone" * whole.erased}"><title>{title}</title>{path}{stops}</g>'


def _stop(stop: PathStop, layout: _Layout, x: float, colour: str) -> str:
    y = layout.y(stop.block)
    ring = f'<circle class="ring" cx="{x:.0f}" cy="{y}" r="5" stroke="{colour}"/>'
    full = f'<circle cx="{x:.0f}" cy="{y}" r="{3 if stop.reads else 6}" fill="{colour}"/>'
    return (ring if stop.reads else "") + (full if stop.computes else "")


def _labels(drawing: Drawing, layout: _Layout) -> dict[int, str]:
    """The texts beside the rows in which groups begin, by height."""
    labels: dict[int, list[str]] = {}
    for line in drawing.lines:
        kept = "" if line.kept is None else f"{line.kept:,} of "
        text = f"{line.group.name}: {kept}{line.group.units:,} {line.group.kind}"
        labels.setdefault(layout.y(line.stops[0].block), []).append(text)
    return {y: ";  ".join(texts) for y, texts in labels.items()}


def _tracks(lines: Sequence[tuple[int, int]]) -> list[int]:
    """For each line, from its first to its last row and in the order of the first, the first free track."""
    ends: list[int] = []
    tracks = []
    for first, last in lines:
        track = next((track for track, end in enumerate(ends) if end < first), len(ends))
        ends[track : track + 1] = [last]
        tracks.append(track)
    return tracks


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else "…" + text[1 - most :]
