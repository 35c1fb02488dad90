"""Implants of linear layers and attention projections: two factors for all rows of a layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from implanted import Attention, Blocks, attention_space, blocks_space, images, random_plan, tokens

import niwaki
import niwaki.implants
from niwaki.core.edits import Implant
from niwaki.core.edits.implant import factors
from niwaki.core.implanted import Implanted
from niwaki.core.plan import Plan, smaller_shapes, tensor_shapes
from niwaki.errors import PlanError
from niwaki.implants import ImplantLayers, choose, hap
from niwaki.surgery.zero import zeroed


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rank", [1, 4])
def test_cut_is_masked(seed: int, rank: int) -> None:
    """Outputs, and the gradient by the input; costs are those of the cut network."""
    network, layers = attention_space(rank)
    plan, x = random_plan(layers, seed), tokens().requires_grad_()
    assert plan.edits_of(Implant)
    small, reference = niwaki.cut(network, plan), zeroed(network, plan)
    outputs = small(x), reference(x)
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)
    slopes = [torch.autograd.grad(output.square().sum(), x)[0] for output in outputs]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-10)
    assert niwaki.check(network, plan, tokens()).holds
    cost, found = layers.space.cost(plan), niwaki.search_space(small, tokens()).cost()
    assert (cost.params, cost.macs) == (found.params, found.macs)
    assert tensor_shapes(small) == smaller_shapes(plan)


def test_rows_stay_whole_where_factors_cost_more() -> None:
    _, layers = attention_space(rank=20)
    plan = random_plan(layers, 0)
    assert not plan.edits_of(Implant) and layers.space.cost(plan) == layers.space.cost_of(layers.space.keep_of(plan))


def test_saved_and_pruned_again(tmp_path: Path) -> None:
    """Ranks are units of the new network, and the plan of both cuts says how many are left."""
    network, layers = attention_space(4)
    x, plan = tokens(), random_plan(layers, 1)
    small = niwaki.cut(network, plan)
    edit = next(edit for edit in plan.edits_of(Implant) if isinstance(small.get_submodule(edit.module), Implanted))
    space = niwaki.search_space(small, x)
    ranks = next(group for group in space.groups if group.name == f"{edit.module}.slim.0")
    keep = np.random.default_rng(0).random(space.num_units) < 0.8
    keep[[group.first for group in space.groups]] = True
    keep[ranks.first + 1] = False
    more = space.plan(keep)
    assert niwaki.check(small, more, x).holds
    smaller = niwaki.cut(small, more)
    niwaki.save(smaller, tmp_path)
    assert torch.equal(niwaki.load(Attention().double(), tmp_path).eval()(x), smaller(x))
    whole = Plan.from_json((tmp_path / "plan.json").read_text())
    found = next(one for one in whole.edits_of(Implant) if one.module == edit.module)
    assert found.rank == keep[ranks.numbers].sum() < 4
    assert niwaki.check(network, whole, x).holds


def test_factors_are_the_best_and_can_learn() -> None:
    weight = torch.randn(7, 5, dtype=torch.float64)
    first, second = factors(weight, 2)
    values = torch.linalg.svdvals(weight)
    assert float((first @ second - weight).norm()) == pytest.approx(float(values[2:].norm()))
    again = factors(first @ second, 2)
    torch.testing.assert_close(again[0] @ again[1], first @ second)
    nothing = factors(torch.zeros(7, 5), 2)
    assert (nothing[0] == 0).all() and float(nothing[1].norm()) == pytest.approx(2**0.5)
    wide = factors(weight, 6)
    torch.testing.assert_close(wide[0] @ wide[1], weight)


def test_choices_with_ranks() -> None:
    network, layers = attention_space()
    space = layers.space
    with torch.no_grad():  # nearly of rank 3, as trained projections are
        for name in ("up", "middle"):
            layer = network.get_submodule(name)
            near = torch.mm(*factors(layer.weight, 3))
            layer.weight.copy_(near + 0.05 * (layer.weight - near))
    scores = niwaki.score(space, "magnitude")
    for plan in (
        choose(space, scores, niwaki.Budget(macs=0.5), rank=3),
        choose(space, scores, niwaki.Budget(macs=0.6), rank=3, implants=0.5),
        hap(space, scores, 0.6, implants=0.5, rank=3),
    ):
        assert plan.edits_of(Implant) and {edit.rank for edit in plan.edits_of(Implant)} == {3}
        assert niwaki.check(network, plan, tokens()).holds
    assert space.cost(plan).macs < space.cost().macs
    assert not choose(space, scores, niwaki.Budget(macs=0.6)).edits_of(Implant)


def test_ranks_that_are_none() -> None:
    _, layers = attention_space()
    for rank in (0, 2.5, True):
        with pytest.raises(PlanError, match=r"rank=.* must be a whole number, 1 or more, or None"):
            ImplantLayers.of(layers.space, rank)  # type: ignore[arg-type]
    refused = ImplantLayers.of(layers.space).refused
    assert set(refused.values()) == {"no kernel of more than one entry produces them"}


@pytest.mark.parametrize("net", ["kernels", "linear"])
def test_fitted_implants_are_nearer_to_what_they_replace(net: str) -> None:
    """Than centres and plain factors, on the data; the dense model is left alone, and the law holds of the copy."""
    network, layers = blocks_space() if net == "kernels" else attention_space()
    x = images(8).cumsum(3) if net == "kernels" else tokens(8) @ torch.randn(24, 24).double().triu()
    plan = random_plan(layers, 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    near = niwaki.implants.fitted(network, plan, [x[:4], x[4:]])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert niwaki.check(near, plan, x).holds
    whole = niwaki.cut(network, layers.space.plan(layers.space.keep_of(plan)))
    small = [niwaki.cut(one, plan) for one in (near, network)]
    for edit in plan.edits_of(Implant):
        seen: list[torch.Tensor] = []
        layer = whole.get_submodule(edit.module)
        handle = layer.register_forward_hook(lambda _, args, result, seen=seen: seen.extend((args[0], result)))
        whole(x)
        handle.remove()
        fit, plain = (
            float((one.get_submodule(edit.module)(seen[0]) - seen[1]).square().mean().detach()) for one in small
        )
        assert fit < 0.95 * plain


def test_implants_that_begin_at_zero() -> None:
    """Their outputs are their biases, and they learn."""
    for network, layers, x in ((*blocks_space(), images()), (*attention_space(), tokens())):
        plan = random_plan(layers, 4)
        small = niwaki.cut(niwaki.implants.zero_implants(network, plan), plan).train()
        edit = plan.edits_of(Implant)[0]
        last = small.get_submodule(edit.module).slim
        last = last if edit.rank is None else last[1]
        assert (last.weight == 0).all()
        small(x).square().sum().backward()
        assert last.weight.grad.abs().max() > 0


def test_a_plan_without_implants_is_refused() -> None:
    network = Blocks().double()
    plan = niwaki.search_space(network, images()).plan(np.ones(56, dtype=bool))
    with pytest.raises(PlanError, match="The plan has no implants. Make one with niwaki.implants.choose"):
        niwaki.implants.fitted(network, plan, [images()])


def test_layers_that_are_called_by_keyword_are_fitted() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Conv2d(1, 12, 3, padding=1), torch.nn.Conv2d(12, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.last(self.first(input=x).relu())
            return result

    torch.manual_seed(0)
    net, x = Net(), torch.randn(4, 1, 6, 6)
    space = niwaki.search_space(net, x)
    plan = niwaki.implants.hap(space, niwaki.score(space, "magnitude"), 0.5, implants=0.5)
    made = niwaki.implants.fitted(net, plan, [x])
    assert not torch.equal(made.first.weight, net.first.weight)  # type: ignore[union-attr]
    assert niwaki.check(made, plan, x).holds
