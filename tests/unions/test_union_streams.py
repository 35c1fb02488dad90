"""Every branch of a stream keeps channels of its own: the law, costs, files, choices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import MLP, mlp_space
from implanted import Blocks, Residual, images, randomised
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import Implant, Scatter
from niwaki.core.plan import Plan, smaller_shapes, tensor_shapes
from niwaki.core.scattered import Scattered
from niwaki.errors import BudgetError, PlanError
from niwaki.implants import ImplantLayers
from niwaki.networks.small import ResNet
from niwaki.surgery.zero import zeroed
from niwaki.unions import Writers, choose, hap, union_plan


class Transformer(nn.Module):
    """Two layers before their norms, RMSNorm-free: a stream of tokens that linear layers write."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.layers = nn.ModuleList(nn.ModuleList([nn.Linear(12, 16), nn.Linear(16, 12)]) for _ in range(2))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for up, down in self.layers:
            x = x + down(up(x).relu())
        return self.head(x)


class NormedTokens(nn.Module):
    """A branch whose BatchNorm has the channels in front of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.norm = nn.Linear(5, 12), nn.Linear(12, 12), nn.BatchNorm1d(12)
        self.other, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.other(x.relu())
        x = x + self.norm(self.inner(x.relu()).transpose(1, 2)).transpose(1, 2)
        return self.head(x)


NETS = {
    "normed tokens": (NormedTokens, torch.randn(2, 4, 5).double()),
    "blocks": (Blocks, images()),
    "residual": (Residual, images()),
    "resnet": (lambda: ResNet(4, 1, (8, 8), (8, 12), 2), torch.randn(2, 1, 8, 8).double()),
    "tokens": (Transformer, torch.randn(2, 4, 5).double()),
}


def writers_of(net: str) -> tuple[nn.Module, Writers, Tensor]:
    make, x = NETS[net]
    network = randomised(make())
    return network, Writers.of(niwaki.search_space(network, x, erase=True)), x


def random_union(writers: Writers, seed: int) -> Plan:
    space, rng = writers.space, np.random.default_rng(seed)
    keep = rng.random(space.num_units) < 0.8
    keep[[group.first for group in space.groups]] = True
    writes = [rng.random(len(writer.units)) < 0.6 for writer in writers.writers]
    for writer, mask in zip(writers.writers, writes, strict=True):
        mask[writer.units == space.groups[writer.group].first] = True
    return union_plan(writers, keep, writes, {"seed": seed})


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("net", NETS)
def test_cut_is_masked(net: str, seed: int) -> None:
    """Outputs and the gradient by the input, in eval and train mode; shapes and costs are those of the cut network."""
    network, writers, x = writers_of(net)
    plan = random_union(writers, seed)
    assert plan.edits_of(Scatter) and len(writers.writers) >= 2
    for training in (False, True):
        small, reference = niwaki.cut(network.train(training), plan), zeroed(network, plan)
        given = x.clone().requires_grad_()
        outputs = small(given), reference(given)
        torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)
        slopes = [torch.autograd.grad(output.square().sum(), given)[0] for output in outputs]
        torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-10)
    small = niwaki.cut(network.eval(), plan)
    assert niwaki.check(network, plan, x).holds
    assert tensor_shapes(small) == smaller_shapes(plan)
    cost, found = writers.space.cost(plan), niwaki.search_space(small, x).cost()
    assert (cost.params, cost.macs, cost.memory) == (found.params, found.macs, found.memory)


def test_only_its_own_weights_are_zero() -> None:
    """A reader keeps a channel that another branch writes, and the numbers of modules follow."""
    network, writers, x = writers_of("residual")
    every = np.ones(writers.space.num_units, dtype=bool)
    writes = [np.ones(8, dtype=bool) for _ in writers.writers]
    writes[1][[2, 5]] = False
    plan = union_plan(writers, every, writes)
    small = niwaki.cut(network, plan)
    layer = small.blocks[1].second
    assert isinstance(layer, Scattered) and (layer.runs, layer.gaps) == ((2, 2, 2), (1, 1, 0))
    assert layer.layer.out_channels == 6 and small.blocks[2].first.in_channels == 8
    with torch.no_grad():
        network.blocks[1].second.weight[[2, 5]] = 0
        network.blocks[1].second.bias[[2, 5]] = 0
    torch.testing.assert_close(small(x), network(x))


@pytest.mark.parametrize("net", ["resnet", "tokens"])
def test_saved_exported_and_pruned_again(net: str, tmp_path: Path) -> None:
    network, writers, x = writers_of(net)
    plan = random_union(writers, 5)
    assert Plan.from_json(plan.to_json()).edits == plan.edits
    small = niwaki.cut(network, plan)
    torch.testing.assert_close(torch.export.export(small, (x,)).module()(x), small(x))
    space = niwaki.search_space(small, x)
    more = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.7))
    assert niwaki.check(small, more, x).holds
    smaller = niwaki.cut(small, more)
    niwaki.save(smaller, tmp_path)
    torch.testing.assert_close(niwaki.load(NETS[net][0]().double(), tmp_path).eval()(x), smaller(x))
    whole = Plan.from_json((tmp_path / "plan.json").read_text())
    assert niwaki.check(network, whole, x).holds and sum(plan.edits_of(Scatter)[0].gaps) > 0
    assert torch.equal(niwaki.cut(small, plan)(x), small(x))
    with pytest.raises(PlanError, match=r"have left this model already|wants something else of"):
        niwaki.cut(small, random_union(writers, 6))


def test_with_implants() -> None:
    """A branch's kernel can have implants among the channels that it writes, before a norm that scatters."""
    network, writers, x = writers_of("blocks")
    plan = random_union(writers, 1)
    layers = ImplantLayers.of(writers.space)
    slim = layers.can & writers.space.keep_of(plan) & (np.random.default_rng(0).random(len(layers.can)) < 0.4)
    slim[[group.first for group in writers.space.groups]] = False
    both = plan.with_edits(layers.edits(plan, slim))
    assert both.edits_of(Implant) and niwaki.check(network, both, x).holds
    small = niwaki.cut(network, both)
    torch.testing.assert_close(small(x), zeroed(network, both)(x), rtol=1e-10, atol=1e-12)
    cost, found = writers.space.cost(both), niwaki.search_space(small, x).cost()
    assert (cost.params, cost.macs) == (found.params, found.macs)


