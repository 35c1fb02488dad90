"""Branches that choose what they read of a stream, too: the law, costs, files, learnt masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from replacements import NETWORKS, Case
from torch import nn

import niwaki
from niwaki.core.compose import composed
from niwaki.core.edits import Gather, Implant, Scatter
from niwaki.core.gathered import Gathered
from niwaki.core.plan import Plan
from niwaki.errors import BudgetError, MethodError, PlanError
from niwaki.implants import ImplantLayers
from niwaki.networks.small import ResNet
from niwaki.per_unit.unit_gates import UnitGates
from niwaki.unions import UnionSpace, Writers, choose, hap, union_plan

BUDGET = niwaki.Budget(params=0.6)


@pytest.fixture(scope="module")
def vision() -> tuple[Case, UnionSpace]:
    case = Case.of("vit")
    return case, UnionSpace.of(case.space, readers=True)


def random_plan(space: UnionSpace, seed: int) -> Plan:
    rng = np.random.default_rng(seed)
    keep = rng.random(space.num_units) < 0.7
    keep[[group.first for group in space.scored_space.groups]] = True
    return space.plan(keep)


@pytest.mark.parametrize("name", ["resnet", "vit"])  # benchmarks/replacements.py has more
def test_cut_is_masked(name: str) -> None:
    """Outputs and gradients; and costs are those of a new analysis of the cut network."""
    case = Case.of(name)
    space = UnionSpace.of(case.space, readers=True)
    plan = random_plan(space, 1)
    assert plan.edits_of(Scatter) and plan.edits_of(Gather)
    assert max(case.deviation(plan)) < 1e-11
    told, found = space.cost(plan), niwaki.search_space(niwaki.cut(case.network, plan), case.x, rehearse=False).cost()
    assert (told.params, told.macs, told.memory) == (found.params, found.macs, found.memory)


def test_who_reads(vision: tuple[Case, UnionSpace]) -> None:
    """The queries, keys and values of a branch read the same channels. A layer that no branch has reads all."""
    _, space = vision
    read = {reader.name: [path for path, _ in reader.layers] for reader in space.writers.readers}
    assert read["layers.0.mix"] == ["layers.0.query", "layers.0.key", "layers.0.value"]
    assert read["layers.1.down"] == ["layers.1.up"] and len(read) == 4
    assert space.writers.names[4] == "layers.0.mix (read)"
    resnet = Case.of("resnet")
    layers = [path for reader in Writers.of(resnet.space, True).readers for path, _ in reader.layers]
    assert layers == ["stages.0.0.conv1", "stages.0.1.conv1", "stages.1.1.conv1"]  # two branches share 1.0's input
    assert not Writers.of(resnet.space).readers


def test_erased_branches_and_implants(vision: tuple[Case, UnionSpace]) -> None:
    case, space = vision
    writers = space.writers
    keep = np.ones(case.space.num_units, dtype=bool)
    (gone,) = [group.first for group in case.space.groups if group.name == "layers.0.down (whole)"]
    keep[gone] = False
    masks = [np.arange(len(end.units)) % 2 == 0 for end in writers.ends]
    plan = union_plan(writers, keep, masks)
    assert "layers.0.up" not in {edit.module for edit in plan.edits_of(Gather)}
    assert max(case.deviation(plan)) < 1e-11
    masks[-1][:] = False
    with pytest.raises(PlanError, match="'layers.1.down' would read no channel that stays. Let it read one, or erase"):
        union_plan(writers, keep, masks)
    with pytest.raises(PlanError, match="for each of the 4 writers and 4 readers, in their order"):
        union_plan(writers, keep, masks[:4])
    layers = ImplantLayers.of(case.space, 2)
    slim = np.zeros(case.space.num_units, dtype=bool)
    hidden = next(group for group in case.space.groups if group.name == "layers.1.up")
    slim[hidden.first + 1 : hidden.first + 9] = True
    both = plan.with_edits(layers.edits(plan, slim))
    assert both.edits_of(Implant)
    with pytest.raises(PlanError, match=r"gathers inputs of 'layers.1.up', in whose place another edit puts a module"):
        niwaki.cut(case.network, both)


def test_saved_exported_pruned_again(vision: tuple[Case, UnionSpace], tmp_path: Path) -> None:
    case, space = vision
    plan = random_plan(space, 2)
    assert niwaki.Plan.from_json(plan.to_json()).edits == plan.edits
    small = niwaki.cut(case.network, plan)
    assert isinstance(small.get_submodule("layers.0.query"), Gathered)
    niwaki.save(small, tmp_path)
    torch.testing.assert_close(niwaki.load(NETWORKS["vit"]().double(), tmp_path).eval()(case.x), small(case.x))
    program = torch.export.export(small, (case.x,))
    torch.testing.assert_close(program.module()(case.x), small(case.x))
    again = niwaki.search_space(small, case.x)
    later = niwaki.choose(again, niwaki.score(again, "magnitude"), niwaki.Budget(params=0.7))
    assert niwaki.check(small, later, case.x).holds
    at_once = niwaki.cut(case.network, composed(plan, later))
    torch.testing.assert_close(at_once(case.x), niwaki.cut(small, later)(case.x))


@pytest.mark.parametrize("readers", [False, True])
def test_costs_of_gates_are_those_of_plans(vision: tuple[Case, UnionSpace], readers: bool) -> None:
    case = vision[0]
    space = UnionSpace.of(case.space, readers)
    gated = space.gated
    dense, found = space.cost(), gated.space.cost()
    assert (found.params, found.macs, found.memory) == (dense.params, dense.macs, dense.memory)
    mask = np.random.default_rng(3).random(gated.space.num_units) < 0.6
    mask[[group.first for group in gated.space.groups]] = True
    plan = space.plan(gated.keep(mask, space.num_units))
    told, found = space.cost(plan), gated.space.cost_of(mask)
    assert (found.params, found.macs, found.memory) == (told.params, told.macs, told.memory)
    alone = UnionSpace.of(Case.of("resnet").space, readers)  # channels that no branch writes leave the stream as well
    mask = np.zeros(alone.gated.space.num_units, dtype=bool)
    mask[[group.first for group in alone.gated.space.groups]] = True
    least = alone.cost(alone.plan(alone.gated.keep(mask, alone.num_units)))
    assert least.macs < alone.gated.space.cost_of(mask).macs


@pytest.mark.parametrize("readers", [False, True])
def test_masks_are_learnt(readers: bool) -> None:
    """The mask of the training is the network that is cut, scales included, within the budget."""
    torch.manual_seed(0)
    network = NETWORKS["vit"]().eval()
    x, y = torch.randn(16, 3, 9, 9), torch.randint(0, 4, (16,))
    space = UnionSpace.of(niwaki.search_space(network, x[:1], erase=True), readers)
    masks = niwaki.DDPMasks([(x, y)], nn.CrossEntropyLoss(), steps=12)
    plan = niwaki.choose(space, masks, niwaki.Budget(params=0.3))
    assert plan.edits_of(Scatter) and bool(plan.edits_of(Gather)) == readers
    assert 0.27 * space.cost().params < space.cost(plan).params <= 0.3 * space.cost().params
    kept = space.gated.keep(np.zeros(space.gated.space.num_units, bool), space.num_units)
    assert kept.sum() == space.num_units - space.gated.space.num_units
    told = plan.provenance
    assert told["streams"] == "union" and told["masks"]["name"] == "ddp" and told["kept"]["params"] > 0
    before = network(x)
    small = niwaki.cut(masks.fold_(), plan)
    assert sum(one.numel() for one in small.parameters()) == space.cost(plan).params
    assert niwaki.check(network, plan, x[:2]).holds and not torch.equal(network(x), before)


def test_the_mask_of_the_training_is_what_is_cut() -> None:
    """The network under the learnt scales, and without the channels that leave, computes what the cut one does."""
    torch.manual_seed(0)
    network = NETWORKS["resnet"]().double().eval()
    x, y = torch.randn(8, 3, 9, 8).double(), torch.randint(0, 4, (8,))
    space = UnionSpace.of(niwaki.search_space(network, x[:1], erase=True), readers=True)
    gated, masks = space.gated, niwaki.DDPMasks([(x, y)], nn.CrossEntropyLoss(), steps=8)
    keep = masks.learn(gated.space, niwaki.Budget(macs=0.4))
    gates = masks.scales * torch.from_numpy(keep)
    assert not keep.all() and not torch.equal(masks.scales, torch.ones_like(masks.scales))
    under = UnitGates(gated.space).value(gates.double(), lambda model: model(x))
    plan = space.plan(gated.keep(keep, space.num_units))
    torch.testing.assert_close(niwaki.cut(masks.fold_(), plan)(x), under, rtol=1e-6, atol=1e-8)  # scales are float32


def test_exported_to_onnx(tmp_path: Path) -> None:
    """With implants, branches that write some channels and such that read some: `niwaki.export` runs the file."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    case = Case.of("resnet", readers=True)
    case.network.float()
    plan = case.random_plan(4, erase=False, union=True, implants=True)
    assert all(plan.edits_of(kind) for kind in (Scatter, Gather, Implant))
    small = niwaki.cut(case.network, plan)
    assert niwaki.export(small, case.x.float(), tmp_path / "small.onnx") is not None
    assert (tmp_path / "small.onnx").stat().st_size > 0


