"""The page of a run: complete, self-contained, well formed, and what it draws is what the report says."""

from __future__ import annotations

import dataclasses
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import CHROMIUM, picture
from torch import nn

import niwaki
from niwaki.errors import FileFormatError, MethodError, NiwakiError, PlanError
from niwaki.performance.measure import Latencies, Latency, Ratio
from niwaki.report import Baseline, RunReport, read_report
from niwaki.report.charts import Chart, chart_svg, nice_ticks
from niwaki.report.content import content_of_run, headline_of
from niwaki.report.run_page import run_page
from niwaki.train.job import train
from niwaki.train.loop import Silent
from niwaki.train.recipe import Recipe

VOID = {"meta", "br"}


class Strict(HTMLParser):
    """Refuses elements that are not closed, and notes all that a page would load or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert value is not None and "nan" not in value.split(), (tag, name)
            if name in ("src", "href", "srcset", "action") or name.startswith("on") or tag in ("script", "link"):
                self.loads.append(f"{tag} {name}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    recipe = Recipe(model="resnet", epochs=2, batch_size=256, periods=3, width=0.5, prune_until=0.6)
    train(recipe, out, Silent(), measure_seconds=0.0)
    return out


@pytest.fixture(scope="module")
def report(run: Path) -> RunReport:
    return read_report(run)


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def check_self_contained(page: str) -> None:
    strict = Strict(page)
    assert strict.open == [] and strict.loads == []
    for other in ("http:", "https:", "//", "url(", "@import", "<script", "javascript"):
        assert other not in page, other


def test_a_run_writes_its_page(run: Path, report: RunReport) -> None:
    page = (run / "report.html").read_text()
    check_self_contained(page)
    told = text_of(page)
    assert headline_of(report) in told and f"niwaki.load_run({str(run)!r})" in told
    for part in ("The training", "What was kept", "The map", "What is pinned, and why", "Load it"):
        assert f"<h2>{part}</h2>" in page
    assert (
        "it is an output of the model" in told and "prefers-color-scheme: dark" in page and "width=device-width" in page
    )
    assert "--baseline trains it, too" in told  # there is none to compare with


def test_bars_and_lines_are_what_was_kept(run: Path, report: RunReport) -> None:
    page = (run / "report.html").read_text()
    bars = re.findall(r'<div class="bar"><code>(.*?)</code>.*?width:([\d.]+)%.*?width:([\d.]+)%.*?>(\d+) <', page)
    most = max(units for _, units in report.kept.values())
    assert {name for name, *_ in bars} == set(report.kept) and len(bars) == len(report.kept)
    for name, dense, small, count in bars:
        kept, units = report.kept[name]
        assert int(count) == kept
        assert float(dense) == pytest.approx(100 * units / most, abs=0.01)
        assert float(small) == pytest.approx(100 * kept / most, abs=0.01)
    lines = re.findall(
        r"<title>(\S+): keeps (\d+) of (\d+) .*?stroke-width=\"7.0\".*?stroke-width=\"([\d.]+)\"", page, re.S
    )
    assert {name for name, *_ in lines} == set(report.kept)
    for name, kept_text, units_text, width in lines:
        assert report.kept[name] == (int(kept_text), int(units_text))
        assert float(width) == pytest.approx(7 * int(kept_text) / int(units_text), abs=0.051)
    assert report.map is not None  # in the order of the network
    assert [name for name, *_ in bars] == [line.group.name for line in report.map.lines]


def test_the_curves_are_the_history(report: RunReport) -> None:
    page = run_page(content_of_run(report, "out"))
    assert page.count("<polyline") == 3 and page.count('class="shade"') == 3
    for entry in report.history:
        assert f"accuracy: {entry['accuracy']:.1%} at {entry['step']:,.0f}</title>" in page
    ticks = nice_ticks(0.0, 2.31)
    drawn = chart_svg(Chart("loss", ((1, 2.31), (2, 1.0)), "{:.2f}".format, low=0.0))
    assert [float(value) for value in re.findall(r'soft end" [^>]*>([\d.]+)<', drawn)][: len(ticks)] == ticks
    heights = [float(point.split(",")[1]) for point in re.findall(r'points="([^"]*)"', drawn)[0].split()]
    assert heights[0] < heights[1]  # more is higher


def test_ticks_are_few_round_and_around_the_values_whatever_the_span() -> None:
    for power in range(-5, 7):
        for span in (one / 100 * 10.0**power for one in range(100, 1000)):
            for low in (0.0, 0.37 * span):
                ticks = nice_ticks(low, low + span)
                assert 2 <= len(ticks) <= 5 and ticks[0] <= low + 1e-6 * span and ticks[-1] >= low + span * (1 - 1e-6)
    assert nice_ticks(0.6267, 1.0) == [0.6, 0.8, 1.0] and nice_ticks(0.0, 3.5) == [0.0, 2.0, 4.0]
    assert "<polyline" in chart_svg(Chart("loss", ((0, 2.0),), "{:.1f}".format))  # before the first step


def test_a_baseline_is_told_and_drawn(report: RunReport) -> None:
    base = Baseline(0.991, tuple({**entry, "accuracy": 0.9} for entry in report.history), 3.0)
    faster = dataclasses.replace(report, baseline=base, ratios=(Ratio(0.9, 0.8, 1.1), Ratio(0.5, 0.49, 0.52)))
    page = run_page(content_of_run(faster, "out"))
    check_self_contained(page)
    told = text_of(page)
    assert f"99.1 → {100 * report.small.accuracy:.1f} % accuracy, 2.0 times as fast" in told
    assert page.count('<polyline class="dense"') == 2 and "Dashed: the same training without pruning." in told
    assert page.count('class="number same"') == 1  # 0.8 to 1.1 holds 1
    assert headline_of(faster) in told


def test_names_cannot_become_markup(report: RunReport) -> None:
    evil = dataclasses.replace(report, recipe={**report.recipe, "model": '<script>alert("x")</script>'})
    page = run_page(content_of_run(evil, '"><img src=x>'))
    assert Strict(page).loads == [] and "&lt;script&gt;" in page


def test_old_reports_have_a_page_without_a_map(report: RunReport) -> None:
    history = tuple({name: value for name, value in entry.items() if name != "step"} for entry in report.history)
    page = run_page(content_of_run(dataclasses.replace(report, map=None, ratios=(), history=history), "out"))
    check_self_contained(page)
    assert "The map" not in page and "epoch 2" in page and "What was kept" in page


def test_a_loop_of_ones_own_writes_a_page(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    space = niwaki.search_space(net, torch.randn(1, 4))
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5))
    latency = niwaki.latency({"dense": net, "small": niwaki.cut(net, plan)}, torch.randn(3, 4), seconds=0)
    history = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    path = niwaki.report(
        tmp_path / "mine.html", space, plan, title="Mine", history=history, latency=latency, load="load()"
    )
    page = path.read_text()
    check_self_contained(page)
    told = text_of(page)
    assert path == tmp_path / "mine.html" and "2.0 times fewer MACs" in told and "load()" in told
    assert page.count("<polyline") == 1 and "3 inputs at once" in told and "accuracy" not in told
    assert (niwaki.report(tmp_path / "new", space, plan)).name == "report.html"


def test_wrong_calls_are_sentences(run: Path, tmp_path: Path) -> None:
    net = nn.Linear(4, 8)
    space = niwaki.search_space(net, torch.randn(1, 4))
    with pytest.raises(MethodError, match="needs both a search space and a plan of it, or a directory of a run alone"):
        niwaki.report(tmp_path, space)
    with pytest.raises(FileFormatError, match="it has no report.json. Name the directory that `niwaki train --out`"):
        niwaki.report(tmp_path)
    alone = niwaki.latency({"dense": net}, torch.randn(1, 4), seconds=0)
    with pytest.raises(MethodError, match="A latency of a single network compares nothing"):
        niwaki.report(tmp_path, space, space.plan([]), latency=alone)
    before = (run / "report.html").read_bytes()
    assert niwaki.report(run).read_bytes() == before
    assert niwaki.report.RunReport is RunReport  # type: ignore[attr-defined]  # the package is there as well


@pytest.fixture(scope="module")
def pruned() -> tuple[niwaki.SearchSpace, niwaki.Plan]:
    space = niwaki.search_space(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4))
    return space, niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"accuracy": (98.0, 97.0)},
            r"accuracy=\(98.0, 97.0\): 98 is not a fraction in 0 to 1. Divide per cent by 100",
        ),
        ({"accuracy": 0.97}, r"accuracy=0.97 must be two fractions, of the dense network and of the small one"),
        ({"accuracy": None}, "accuracy=None must be two fractions"),
        ({"accuracy": (float("nan"), 0.9)}, "nan is not a finite number"),
        ({"history": [{"epoch": 1, "loss": 1.0}]}, r"history\[0\] has no 'step', by which a page draws it"),
        (
            {"history": [{"step": 1, "loss": float("nan")}]},
            r"history\[0\]\['loss'\]: nan is not a finite number. Leave",
        ),
        ({"history": [{"step": 1, "accuracy": None}]}, r"history\[0\]\['accuracy'\]: None is not a finite number"),
        ({"history": [{"step": 1, "accuracy": 97.0}]}, r"history\[0\]\['accuracy'\]: 97 is not a fraction"),
        ({"history": [{"step": -1}]}, "is -1; steps count from 0"),
        ({"history": None}, "history= must be a list of dictionaries"),
        ({"latency": {"dense": 1, "small": 2}}, "latency= must be what niwaki.latency returned, not a dict"),
        ({"where": None}, "writes to a directory or an .html file, but was given None"),
        ({"where": "page.htm"}, "'page.htm' is no name of a page: use 'page.html'"),
        ({"where": "notes.txt"}, "'notes.txt' is a file. Name a directory, or an .html file to write"),
    ],
)
def test_a_page_does_not_show_what_cannot_be(
    pruned: tuple[niwaki.SearchSpace, niwaki.Plan],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    given: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MethodError, match=message):
        niwaki.report(*(given.get("where", "page.html"), *pruned), **{k: v for k, v in given.items() if k != "where"})
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_latencies_are_looked_up_by_name(pruned: tuple[niwaki.SearchSpace, niwaki.Plan], tmp_path: Path) -> None:
    def latency(first: str, second: str, times: tuple[float, float]) -> Latencies:
        one, two = (Latency(t, t, t, 9, ((1, 4),), 1, "cpu", "float32", "wall") for t in times)
        share = times[1] / times[0]
        return Latencies({first: one, second: two}, {first: Ratio(1, 1, 1), second: Ratio(share, share, share)})

    for given in (latency("dense", "small", (300.0, 100.0)), latency("small", "dense", (100.0, 300.0))):
        told = text_of(niwaki.report(tmp_path, *pruned, latency=given).read_text())
        assert "3.0 times as fast" in told and told.index("0.300 ms") < told.index("0.100 ms")
    with pytest.raises(MethodError, match="latency= is of 'a', 'b', and a page compares 'small' with 'dense'"):
        niwaki.report(tmp_path, *pruned, latency=latency("a", "b", (3.0, 1.0)))
    other = niwaki.search_space(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2)), torch.randn(1, 4))
    with pytest.raises(PlanError):
        niwaki.report(tmp_path, other, pruned[1])
    with pytest.raises(NiwakiError):
        niwaki.report(tmp_path, *reversed(pruned))


@pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium")
@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1100, False), (1100, True), (390, False)])
def test_a_browser_shows_it(run: Path, tmp_path: Path, width: int, dark: bool) -> None:
    """It is not empty, logs nothing to the console, and has the colours of the scheme."""
    said = picture(run / "report.html", tmp_path / "page.png", width, 1200, dark)
    assert "CONSOLE" not in said, said
    from PIL import Image

    with Image.open(tmp_path / "page.png") as shown:
        colours = shown.convert("RGB").getcolors(2**24)
    assert len(colours) > 100
    assert (sum(max(colours)[1]) < 120) is dark  # the most frequent one is the paper
