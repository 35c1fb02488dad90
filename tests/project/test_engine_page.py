"""The blocks of docs/engine.md run in their order and print what stands below them."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "engine.md"
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n\n```text\n(?P<output>.*?)```)?", flags=re.DOTALL)
MOST_LINES = 170


def test_the_blocks_print_what_the_page_says() -> None:
    page = PAGE.read_text()
    names: dict[str, Any] = {"__name__": "engine_page"}
    for block in BLOCK.finditer(page):
        above = "\n" * page.count("\n", 0, block.start("code"))  # so that lines of source are those of the page
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(above + block["code"], "docs/engine.md", "exec"), names)
        assert printed.getvalue() == (block["output"] or ""), f"the block prints:\n{printed.getvalue()}"


def test_it_is_one_page() -> None:
    assert len(PAGE.read_text().splitlines()) <= MOST_LINES