def test_masks_that_cannot_be_learnt() -> None:
    network, x = ResNet(4, 1, (8, 8), (8,), 2), torch.randn(2, 1, 8, 8)
    space = niwaki.search_space(network, x, streams="union")
    masks = niwaki.DDPMasks([(x, torch.zeros(2, dtype=torch.long))], nn.CrossEntropyLoss(), steps=4)
    with pytest.raises(BudgetError, match="that is learnt follows limits in macs, params, units, memory, not in"):
        niwaki.choose(space, masks, niwaki.Budget(latency=0.5))
    with pytest.raises(BudgetError, match="compare= is not for union streams"):
        niwaki.choose(space, masks, BUDGET, compare="group")


def test_scores_choose_readers(vision: tuple[Case, UnionSpace]) -> None:
    case, space = vision
    scores = niwaki.score(space, "magnitude")
    plan = niwaki.choose(space, scores, BUDGET)
    assert plan.edits_of(Gather) and space.cost(plan).params <= 0.6 * space.cost().params
    assert plan.to_json() == choose(space.writers, scores, BUDGET).to_json()
    assert niwaki.check(case.network, hap(space.writers, scores, 0.3), case.x).holds


def test_the_scored_space_is_only_scored(vision: tuple[Case, UnionSpace]) -> None:
    """Its costs are not those of unions, nor are activations and absences those of single channels."""
    scored = vision[1].scored_space
    scores = niwaki.score(scored, "magnitude")
    told = "space is the scored_space of union streams, in which the channels of branches are units that niwaki.score"
    for call in (
        lambda: niwaki.choose(scored, scores, BUDGET),
        lambda: niwaki.timed(scored, vision[0].x),
        lambda: Writers.of(scored),
        lambda: niwaki.choose_iteratively(scored, "magnitude", BUDGET),
    ):
        with pytest.raises(MethodError, match=told):
            call()
    for name in ("cka", "activation"):
        with pytest.raises(MethodError, match=f"The criterion '{name}' does not tell what each branch writes"):
            niwaki.score(scored, name, [(vision[0].x, torch.zeros(2, dtype=torch.long))], nn.CrossEntropyLoss())
