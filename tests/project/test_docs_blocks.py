"""The Python blocks of the README and of all pages run as they stand.

Pages that begin from nothing (tasks/, from/, the first page) run as one program. The others take a model and a training
of it for granted (`pages`): there each block begins with fresh ones, and with what earlier blocks have defined.
docs/engine.md and docs/ema_and_checkpoints.md have tests of their own, which look at what they lead to.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pages
import pytest

from niwaki.networks.torchvision_cpu import load
from niwaki.rules import registry

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
ELSEWHERE = {"docs/engine.md", "docs/ema_and_checkpoints.md"}
PAGES = sorted({"README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))} - ELSEWHERE)
FROM_NOTHING = ("docs/tasks/", "docs/from/", "docs/index.md", "docs/nothing_pruned.md")
SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {  # by what a block mentions
    "method.masked():  # Accelerate": pages.masked,
    "niwaki.report(": pages.with_history,
    '"reap"': pages.of_experts,
    "can_save": pages.hugging_face,
    "Trainer(": pages.hugging_face,
    "accelerator": pages.accelerated,
    "niwaki.ATP(": pages.with_adapters,
}
SMALLER = {"steps=300": "steps=12", "probes=60": "probes=4", "(Trainer)": "(object)", "batch_size=128": "batch_size=8"}


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search((ROOT / page).read_text())])
def test_the_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    alone = page.startswith(FROM_NOTHING)
    names: dict[str, Any] = {"__name__": "page"}
    rules = set(registry.NAMED)
    for block in BLOCK.finditer(text):
        code = block[1]
        if re.search(r"\b(transformers|accelerator|Trainer\()", code) or "can_save" in code:
            load()  # transformers imports torchvision
            pytest.importorskip("transformers")
            pytest.importorskip("accelerate")
        if not alone:
            wanted = next((make for mark, make in SETTINGS.items() if mark in code), pages.names)
            names |= wanted()
            for large, small in SMALLER.items():
                code = code.replace(large, small)
        above = "\n" * text.count("\n", 0, block.start(1))  # so that a traceback names the line of the page
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # schedules of thousands of steps are not at their end here
            exec(compile(above + code, page, "exec"), names)
    for name in set(registry.NAMED) - rules:
        del registry.NAMED[name]


def test_every_page_is_in_the_site() -> None:
    """mkdocs.yml names each page once, and the start page leads to all tasks."""
    site = (ROOT / "mkdocs.yml").read_text()
    named = re.findall(r": ([\w/]+\.md)$", site, flags=re.MULTILINE)
    assert sorted(named) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))
    start = (ROOT / "docs/index.md").read_text()
    assert not [page for page in named if page.startswith("tasks/") and f"({page})" not in start]


def test_the_reference_has_every_public_name() -> None:
    import niwaki

    reference = (ROOT / "docs/reference.md").read_text()
    listed = set(re.findall(r"^::: niwaki\.(?:[\w.]+\.)?(\w+)$", reference, flags=re.MULTILINE))
    missing = set(niwaki.__all__) - {"__version__"} - listed
    assert not missing, f"Add ::: niwaki.NAME to docs/reference.md for {missing}."


def test_reasons_that_a_page_quotes_are_what_niwaki_says() -> None:
    """The first column of the table of reasons, up to where an example begins, stands in the code."""
    code = "\n".join(path.read_text() for path in sorted((ROOT / "niwaki").rglob("*.py")))
    table = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/nothing_pruned.md").read_text(), flags=re.MULTILINE)
    quoted = [row.split("…")[0].strip() for row in table if row not in ("the reason says", "---")]
    assert len(quoted) > 5
    for text in quoted:
        assert text in code, text
