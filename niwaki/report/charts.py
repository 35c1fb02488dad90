"""Line charts as inline SVG: small, side by side, with axes that say what they leave out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = tuple[tuple[float, float], ...]

_WIDTH, _HEIGHT = 320, 190  # of the drawing, in pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 52, 14, 26  # margins around the data


@dataclass(frozen=True, slots=True)
class Chart:
    """A quantity over the training. ``points``: of the pruned network, ``dense``: of the baseline, if there is one;
    each ``(step, value)``. ``format``, ``tick_format``: a value as text, and a round one of the
    axis. ``low``, ``high``: the ends of the axis; where None, those of the data."""

    title: str
    points: Points
    format: Callable[[float], str]
    tick_format: Callable[[float], str] = "{:g}".format
    dense: Points = ()
    low: float | None = None
    high: float | None = None


def chart_svg(chart: Chart, unit: str = "step", pruning: tuple[float, float] | None = None) -> str:
    """The chart; ``unit``: what the horizontal axis counts; ``pruning``: the interval in which units leave, shaded.

    >>> drawn = chart_svg(Chart("loss", ((1, 2.0), (2, 1.0)), "{:.1f}".format, low=0.0))
    >>> drawn.count("<polyline"), ">1.0</text>" in drawn
    (1, True)
    """
    every = [*chart.points, *chart.dense]
    xs, ys = [x for x, _ in every], [y for _, y in every]
    low, high = (end if end is not None else value for end, value in ((chart.low, min(ys)), (chart.high, max(ys))))
    ticks = nice_ticks(low, high)
    low, high = (
        (min(low, ticks[0]) if chart.low is None else low),
        (max(high, ticks[-1]) if chart.high is None else high),
    )
    last = max(xs)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across, up = point[0] / (last or 1), (point[1] - low) / ((high - low) or 1)
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    out = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(chart.title)}">']
    if pruning is not None:
        left, right = at((pruning[0], low))[0], at((min(pruning[1], last), low))[0]
        out.append(
            f'<rect class="shade" x="{left}" y="{_TOP}" width="{max(right - left, 1):.1f}" '
            f'height="{_HEIGHT - _TOP - _BOTTOM}"><title>units leave here</title></rect>'
        )
    for tick in ticks:
        y = at((0, tick))[1]
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        out.append(f'<text class="soft end" x="{_LEFT - 6}" y="{y + 3.5}">{escape(chart.tick_format(tick))}</text>')
    for value, where in ((0, "start"), (last, "end")):
        words = f"{unit} {value:,.0f}" if value else "0"
        out.append(f'<text class="soft {where}" x="{at((value, low))[0]}" y="{_HEIGHT - 8}">{words}</text>')
    if chart.dense:
        out += _line(chart.dense, at, "dense", chart.format, "without pruning")
    out += _line(chart.points, at, "kept", chart.format, chart.title)
    out += _ends(chart, at)
    return "".join([*out, "</svg>"])


def nice_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers from below ``low`` to above ``high``.

    >>> nice_ticks(0.12, 0.98), nice_ticks(0, 1), nice_ticks(0.0, 2.31)
    ([0.0, 0.5, 1.0], [0.0, 0.5, 1.0], [0.0, 1.0, 2.0, 3.0])
    """
    span = (high - low) or abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / most))  # the span is `most` to 10 * `most` of these
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10, 20) if span / (size * factor) <= most - 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _line(
    points: Points,
    at: Callable[[tuple[float, float]], tuple[float, float]],
    kind: str,
    format: Callable[[float], str],
    name: str,
) -> list[str]:
    path = " ".join(f"{x},{y}" for x, y in map(at, points))
    dots = (
        f'<circle class="spot {kind}" cx="{at(point)[0]}" cy="{at(point)[1]}" r="5">'
        f"<title>{escape(name)}: {escape(format(point[1]))} at {point[0]:,.0f}</title></circle>"
        for point in points
    )
    return [f'<polyline class="{kind}" points="{path}"/>', *dots]


def _ends(chart: Chart, at: Callable[[tuple[float, float]], tuple[float, float]]) -> list[str]:
    """The last values beside the ends of the lines, moved apart where they would overlap."""
    ends: list[tuple[str, Points]] = [("kept", chart.points), *([("dense", chart.dense)] if chart.dense else [])]
    placed = [(kind, *at(points[-1]), chart.format(points[-1][1])) for kind, points in ends]
    heights = [y for _, _, y, _ in placed]
    if len(heights) == 2 and abs(heights[0] - heights[1]) < 13:
        middle, above = sum(heights) / 2, heights[0] < heights[1]
        heights = [middle - 6.5, middle + 6.5] if above else [middle + 6.5, middle - 6.5]
    out = []
    for (kind, x, y, text), height in zip(placed, heights, strict=True):
        out.append(f'<circle class="last {kind}" cx="{x}" cy="{y}" r="2.6"/>')
        out.append(f'<text class="value {kind}" x="{x + 6}" y="{height + 4:.1f}">{escape(text)}</text>')
    return out


def series(history: Sequence[Mapping[str, float]], name: str, unit: str) -> Points:
    """The points ``(entry[unit], entry[name])`` of the entries that have both."""
    return tuple((float(entry[unit]), float(entry[name])) for entry in history if name in entry and unit in entry)