def test_scores_of_writers_are_those_of_their_weights() -> None:
    network, writers, _ = writers_of("resnet")
    values, own = writers.split(niwaki.score(writers.scored_space, "magnitude").values)
    modules = dict(network.named_modules())
    for writer, found in zip(writers.writers, own, strict=True):
        square = torch.zeros(len(writer.units), dtype=torch.float64)
        for place in writer.dims:
            if place.parameter:
                path, _, leaf = place.tensor.rpartition(".")
                square += (
                    getattr(modules[path], leaf).detach().flatten(1).square().sum(1)
                    if leaf == "weight" and (getattr(modules[path], leaf).dim() > 1)
                    else getattr(modules[path], leaf).detach().square()
                )
        np.testing.assert_allclose(found, square.sqrt().numpy(), rtol=1e-10)
    alone, width = writers.alone(), sum(group.units for group in writers.space.width_groups)
    assert alone.any() and (values[alone] == 0).all() and (values[:width][~alone[:width]] > 0).all()


def test_hap_has_one_threshold_for_all_channels() -> None:
    network, writers, x = writers_of("resnet")
    scores = niwaki.score(writers.scored_space, "magnitude")
    plan = hap(writers, scores, 0.5, least=0.1)
    space = writers.space
    _, own = writers.split(scores.values)
    kept = {edit.module: edit for edit in plan.edits_of(Scatter)}
    written = [
        sum(kept[w.module].runs) if w.module in kept else int(space.keep_of(plan)[w.units].sum())
        for w in writers.writers
    ]
    assert all(number >= max(1, int(np.ceil(0.1 * len(values)))) for number, values in zip(written, own, strict=True))
    assert len(set(written)) > 1 and space.cost(plan).macs < space.cost().macs
    assert niwaki.check(network, plan, x).holds and plan.provenance["streams"] == "union"


def test_budgets() -> None:
    network, writers, x = writers_of("resnet")
    scores = niwaki.score(writers.scored_space, "magnitude")
    plan, dense = choose(writers, scores, niwaki.Budget(macs=0.6, params=0.55)), writers.space.cost()
    cost = writers.space.cost(plan)
    assert cost.macs <= 0.6 * dense.macs and 0.4 * dense.params < cost.params <= 0.55 * dense.params
    assert plan.provenance["kept"]["macs"] == cost.macs and niwaki.check(network, plan, x).holds
    with pytest.raises(BudgetError, match=r"cannot be met: with the fraction 0\.5 of every group and branch"):
        choose(writers, scores, niwaki.Budget(macs=0.1), least=0.5)
    for budget in (niwaki.Budget(units=0.5), niwaki.Budget(macs=0.5, round_to=4)):
        with pytest.raises(BudgetError, match="For union streams a budget limits macs, params, memory"):
            choose(writers, scores, budget)


def test_what_makes_no_plan_is_a_sentence() -> None:
    _, writers, _ = writers_of("residual")
    every = np.ones(writers.space.num_units, dtype=bool)
    whole = [np.ones(8, dtype=bool) for _ in writers.writers]
    with pytest.raises(PlanError, match="'blocks.1' would write no channel that stays. Let it write one, or erase it"):
        union_plan(writers, every, [whole[0], ~whole[1], *whole[2:]])
    with pytest.raises(PlanError, match="writes must be a mask of its channels for each of the 4 writers"):
        union_plan(writers, every, whole[:2])
    with pytest.raises(PlanError, match=r"niwaki.search_space\(..., erase=True\)"):
        Writers.of(mlp_space(MLP()))
    with pytest.raises(BudgetError, match="removed=1.5 must be a fraction from 0 to 1"):
        hap(writers, niwaki.score(writers.scored_space, "magnitude"), 1.5)
    with pytest.raises(BudgetError, match="scores must be of writers.scored_space, for"):
        hap(writers, niwaki.score(writers.space, "magnitude"))
    plan = union_plan(writers, every, [whole[0], np.arange(8) > 2, *whole[2:]])
    (edit,) = plan.edits_of(Scatter)
    for wrong, why in (
        (
            Scatter(edit.module, (0, 4), (3, 0), edit.dim, edit.tensors),
            "scatters outputs of 'blocks.1.second' that are others",
        ),
        (
            Scatter(edit.module, edit.runs, edit.gaps, edit.dim, (("weight", (5, 6, 5, 4)),)),
            "'weight' has another shape",
        ),
        (Scatter("nowhere", edit.runs, edit.gaps, edit.dim, ()), "there is no such module"),
    ):
        others = tuple(one for one in plan.edits if one is not edit)
        with pytest.raises(PlanError, match=why):
            niwaki.cut(writers.space.model, Plan(plan.kept, plan.units, plan.shapes, (*others, wrong)))
