"""`niwaki.H2SPG(criteria=...)`: the structures that HESSO's scores choose, under H2SPG's update."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.dying import structure_units
from niwaki.errors import MethodError, UnknownName
from niwaki.methods.scoring import Criteria
from niwaki.selection import SelectionRequest
from niwaki.selection.removal import WholeStructures

SCHEDULE = niwaki.Schedule(start=3, until=40)
LOUD = 20.0  # one input is so many times as large


class Sum(nn.Module):
    """Three linear maps, of a part of the input each."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(4, 2, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:  # [samples, 3, 4]
        first, second, third = (branch(x[:, place]) for place, branch in enumerate(self.branches))
        result: Tensor = first + second + third
        return result


class Trained:
    """The second map has small weights for its loud input and matters most; the first hardly matters."""

    def __init__(self, criteria: Criteria | None, steps: int = 0, **more: Any) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(64, 3, 4).double()
        self.x[:, 1] *= LOUD
        self.model = Sum().double()
        with torch.no_grad():
            for branch, size in zip(self.model.branches, (0.1, 1.0 / LOUD, 0.3), strict=True):
                branch.weight.copy_(size * torch.randn(2, 4))  # type: ignore[operator, union-attr]
            self.y = self.model(self.x)
            for branch in self.model.branches:  # type: ignore[assignment]
                branch.weight.mul_(0.8)  # type: ignore[operator, union-attr]
        self.space = niwaki.search_space(self.model, self.x, erase=True)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        schedule = more.pop("schedule", SCHEDULE)
        budget = niwaki.Budget(macs=0.67)
        self.method = niwaki.H2SPG(self.space, self.optimizer, budget, schedule, criteria=criteria, **more)
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        (self.model(self.x) - self.y).square().mean().backward()
        self.optimizer.step()

    @property
    def chosen(self) -> set[str]:
        gone = self.method.selector.choice.units  # type: ignore[attr-defined]
        units = structure_units(self.space)
        return {self.space.structures[number].name for number, unit in units.items() if gone[unit]}


def test_what_norms_and_angles_cannot_see() -> None:
    """Redundancy erases the map of the least weights, which matters most; the mix the one that hardly matters."""
    assert Trained(None, steps=15).chosen == {"branches.1"}
    run = Trained(niwaki.HESSO.CRITERIA, steps=40)
    assert run.chosen == {"branches.0"}
    assert run.method.done and not run.model.branches[0].weight.any()  # type: ignore[union-attr, operator]
    small = niwaki.cut(run.model, run.method.plan())
    assert torch.allclose(small(run.x), run.model(run.x), atol=1e-12)


def test_the_choice_is_that_of_the_scores() -> None:
    """A mix of one criterion whose value is known: the norm of each map over the mean norm."""
    run = Trained({"magnitude": 1.0}, steps=SCHEDULE.start + 9)
    norms = [float(branch.weight.detach().norm()) for branch in run.model.branches]  # type: ignore[operator, union-attr, arg-type]
    assert run.chosen == {f"branches.{int(np.argmin(norms))}"} != Trained(niwaki.HESSO.CRITERIA, steps=15).chosen


def by_name(space: niwaki.SearchSpace, *values: float) -> np.ndarray:
    """``values`` of the maps, and a large one of their sums."""
    found = np.full(space.num_units, 1e3)
    for number, unit in structure_units(space).items():
        if space.structures[number].name.startswith("branches."):
            found[unit] = values[int(space.structures[number].name[-1])]
    return found


def test_redundancy_ranks_and_scores_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only with criteria may another set take the place of what goes in order."""
    asked: list[bool] = []
    select = WholeStructures.select

    def spy(self: WholeStructures, space: Any, saliency: Any, request: SelectionRequest) -> np.ndarray:
        asked.append(request.in_order)
        return select(self, space, saliency, request)

    for criteria, in_order in ((None, True), (niwaki.HESSO.CRITERIA, False)):
        run = Trained(criteria)
        monkeypatch.setattr(WholeStructures, "select", spy)
        while run.method.selector.choice.units is None:  # type: ignore[attr-defined]
            run.step()
        monkeypatch.undo()
        assert asked == [in_order]
        asked.clear()


def test_a_function_of_the_space_chooses() -> None:
    assert Trained(lambda space: by_name(space, 3, 2, 1), steps=15).chosen == {"branches.2"}


def test_the_mean_and_an_average_that_forgets() -> None:
    """A function that changes from step to step: over a window of two steps, the mean weighs both the same."""

    def run(memory: float, *samples: tuple[float, float]) -> set[str]:
        seen = iter(samples)
        return Trained(
            lambda space: by_name(space, *next(seen), 9.0), steps=15, window=len(samples), memory=memory
        ).chosen

    fallen = (9.0, 0.0), (0.0, 8.0)
    assert run(0.0, *fallen) == {"branches.1"}  # 4.5, 4.0
    assert run(0.9, *fallen) == {"branches.1"}  # (0.09 * 9 and 0.1 * 8) / 0.19 = 4.3, 4.2
    assert run(0.1, *fallen) == {"branches.0"}  # 0.8, 7.3
    # The first of several samples counts for no more than the others: 1.5, 1.8, where an average that began with it
    # would have 4.1, 0.5.
    assert run(0.9, (5.0, 0.0), (0.0, 2.5), (0.0, 2.5)) == {"branches.0"}


def test_another_choice_cannot_continue_the_run() -> None:
    saved = Trained(niwaki.HESSO.CRITERIA, steps=5).optimizer.state_dict()
    other = Trained(None)
    with pytest.raises(MethodError, match="criteria"):
        other.optimizer.load_state_dict(saved)


def test_errors() -> None:
    with pytest.raises(UnknownName, match="There is no criterion 'size'"):
        Trained({"size": 1.0})
    with pytest.raises(MethodError, match="'geometric_median' compares units with the others of their group, and a st"):
        Trained({"geometric_median": 1.0})
    with pytest.raises(MethodError, match="window=0 must be a whole number of steps, 1 or more: scores are averaged"):
        Trained(niwaki.HESSO.CRITERIA, window=0)
    with pytest.raises(MethodError, match="seed"):
        Trained(niwaki.HESSO.CRITERIA, seed=1.5)
