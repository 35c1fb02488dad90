"""The pictures of the documentation are what the command line and the pages show today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import CHROMIUM, picture
from pictures import DOCS, demo_svg, inspect_svg, inspected, pages, words_of

STALE = "is not what niwaki shows today: make pictures"


def test_the_terminal_shows_what_is_printed_today() -> None:
    for name, svg in (("demo", demo_svg()), ("inspect", inspect_svg(inspected()[1]))):
        stored = (DOCS / f"{name}.svg").read_text()
        assert words_of(stored) == words_of(svg), f"docs/{name}.svg {STALE}"
        assert len(words_of(svg)) > 60, "the words of the picture were not found"
        assert not re.findall(r"https?://(?!www\.w3\.org|www\.textualize\.io)", stored), "it loads something"


@pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium")
@pytest.mark.slow
def test_a_browser_shows_the_pages_of_the_pictures(tmp_path: Path) -> None:
    """Up to the edges of letters, which depend on the fonts of a machine."""
    from PIL import Image, ImageChops, ImageStat

    for name, page, (width, height, dark) in pages(tmp_path):
        picture(page, tmp_path / "now.png", width, height, dark)
        with Image.open(tmp_path / "now.png") as now, Image.open(DOCS / f"{name}.png") as stored:
            assert now.size == stored.size == (width, height), f"docs/{name}.png {STALE}"
            difference = ImageStat.Stat(ImageChops.difference(now.convert("L"), stored.convert("L"))).mean[0]
        assert difference < 4, f"docs/{name}.png {STALE}"
