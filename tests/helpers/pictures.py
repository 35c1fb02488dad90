"""The pictures of the documentation. `make pictures` makes all of them anew; `tests/report/test_pictures.py` compares.

Those of the demo are made from the report of one run, which is stored beside that test: nothing is trained for them. To
take another run, copy its `report.json` over the stored one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from browser import picture
from rich.console import Console, RenderableType
from rich.terminal_theme import MONOKAI
from rich.text import Text

import niwaki
from niwaki.cli.inspect_model import Request, inspect_model
from niwaki.cli.inspect_tables import inspection_tables
from niwaki.cli.tables import report_parts
from niwaki.core.space import SearchSpace
from niwaki.report import read_report
from niwaki.report.draw import draw
from niwaki.report.inspection import Inspection

DOCS = Path(__file__).parents[2] / "docs"
DEMO = Path(__file__).parents[1] / "report" / "demo"
NETWORK = "resnet"
PAGES = {  # of the report of the demo: width, height and whether it is dark
    "report-light": (1100, 2060, False),
    "report-dark": (1100, 2060, True),
    "report-phone": (390, 1480, False),
}
MAP = ("map", (1100, 1330, False))
COLOURS = 96  # of a picture, so that it stays small
# What rich puts into its pictures to load a font from elsewhere.
FETCHED = re.compile(r"\s*@font-face \{.*?\}", flags=re.DOTALL)
FONT = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono"


def terminal(command: str, parts: Iterable[RenderableType], columns: int = 84) -> str:
    """What a terminal shows of a command, as a picture that needs no other file."""
    # Without a height rich asks what terminal there is, and may take its width.
    size = {"width": columns, "height": 100}
    screen = Console(record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor", **size)
    screen.print(Text(f"$ {command}", style="bold"))
    for part in parts:
        screen.print(part, highlight=False)
    screen.print()  # without it the picture cuts what hangs below the last line
    svg = screen.export_svg(title="", theme=MONOKAI, unique_id=command.split()[1])
    return FETCHED.sub("", svg).replace("Fira Code", FONT)


def demo_svg() -> str:
    """The end of `make demo`."""
    parts = report_parts(read_report(DEMO), Path("out/demo"))
    return terminal("niwaki train --out out/demo --baseline", parts)


def inspected() -> tuple[SearchSpace, Inspection]:
    """The network that is looked at, and what is found."""
    begin = time.process_time()
    with contextlib.chdir(DOCS.parent):  # paths of source lines begin there
        space, found = inspect_model(Request(NETWORK))
    # The time on one core: pictures are made beside other programs.
    return space, dataclasses.replace(found, seconds=min(found.seconds, time.process_time() - begin))


def inspect_svg(found: Inspection) -> str:
    """What `niwaki inspect` prints."""
    return terminal(f"niwaki inspect {NETWORK}", inspection_tables(found))


def words_of(svg: str) -> list[str]:
    """The words of a picture of a terminal, without the time that an analysis took."""
    text = " ".join(re.findall(r"<text [^>]*clip-path=[^>]*>([^<]*)</text>", svg))
    return re.sub(r"\d+\.\d s\)", "? s)", html.unescape(text).replace("\xa0", " ")).split()


def pages(folder: Path) -> Iterator[tuple[str, Path, tuple[int, int, bool]]]:
    """The pages that are pictured, written to ``folder``: the name of the picture, the page, and how it is shown."""
    run = shutil.copytree(DEMO, folder / "demo")
    page = niwaki.report(run)
    for name, how in PAGES.items():
        yield name, page, how
    space, _ = inspected()
    draw(space, folder / "map.html", NETWORK)
    yield MAP[0], folder / "map.html", MAP[1]


def main() -> None:
    """Write all pictures."""
    from PIL import Image

    (DOCS / "demo.svg").write_text(demo_svg())
    (DOCS / "inspect.svg").write_text(inspect_svg(inspected()[1]))
    with tempfile.TemporaryDirectory() as folder:
        for name, page, (width, height, dark) in pages(Path(folder)):
            out = DOCS / f"{name}.png"
            picture(page, out, width, height, dark)
            Image.open(out).convert("RGB").quantize(COLOURS).save(out, optimize=True)


if __name__ == "__main__":
    main()
