"""What a notebook shows of each value: short text, and tables that are well formed."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import niwaki


class Checked(HTMLParser):
    """Refuses elements that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def shown(value: object) -> str:
    text: str = value._repr_html_()  # type: ignore[attr-defined]
    Checked(text)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))


def test_values_are_short_and_have_tables(network: nn.Module) -> None:
    x = torch.randn(2, 4)
    space = niwaki.search_space(network, x)
    scores = niwaki.score(space, "magnitude")
    plan = niwaki.choose(space, scores, niwaki.Budget(macs=0.5))
    small = niwaki.cut(network, plan)
    latencies = niwaki.latency({"dense": network, "small": small}, x, seconds=0)
    for value in (space, space.groups, scores, plan, latencies, latencies.networks["small"]):
        assert len(repr(value).splitlines()) <= 30 and "array(" not in repr(value), repr(value)
    assert repr(space.groups[0]) == "<group 0: 64 units in 3 tensors>"
    assert repr(space.groups[0].slices[0]) == "0.weight dim 0: 1 position per unit (producer)"
    lines = str(scores).splitlines()
    assert lines[0] == "Scores by magnitude: 96 units; lowest, median and highest" and len(lines) == 3
    low = scores.values[space.groups[0].numbers].min()
    assert lines[1].split()[:2] == ["0", f"{low:.3g}"]
    kept = len(plan.kept["0"])
    assert f"0 {kept} 64" in shown(plan) and "MACs:" in shown(plan)
    assert "Search space: 96 units in 2 groups" in shown(space) and "it is an output of the model" in shown(space)
    assert "0.weight 0 producer 1" in shown(space.groups[0])
    assert "group lowest median highest" in shown(scores)
    assert "small" in shown(latencies) and "of dense" in shown(latencies)


def test_scores_of_ones_own_are_one_line() -> None:
    from niwaki.criteria.score import Scores

    assert str(Scores(torch.arange(3.0).double().numpy(), "mine")).splitlines() == [
        "Scores by mine: 3 units; lowest, median and highest",
        "  all units  0  1  2",
    ]


def test_a_method_shows_where_it_stands(network: nn.Module) -> None:
    space = niwaki.search_space(network, torch.randn(2, 4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.5), niwaki.Schedule(start=2, until=12))
    assert {name for name in dir(method) if not name.startswith("_")} == {
        *("attach", "budget", "detach", "done", "log", "name", "optimizer", "plan", "progress", "schedule", "shrink"),
        *("shrinking", "space", "step", "CRITERIA"),
    }
    assert "MACs left 100.0% ████████" in shown(method)
    method.detach()
