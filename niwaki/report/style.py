"""The look of all pages: two colour schemes, one type scale, nothing that is loaded from elsewhere."""

from __future__ import annotations

from html import escape

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --card: #f5f5f0; --ink: #1c2421; --soft: #66706b; --rule: #e2e4de;
  --kept: #2e7d4f; --kept-faint: #2e7d4f24; --dense: #a3aaa5; --shade: #2e7d4f12;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #121714; --card: #1a211d; --ink: #e6ebe7; --soft: #96a29b; --rule: #2b342f;
    --kept: #6cc08b; --kept-faint: #6cc08b2b; --dense: #6d7872; --shade: #6cc08b14;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 3rem 1.5rem 4rem; max-width: 64rem; color: var(--ink); background: var(--paper);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.05rem; font-weight: 600; margin: 0 0 .9rem; letter-spacing: .01em; color: var(--soft); }
h2 { font-size: 1.05rem; font-weight: 650; margin: 3.2rem 0 .2rem; letter-spacing: -.005em; }
h3 { font-size: .85rem; font-weight: 600; margin: 0 0 .2rem; }
p { margin: .3rem 0; max-width: 46rem; } p.soft, .soft { color: var(--soft); } small, .small { font-size: .85rem; }
.lede { font-size: clamp(1.45rem, 4.2vw, 2.1rem); line-height: 1.22; font-weight: 600; letter-spacing: -.018em;
  margin: 0 0 .8rem; max-width: 40rem; text-wrap: balance; }
code, pre, svg.map text { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .86em; overflow-wrap: anywhere; }
pre { background: var(--card); border-radius: 8px; padding: .9rem 1.1rem; overflow-x: auto; font-size: .84rem;
  line-height: 1.6; margin: .7rem 0; }
table { border-collapse: collapse; width: 100%; margin: .8rem 0 .4rem; }
th, td { text-align: left; vertical-align: baseline; padding: .5rem 1rem .5rem 0;
  border-bottom: 1px solid var(--rule); }
th { font-size: .8rem; font-weight: 500; color: var(--soft); padding-bottom: .35rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td small { display: block; color: var(--soft); font-size: .76rem; white-space: nowrap; }
td.same { color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1.6rem 1.2rem;
  margin: 1.1rem 0 .4rem; }
figure { margin: 0; } svg { display: block; }
svg.chart { width: 100%; height: auto; overflow: visible; } svg text { fill: var(--ink); font-size: 11px; }
svg.chart text { font-family: inherit; font-variant-numeric: tabular-nums; } svg .soft { fill: var(--soft); }
svg text.end { text-anchor: end; } svg text.value { font-weight: 600; } svg text.value.kept { fill: var(--kept); }
svg text.value.dense { fill: var(--soft); font-weight: 500; }
.grid { stroke: var(--rule); } .shade { fill: var(--shade); }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
polyline.kept { stroke: var(--kept); } polyline.dense { stroke: var(--dense); stroke-dasharray: 3 4; }
circle.spot { fill: transparent; } circle.spot.kept:hover { fill: var(--kept-faint); }
circle.last.kept { fill: var(--kept); } circle.last.dense { fill: var(--dense); }
.bars { display: grid; grid-template-columns: minmax(5rem, max-content) 1fr max-content; gap: .32rem .9rem;
  align-items: center; margin: 1rem 0; font-size: .85rem; }
.bar { display: contents; }
.bars code { overflow-wrap: anywhere; max-width: 19rem; }
.bars .track { height: .8rem; position: relative; }
.bars .track i { position: absolute; inset: 0 auto 0 0; display: block;
  border-radius: 2px; min-width: 2px; }
.track .all { background: var(--kept-faint); } .track .left { background: var(--kept); }
.bars .number { font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap; }
.spans { margin: 1rem 0; } .spans svg { width: 100%; overflow: visible; }
.map { overflow-x: auto; margin: 1rem 0; padding-bottom: .4rem; background:
  linear-gradient(to right, var(--paper) 30%, transparent) left/2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 30%, transparent) right/2.5rem 100% no-repeat local,
  linear-gradient(to right, #0003, transparent) left/.7rem 100% no-repeat scroll,
  linear-gradient(to left, #0003, transparent) right/.7rem 100% no-repeat scroll; }
.rule { stroke: var(--rule); } .group path { fill: none; } .group .ring { fill: var(--paper); stroke-width: 2.5; }
.group .ghost { opacity: .2; } .whole path { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 4 3; }
.whole rect { fill: var(--soft); } .whole.gone { opacity: .4; }
svg:has(.group:hover) .group:not(:hover) { opacity: .13; }
.pins { list-style: none; margin: 1rem 0; padding: 0; }
.pins li { border-top: 1px solid var(--rule); padding: .6rem 0 .65rem 1.5rem; position: relative; }
.pins .chip { position: absolute; left: 0; top: .98rem; width: .7rem; height: .7rem; border-radius: 2px; }
.pins .lines { display: block; color: var(--soft); font-size: .82rem; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; font-size: .85rem; margin: .8rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 3.5rem; padding-top: .9rem; border-top: 1px solid var(--rule); color: var(--soft);
  font-size: .82rem; }
@media (max-width: 40rem) {
  body { padding: 1.6rem 1rem 3rem; }
  h2 { margin-top: 2.5rem; }
  td, th { padding-right: .6rem; } td.number:last-child, th.number:last-child { padding-right: 0; }
  .bars { display: block; }
  .bar { display: grid; grid-template-columns: 1fr max-content; gap: .1rem .6rem; margin-bottom: .6rem; }
  .bar .track { grid-column: 1 / -1; order: 1; }
}
@media print { .map { overflow: visible; } details { display: block; } }
"""


def lede(sentence: str) -> str:
    """The first sentence of a page; no line ends between a number and its per cent sign.

    >>> lede("98.0 → 97.8 % accuracy")
    '<p class="lede">98.0 → 97.8&nbsp;% accuracy</p>'
    """
    return f'<p class="lede">{escape(sentence).replace(" %", "&nbsp;%")}</p>'


def document(title: str, body: str) -> str:
    """A whole page with this body; ``title`` is escaped already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )
