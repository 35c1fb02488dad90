"""The README's picture is drawn from the rows that are committed."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.accuracy.chart import ARMS, chart
from benchmarks.accuracy.rows import read
from benchmarks.accuracy.setting import DEFAULT_MOMENT

RESULTS = Path(__file__).parents[2] / "benchmarks/accuracy/results"
SVG = "{http://www.w3.org/2000/svg}"


def test_every_arm_is_a_line_and_has_a_name(tmp_path: Path) -> None:
    rows = read(RESULTS)
    picture = ElementTree.parse(chart(rows, "fashion", DEFAULT_MOMENT, tmp_path / "a.svg")).getroot()
    texts = {element.text for element in picture.iter(f"{SVG}text")}
    drawn = {row.arm for row in rows if row.task == "fashion"} & set(ARMS)
    assert {ARMS[arm][0] for arm in drawn} <= texts and "dense" in texts
    for arm in drawn:  # a line from its budgets to the dense network, and a line of the legend
        lines = [path for path in picture.iter(f"{SVG}path") if path.get("class") == ARMS[arm][1]]
        assert any("L" in path.get("d", "") for path in lines), arm


def test_a_task_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no rows of the dense network of digits"):
        chart([], "digits", DEFAULT_MOMENT, tmp_path / "a.svg")
