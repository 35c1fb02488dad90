"""Random networks, read as programs: what is listed vanishes, what is erased is exact, and wrong versions are found.

`python -m benchmarks.erasing fuzz` tries ten thousand of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import export

import niwaki
from benchmarks.erasing import fuzz
from benchmarks.erasing.drawn import drawn
from niwaki.erasing.passing import Passing
from niwaki.program import erase


@pytest.mark.parametrize("first", [0, 20, 40])
def test_random_networks(first: int) -> None:
    rows = [fuzz.tried(number, 2, ["program"]) for number in range(first, first + 20)]
    problems = [f"network {row['network']}: {row['problem']}" for row in rows if "problem" in row]
    assert not problems, "\n".join(problems)
    assert sum(row["erased"] for row in rows) > 15, fuzz.summary(rows)


@pytest.mark.parametrize("number", [20, 40, 44, 59, 81, 120])
def test_absent_modules_beside_concatenations(number: int) -> None:
    """In these, zeros in the user's class stand beside a concatenation and have to be as wide as its parts."""
    row = fuzz.tried(number, 3, ["class"])
    assert "problem" not in row, row["problem"]
    assert row["erased"] > 0


def test_networks_are_what_their_numbers_say() -> None:
    """The same source for the same number, other ones for others, and many ways to write a network among them."""
    sources = [drawn(number).source for number in range(200)]
    assert sources[:20] == [drawn(number).source for number in range(20)] and len(set(sources)) == 200
    text = "".join(sources)
    for way in (
        " += ",
        "torch.cat",
        "inplace=True",
        "alpha=0.5",
        "nn.Conv2d",
        "nn.LayerNorm",
        "x0, x1",
        "sum([",
        ".stack",
    ):
        assert text.count(way) > 5, way


def found_by(numbers: range) -> list[str]:
    return [row["problem"] for row in (fuzz.tried(number, 2, ["program"]) for number in numbers) if "problem" in row]


def test_a_term_that_is_not_zero_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Passing, "vanishes", lambda *_: True)
    assert any("still adds" in problem for problem in found_by(range(12)))


def test_an_operand_taken_for_the_other_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    dissolve = erase._dissolve

    def wrong(module: Any, join: Any, left: Any, taken: Any) -> None:
        gone = min(taken)
        dissolve(module, join, erase._operands(join)[gone], {1 - gone})

    monkeypatch.setattr(erase, "_dissolve", wrong)
    assert found_by(range(6))


def test_a_failure_is_written_as_a_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Passing, "vanishes", lambda *_: True)
    fuzz.run(12, 0, 1, ["program"], tmp_path)
    failed = [row for row in fuzz.read(tmp_path / "rows.jsonl") if "problem" in row]
    script = (tmp_path / f"network_{failed[0]['network']}.py").read_text()
    compile(script, "script", "exec")
    assert drawn(failed[0]["network"]).source in script
    lines = (tmp_path / "rows.jsonl").read_text()
    fuzz.run(12, 0, 1, ["program"], tmp_path)
    assert (tmp_path / "rows.jsonl").read_text() == lines  # all of them have a row


# ------------------------------------------------------------------------------- what random networks have found first


class Branch(nn.Module):
    """A branch beside a stream, joined in one of the ways below."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.stem, self.branch, self.head = way, nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        if self.way == "the sum is an output":
            return self.branch(h) + h
        y = self.branch(h)
        total = h + y
        if self.way == "the stream is written to afterwards":
            h.mul_(0.5)
            return self.head(total)
        return self.head(total.mul_(0.5)) + self.head(h)


@pytest.mark.parametrize(
    "way", ["the sum is an output", "the stream is written to afterwards", "the sum is written to afterwards"]
)
def test_what_takes_the_place_of_a_sum(way: str) -> None:
    """It is an output by its own name, and a copy where one of the two is written to."""
    torch.manual_seed(0)
    model, inputs = Branch(way).double().eval(), (torch.randn(2, 3, dtype=torch.float64),)
    program = export(model, inputs)
    space = niwaki.search_space(program, erase=True)
    keep = np.ones(space.num_units, dtype=bool)
    (branch,) = [group for group in space.groups if group.structure is not None]
    keep[branch.numbers] = False
    small = niwaki.cut(program, space.plan(keep)).module()
    with torch.no_grad():
        nn.init.zeros_(model.branch.weight)
        nn.init.zeros_(model.branch.bias)
        assert torch.equal(small(*inputs), model(*inputs))
    assert not [name for name, _ in small.named_parameters() if "branch" in name]
