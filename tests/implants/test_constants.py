"""Experts that return their mean: the law, files, costs, a second cut, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mixtures import EXPERTS, WIDTH, Around, Listed, Stacked
from torch import Tensor, nn

import niwaki
from niwaki.core.constant import Constant
from niwaki.core.edits import MakeConstant
from niwaki.core.plan import Plan
from niwaki.errors import BudgetError, MethodError, PlanError
from niwaki.implants import constant_experts
from niwaki.surgery.history import plan_of
from niwaki.surgery.zero import masked


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


@pytest.fixture(scope="module")
def space() -> niwaki.SearchSpace:
    torch.manual_seed(0)
    model = Around(Listed(), Listed(k=1)).double().eval()
    return niwaki.search_space(model, torch.randn(5, 3, dtype=torch.double), erase=True)


BATCHES = [torch.randn(n, 3, dtype=torch.double) for n in (60, 40)]


def planned(space: niwaki.SearchSpace, experts: float = 0.5) -> Plan:
    return constant_experts(space, niwaki.score(space, "reap", BATCHES, loss), BATCHES, loss, experts)


def test_the_constant_is_the_mean_over_its_tokens(space: niwaki.SearchSpace) -> None:
    plan = planned(space)
    edits = plan.edits_of(MakeConstant)
    assert [sum(edit.module.startswith(f"layers.{n}.") for edit in edits) for n in range(2)] == [EXPERTS // 2] * 2
    edit = next(one for one in edits if one.module.startswith("layers.0."))
    mixture, number = space.model.layers[0], int(edit.module.rpartition(".")[2])
    with torch.no_grad():
        x = torch.tanh(space.model.start(torch.cat(BATCHES)))
        chosen = (mixture.choice(mixture.gate(x))[1] == number).any(1)
        expected = mixture.experts[number](x[chosen]).mean(0)
    torch.testing.assert_close(torch.tensor(edit.value, dtype=torch.double), expected, rtol=1e-7, atol=1e-9)


def test_the_fraction_is_that_of_the_decimal_number() -> None:
    """0.58 * 50 is 28.999999999999996 in floating point."""
    torch.manual_seed(0)
    many = niwaki.search_space(Around(Listed(k=1, experts=50)), torch.randn(5, 3), erase=True)
    batches = [torch.randn(20, 3)]
    plan = constant_experts(many, niwaki.score(many, "reap", batches, loss), batches, loss, 0.58)
    assert len(plan.edits_of(MakeConstant)) == 29


def test_the_cut_is_the_masked_network(space: niwaki.SearchSpace, tmp_path: Path) -> None:
    model, plan, x = space.model, planned(space), BATCHES[1]
    small = niwaki.cut(model, plan)
    with masked(model, plan):
        reference = model(x).detach().clone()
    torch.testing.assert_close(small(x), reference, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(model(x), reference) and niwaki.check(model, plan, x).holds
    assert sum(isinstance(module, Constant) for module in small.modules()) == EXPERTS
    assert not any(module.training for module in small.modules())  # as the model is
    assert space.cost(plan).params == sum(p.numel() for p in small.parameters())
    held = sum(t.numel() * t.itemsize for t in (*small.parameters(), *small.buffers()))
    assert space.cost(plan).memory == held
    assert Plan.from_json(plan.to_json()).edits == plan.edits and "layers.0.experts" in str(plan)
    niwaki.save(small, tmp_path / "out")
    again = niwaki.load(Around(Listed(), Listed(k=1)).double().eval(), tmp_path / "out")
    assert torch.equal(again(x), small(x))


def test_it_can_be_trained_and_pruned_again(space: niwaki.SearchSpace) -> None:
    small, x = niwaki.cut(space.model, planned(space)), BATCHES[1]
    loss(small, x).backward()
    rest = niwaki.search_space(small, x)
    plan = niwaki.choose(rest, niwaki.score(rest, "magnitude"), niwaki.Budget(params=0.7))
    assert niwaki.check(small, plan, x).holds
    smaller = niwaki.cut(small, plan)
    values = [one.value for one in smaller.modules() if isinstance(one, Constant)]
    assert len(values) == EXPERTS and all(len(value) <= WIDTH for value in values)
    again = niwaki.cut(space.model, smaller_plan(smaller))
    torch.testing.assert_close(again(x), smaller(x))


def smaller_plan(model: nn.Module) -> Plan:
    """The plan that a cut network carries, from the dense one."""
    plan = plan_of(model)
    assert plan is not None
    return plan


def test_what_cannot_be_mapped_is_refused(space: niwaki.SearchSpace) -> None:
    scores = niwaki.score(space, "reap", BATCHES, loss)
    with pytest.raises(BudgetError, match="experts=1.0 must be a fraction from 0 to below 1"):
        constant_experts(space, scores, BATCHES, loss, 1.0)
    with pytest.raises(
        MethodError, match="No batch sent a token to any of the experts beside 'layers.0.experts..', so"
    ):
        constant_experts(space, scores, [], loss)
    broken = BATCHES[0].clone()
    broken[3] = float("nan")
    with pytest.raises(MethodError, match="The mean of what the expert 'layers.0.experts..' returns is not finite, so"):
        constant_experts(space, scores, [broken], loss, 0.75)
    stacked = niwaki.search_space(Around(Stacked()), torch.randn(5, 3), erase=True)
    batches = [torch.randn(9, 3)]
    with pytest.raises(PlanError, match="is a part of tensors that hold all experts, and no module of its own, so"):
        constant_experts(stacked, niwaki.score(stacked, "reap", batches, loss), batches, loss)
    plain = niwaki.search_space(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(1, 3))
    with pytest.raises(MethodError, match="There are no experts that a router chooses in this space: build it with"):
        constant_experts(plain, niwaki.score(plain, "magnitude"), batches, loss)
    with pytest.raises(PlanError, match="returns a constant in this network already. What has left cannot come back"):
        niwaki.cut(niwaki.cut(space.model, planned(space)), planned(space, 0.25))
