"""What a weight norm gives leaves with its length; the direction stays until the cut, for it may not be zero."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import niwaki
from niwaki.core.edits import KeepDirection
from niwaki.errors import PlanError
from niwaki.surgery.zero import zeroed
from niwaki.testing import check_model

Norm = Callable[[nn.Module], Any]
NORMS: dict[str, Norm] = {"parametrized": parametrizations.weight_norm, "old": nn.utils.weight_norm}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


class Temporal(nn.Module):
    """Dilated convolutions in residual blocks, and one that makes the sequence longer: as vocoders have them."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.first = norm(nn.Conv1d(3, 8, 3, padding=1))
        self.blocks = nn.ModuleList(norm(nn.Conv1d(8, 8, 3, padding=2**i, dilation=2**i)) for i in range(2))
        self.longer = norm(nn.ConvTranspose1d(8, 6, 4, 2, 1))
        self.last = norm(nn.Conv1d(6, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        result: Tensor = self.last(torch.relu(self.longer(torch.relu(x))))
        return result


@pytest.mark.parametrize("norm", NORMS)
def test_width_behind_a_weight_norm_is_exact(norm: str) -> None:
    torch.manual_seed(0)
    report = check_model(Temporal(NORMS[norm]), torch.randn(2, 3, 9), least_coverage=0.99)
    assert report.units == 14


def halved(model: nn.Module, x: Tensor) -> niwaki.Plan:
    space = niwaki.search_space(model, x)
    return niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))


def test_directions_are_in_the_plan_and_not_zeroed() -> None:
    torch.manual_seed(0)
    model, x = Temporal(NORMS["parametrized"]), torch.randn(2, 3, 9)
    plan = halved(model, x)
    direction = "first.parametrizations.weight.original1"
    assert isinstance(plan.at["keep", direction, 0], KeepDirection)
    assert niwaki.Plan.from_json(plan.to_json()).edits == plan.edits
    zero = zeroed(model, plan)
    assert torch.equal(zero.get_parameter(direction), model.get_parameter(direction))
    assert zero.get_parameter("first.parametrizations.weight.original0").count_nonzero() == 4
    assert bool(zero(x).isfinite().all())


def test_a_direction_that_is_not_cut_is_no_plan() -> None:
    """Plans of format 2 list directions beside what is cut."""
    text = (Path(__file__).parents[1] / "files/plan-2/everything/plan.json").read_text()
    text = text.replace('"directions": [', '"directions": [["out.bias", 0], ')
    with pytest.raises(PlanError, match="calls dimension 0 of 'out.bias' a direction, and does not cut it"):
        niwaki.Plan.from_json(text)


@pytest.mark.parametrize("shrink", [False, True])
def test_a_method_drives_lengths_and_leaves_directions(tmp_path: Path, shrink: bool) -> None:
    torch.manual_seed(0)
    model, x = Temporal(NORMS["parametrized"]), torch.randn(4, 3, 9)
    space = niwaki.search_space(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = niwaki.Schedule(start=2, until=8, periods=2)
    method = niwaki.HESSO(space, optimizer, niwaki.Budget(units=0.5), schedule, shrink=shrink)
    for _ in range(10):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    plan = method.plan()
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    outcome = niwaki.check(model, plan, x)
    assert outcome.holds and outcome.distance < 1e-6  # what has left was at zero already
    small = niwaki.cut(model, plan)
    niwaki.save(small, tmp_path / "out")
    loaded = niwaki.load(Temporal(NORMS["parametrized"]), tmp_path / "out")
    assert torch.equal(loaded(x), small(x))


def test_two_plans_in_a_row_keep_directions() -> None:
    torch.manual_seed(0)
    model, x = Temporal(NORMS["parametrized"]), torch.randn(2, 3, 9)
    niwaki.shrink(model, halved(model, x))
    assert niwaki.check(model, halved(model, x), x).holds


def test_a_direction_used_otherwise_too_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = parametrizations.weight_norm(nn.Linear(4, 8))
            self.last = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            plain = nn.functional.linear(x, self.first.parametrizations.weight.original1)
            result: Tensor = self.last(torch.relu(self.first(x)) + torch.relu(plain))
            return result

    torch.manual_seed(0)
    space = niwaki.search_space(Twice(), torch.randn(3, 4))
    assert not space.num_units
    assert any("it is the direction of a weight norm, and used otherwise too" in str(pin) for pin in space.pins)
