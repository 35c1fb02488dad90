"""Write a drawing as one HTML page without other files: no script, no style sheet, no font."""

from __future__ import annotations

from html import escape

from niwaki.report.drawing import Drawing, form
from niwaki.report.map_svg import legend, map_svg
from niwaki.report.pins import pins_html
from niwaki.report.style import document, lede


@form(".html")
def html_page(drawing: Drawing) -> str:
    """A page with a summary, the map, and the reasons for pins."""
    body = f"""<h1>{escape(drawing.title)}</h1>
{lede(drawing.summary)}
<p class="soft">{legend(drawing)}</p>
<div class="map">
{map_svg(drawing)}
</div>
<h2>What is pinned, and why</h2>
{pins_html(drawing)}"""
    return document(escape(drawing.title), body)
