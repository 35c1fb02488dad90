"""The picture of the README: accuracy over MACs as a small SVG, legible on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.summary import Summary, summaries

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 56, 52  # margins
ARMS = {  # what is drawn: its name in the picture and its style
    "hesso": ("HESSO, while training", "main"),
    "magnitude": ("by magnitude, then train on", "other"),
    "narrow": ("narrow from the start", "other dashed"),
    "random": ("at random, then train on", "other dotted"),
    "taylor1": ("by Taylor, then train on", "other thin"),
}
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f } .title { font-weight: 600; font-size: 15px }
.axis { stroke: #8c959f; stroke-width: 1 } .grid { stroke: #8c959f; stroke-opacity: .25 } path { fill: none }
.main { stroke: #1a7f37; stroke-width: 3 } .other { stroke: #57606a; stroke-width: 1.5 } .thin { stroke-opacity: .6 }
.dashed { stroke-dasharray: 7 4 } .dotted { stroke-dasharray: 2 4 } .of-main { fill: #1a7f37; font-weight: 600 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .main { stroke: #3fb950 } .of-main { fill: #3fb950 } .other { stroke: #9ea7b3 }
}
"""


def chart(rows: Sequence[Row], task: str, moment: float, path: Path) -> Path:
    """Write the mean test accuracies of a task's arms at each budget, whose pruning ends at ``moment`` of the training,
    as lines to the dense network; a bar reaches from the lowest seed to the highest.

    Raises:
        SystemExit: the dense network or everything else has no row.
    """
    every = [one for one in summaries(rows) if (one.first.task, one.first.limited) == (task, "macs")]
    dense = next((one for one in every if one.first.arm == "dense"), None)
    drawn = {
        arm: [*mine, dense]
        for arm in ARMS
        if (mine := [one for one in every if one.first.arm == arm and one.first.moment in (0.0, moment)])
    }
    if dense is None or not drawn:
        raise SystemExit(f"There are no rows of the dense network of {task}, or of no other arm.")
    values = [value for line in drawn.values() for one in line for value in one.values()]
    low, high = min(values) - 0.15, max(values) + 0.15

    def x(one: Summary) -> float:
        return LEFT + one.average("macs") * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(task)}: test accuracy over the share of multiply-accumulates that is kept</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="22">{escape(task)}: test accuracy in %, over the MACs that are kept</text>',
    ]
    for percent in (20, 40, 60, 80, 100):
        at = LEFT + percent / 100 * (WIDTH - LEFT - RIGHT)
        out.append(f'<text x="{at:.0f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{percent} %</text>')
    for tenths in range(int(low * 2) * 5 + 5, int(high * 10) + 1, 5):
        at = y(tenths / 10)
        out.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tenths / 10:.1f}</text>')
    out.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    for number, (arm, line) in reversed(list(enumerate(drawn.items()))):  # the first lies on top
        kind = ARMS[arm][1]
        ends = [(x(one) + 3 * number * (one is not dense), one) for one in line]  # bars beside one another
        points = sorted((at, y(one.mean()), y(max(one.values())), y(min(one.values()))) for at, one in ends)
        out.append(f'<path class="{kind}" d="M' + "L".join(f"{a:.1f} {b:.1f}" for a, b, _, _ in points) + '"/>')
        out += [f'<path class="{kind}" d="M{a:.1f} {top:.1f}V{end:.1f}"/>' for a, _, top, end in points if top != end]
    out.append(f'<text x="{x(dense) - 6:.0f}" y="{y(dense.mean()) - 10:.0f}" text-anchor="end">dense</text>')
    out += _legend(list(drawn))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*out, "</svg>", ""]))
    return path


def _legend(arms: Sequence[str]) -> list[str]:
    out = []
    for number, arm in enumerate(arms):
        name, kind = ARMS[arm]
        left, at = WIDTH - RIGHT - 230, HEIGHT - BOTTOM - 22 * (len(arms) - number) + 4
        out.append(f'<path class="{kind}" d="M{left} {at - 4}h34"/>')
        of_main = ' class="of-main"' if kind == "main" else ""
        out.append(f'<text{of_main} x="{left + 44}" y="{at}">{escape(name)}</text>')
    return out
