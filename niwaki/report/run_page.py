"""The page of a pruned network: one HTML file that needs no other, no script and no network."""

from __future__ import annotations

from html import escape

from niwaki.core.describe import counted
from niwaki.performance.measure import Latency, Ratio
from niwaki.report.charts import chart_svg
from niwaki.report.content import Kept, Measured, PageContent, Row
from niwaki.report.map_svg import legend, map_svg
from niwaki.report.pins import pins_html
from niwaki.report.style import document, lede

_MOST_BARS = 60


def run_page(content: PageContent) -> str:
    """The page: headline, figures, the training, what was kept, the map, pins, and how to load the network."""
    parts = [
        f"<header><h1>{escape(content.title)}</h1>",
        lede(content.headline),
        f'<p class="soft small">{escape(content.about)}</p></header>',
        _figures(content),
        _training(content),
        _bars(content.kept),
        _map(content),
        _load(content),
        _details(content),
        "<footer>Made by niwaki. This file needs no other.</footer>",
    ]
    return document(escape(f"{content.title}: {content.headline}"), "\n".join(filter(None, parts)))


def _figures(content: PageContent) -> str:
    rows = [_row(row) for row in content.rows] + [_latency(one) for one in content.measured]
    notes = "".join(f'<p class="soft small">{escape(note)}</p>' for note in content.notes)
    small = "".join(f'<th class="number">{name}</th>' for name in ("dense", "small", "of dense"))
    about = ""
    if content.measured:
        one = content.measured[0].dense
        about = (
            f'<p class="soft small">Latency: the median of {one.rounds:,} and more forward passes, and under it the '
            "middle half; both networks took turns. A fraction in grey could not be told apart from 1. "
            f"{escape(one.device)}, {counted(one.threads, 'thread')}, {escape(one.dtype)}.</p>"
        )
    return f"<section><table><tr><th></th>{small}</tr>{''.join(rows)}</table>{about}{notes}</section>"


def _row(row: Row) -> str:
    cells = (f'<td class="number">{escape(text)}</td>' for text in (row.dense, row.small, row.left))
    return f"<tr><td>{escape(row.name)}</td>{''.join(cells)}</tr>"


def _latency(one: Measured) -> str:
    left = ""
    if one.ratio is not None:
        same = ' class="number same"' if one.ratio.lower <= 1 <= one.ratio.upper else ' class="number"'
        left = f"<td{same}>{_ratio(one.ratio)}</td>"
    batch = one.dense.shapes[0][0] if one.dense.shapes and one.dense.shapes[0] else 1
    name = f"latency, {counted(batch, 'input')} at once" if batch > 1 else "latency, one input"
    return f"<tr><td>{name}</td>{_time(one.dense)}{_time(one.small)}{left or '<td></td>'}</tr>"


def _time(one: Latency) -> str:
    low, high = _milliseconds(one.lower_us), _milliseconds(one.upper_us)
    return f'<td class="number">{_milliseconds(one.median_us)} ms<small>{low} – {high}</small></td>'


def _ratio(ratio: Ratio) -> str:
    return f"{100 * ratio.median:.0f} %<small>{100 * ratio.lower:.0f} – {100 * ratio.upper:.0f}</small>"


def _milliseconds(microseconds: float) -> str:
    value = microseconds / 1000
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1}f}"


def _training(content: PageContent) -> str:
    if not content.charts:
        return ""
    figures = "".join(
        f"<figure><h3>{escape(chart.title)}</h3>{chart_svg(chart, content.unit, content.pruning)}</figure>"
        for chart in content.charts
    )
    told = ["Shaded: the steps in which units leave."] if content.pruning else []
    told += ["Dashed: the same training without pruning."] if any(chart.dense for chart in content.charts) else []
    about = f'<p class="soft">{" ".join(told)}</p>' if told else ""
    return f'<section><h2>The training</h2>{about}<div class="charts">{figures}</div></section>'


def _bars(kept: tuple[Kept, ...]) -> str:
    if not kept:
        return ""
    most = max(one.units for one in kept)
    shown, folded = kept[:_MOST_BARS], kept[_MOST_BARS:]
    left, units = sum(one.kept for one in kept), sum(one.units for one in kept)
    more = ""
    if folded:
        rest = "".join(_bar(one, most) for one in folded)
        more = (
            f'<details><summary>{counted(len(folded), "more group")}</summary><div class="bars">{rest}</div></details>'
        )
    return (
        f'<section><h2>What was kept</h2><p class="soft">{left:,} of {units:,} units in '
        f"{counted(len(kept), 'group')}, in the order of the network. The faint bar is the dense width.</p>"
        f'<div class="bars">{"".join(_bar(one, most) for one in shown)}</div>{more}</section>'
    )


def _bar(one: Kept, most: int) -> str:
    bars = "".join(
        f'<i class="{kind}" style="width:{100 * count / most:.2f}%"></i>'
        for kind, count in (("all", one.units), ("left", one.kept))
    )
    return (
        f'<div class="bar"><code>{escape(one.name)}</code><div class="track" title="{escape(one.kind)}">{bars}</div>'
        f'<span class="number">{one.kept:,} <span class="soft">of {one.units:,}</span></span></div>'
    )


def _map(content: PageContent) -> str:
    drawn = content.map
    if drawn is None:
        return ""
    return (
        f'<section><h2>The map</h2><p class="soft">{legend(drawn)}</p>\n'
        f'<div class="map">\n{map_svg(drawn)}\n</div></section>'
        f"<section><h2>What is pinned, and why</h2>{pins_html(drawn)}</section>"
    )


def _load(content: PageContent) -> str:
    return f"<section><h2>Load it</h2><pre>{escape(content.load)}</pre></section>" if content.load else ""


def _details(content: PageContent) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in content.details.items())
    return f"<details><summary>Settings and versions</summary><dl>{rows}</dl></details>" if rows else ""
