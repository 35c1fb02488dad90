"""The README's picture and table are made from the rows that are committed."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.accuracy.chart import ARMS, chart
from benchmarks.accuracy.readme import BEGIN, END, PICTURED, ROOT, readme, rows_of, table
from benchmarks.accuracy.readme import RESULTS as PAGE
from benchmarks.accuracy.setting import DEFAULT_MOMENT

RESULTS = ROOT / "benchmarks/accuracy/results"
SVG = "{http://www.w3.org/2000/svg}"


def test_every_arm_is_a_line_and_has_a_name(tmp_path: Path) -> None:
    rows = rows_of(PICTURED, RESULTS)
    picture = ElementTree.parse(chart(rows, PICTURED, DEFAULT_MOMENT, tmp_path / "a.svg")).getroot()
    texts = {element.text for element in picture.iter(f"{SVG}text")}
    drawn = {row.arm for row in rows} & set(ARMS)
    assert {ARMS[arm][0] for arm in drawn} <= texts and "dense" in texts
    for arm in drawn:  # a line from its budgets to the dense network, and a line of the legend
        lines = [path for path in picture.iter(f"{SVG}path") if path.get("class") == ARMS[arm][1]]
        assert any("L" in path.get("d", "") for path in lines), arm


def test_a_task_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no rows of the dense network of digits"):
        chart([], "digits", DEFAULT_MOMENT, tmp_path / "a.svg")


def test_the_pages_have_the_figures_of_the_rows(tmp_path: Path) -> None:
    for page in ("README.md", PAGE):
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text((ROOT / page).read_text())
    (tmp_path / "docs").mkdir()
    readme(RESULTS, tmp_path)
    for name in ("README.md", PAGE, "docs/accuracy.svg"):
        stored, made = (root / name for root in (ROOT, tmp_path))
        assert stored.read_text() == made.read_text(), (
            f"{name} is older than the rows: python -m benchmarks.accuracy readme"
        )
    assert "| **HESSO**, units reach zero at 35 % of the run | 20 % |" in table(RESULTS)


def test_a_page_without_the_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"{END} {BEGIN}")
    with pytest.raises(SystemExit, match="README.md lacks the marks"):
        readme(RESULTS, tmp_path)
