"""The network under the mask of the moment, in a block, and what the block leaves behind."""

from __future__ import annotations

import pytest
import torch
from ato_run import SCHEDULE, Run, labelled, loss_fn
from torch import Tensor, nn

import niwaki
from niwaki.errors import MethodError
from niwaki.per_unit.unit_gates import UnitGates
from niwaki.surgery.zero import zeroed

X, Y = labelled(7, 64)


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(X)
    return found


@pytest.mark.parametrize("step", [16, 30])
def test_it_is_what_the_cut_network_would_be(step: int) -> None:
    run = Run().step(step)
    mask = run.method.selector.mask
    assert mask.any()
    with run.method.masked() as model:
        assert model is run.model
        masked = outputs(model)
    small = niwaki.cut(run.model, run.space.plan(~mask))
    torch.testing.assert_close(masked, outputs(small))
    assert float((masked - outputs(run.model)).abs().max()) > 1e-4


def test_gradients_are_those_under_the_mask() -> None:
    run = Run(dropout=0.0).step(16)
    run.model.zero_grad()
    with run.method.masked() as model:
        loss_fn(model, (X, Y)).backward()
    own = {name: parameter.grad for name, parameter in run.model.named_parameters()}
    keep = run.space.plan(~run.method.selector.mask)
    other = zeroed(run.model, keep)
    loss_fn(other, (X, Y)).backward()
    for name, parameter in other.named_parameters():
        mine = own[name]
        assert mine is not None and parameter.grad is not None
        change = keep.change_of(name)
        torch.testing.assert_close(change.of(mine), change.of_gradient(parameter.grad))


def test_the_weights_are_put_back() -> None:
    run = Run().step(16)
    before, values = dict(run.model.named_parameters()), run.parameters()
    with pytest.raises(ValueError, match="stop"), run.method.masked():
        assert any(one is not before[name] for name, one in run.model.named_parameters())
        raise ValueError("stop")
    assert all(one is before[name] for name, one in run.model.named_parameters())
    assert all(torch.equal(value, values[name]) for name, value in run.parameters().items())


def test_a_step_inside_of_the_block_is_refused() -> None:
    """The controller would learn, and weights be projected, where the mask is in the weights already."""
    run = Run().step(16)
    with (
        pytest.raises(MethodError, match=r"^ATO takes a step inside of `with method.masked\(\):`"),
        run.method.masked(),
    ):
        run.optimizer.step()
    assert run.method.step == 16


def test_tied_weights_are_put_back_in_all_their_places() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.one, self.other = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.other.weight = self.one.weight
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.other(self.one(self.first(x))))
            return found

    torch.manual_seed(0)
    model = Twice()
    space = niwaki.search_space(model, X[:2])
    gates, values = UnitGates(space), torch.rand(space.num_units)
    expected = gates.value(values, lambda model: model(X))
    with gates.applied(values):
        assert model.one.weight is model.other.weight and not isinstance(model.one.weight, nn.Parameter)
        torch.testing.assert_close(model(X), expected)
    assert model.one.weight is model.other.weight and isinstance(model.one.weight, nn.Parameter)


def test_what_has_left_needs_no_mask() -> None:
    run = Run(shrink=True).step(SCHEDULE.until + 12)
    assert not run.method.units.live.here.all()
    plain = outputs(run.model)
    with run.method.masked() as model:
        assert torch.equal(outputs(model), plain)
