"""The reasons for pins, with the lines of source that cause them, as HTML."""

from __future__ import annotations

from html import escape

from niwaki.core.describe import counted, percent
from niwaki.report.drawing import Drawing

_LINES = 4


def pins_html(drawing: Drawing) -> str:
    """A list of the reasons, those that hold back the most parameters first; the others are folded."""
    total = sum(block.params for block in drawing.blocks)
    costly: list[str] = []
    free: list[str] = []
    for number, reason in enumerate(drawing.reasons):
        more = [f"and {len(reason.lines) - _LINES} more lines"] * (len(reason.lines) > _LINES)
        lines = "<br>".join([*(f"<code>{escape(line)}</code>" for line in reason.lines[:_LINES]), *more])
        held = f"{percent(reason.params / total)} of the parameters, " if reason.params and total else ""
        (costly if reason.params else free).append(
            f'<li><span class="chip" style="background:{drawing.colour(number)}"></span>{escape(reason.text)}'
            f'<span class="lines">{held}{counted(reason.positions, "position")}, for example '
            f"<code>{escape(reason.first)}</code>{'<br>' if lines else ''}{lines}</span></li>"
        )
    if not drawing.reasons:
        return "<p>Nothing is pinned.</p>"
    out = f'<ul class="pins">{"".join(costly)}</ul>' if costly else ""
    if free:
        what = f"{counted(len(free), 'more reason')}, without which no more parameters could be removed"
        out += f'<details><summary>{what}</summary><ul class="pins">{"".join(free)}</ul></details>'
    return out
