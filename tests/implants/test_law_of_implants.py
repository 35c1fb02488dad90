"""The cut network equals the dense one whose implanted units have the implant's weights: outputs, gradients, costs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from implanted import Blocks, Residual, blocks_space, images, random_plan, randomised
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import Implant, ReplacingEdit
from niwaki.core.implanted import Implanted
from niwaki.core.plan import Plan, smaller_shapes, tensor_shapes
from niwaki.errors import PlanError
from niwaki.implants import ImplantLayers, hap, implanted
from niwaki.implants.hap import planned_with
from niwaki.surgery.zero import masked, zeroed


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    loss = model(x).square().sum()
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(loss, [x, *model.parameters()])
    return dict(zip(["", *names], found, strict=True))


def near(a: Tensor, b: Tensor, tolerance: float = 1e-10, scale: float | None = None) -> bool:
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance * (scale or float(b.abs().max()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_cut_is_masked(seed: int, training: bool) -> None:
    network, layers = blocks_space()
    plan, x = random_plan(layers, seed), images()
    assert len(plan.edits_of(Implant)) == 5
    small, reference = niwaki.cut(network.train(training), plan), zeroed(network, plan)
    assert near(small(x), reference(x))
    ours, theirs = gradients(small, x), gradients(reference, x)
    assert near(ours.pop(""), theirs.pop(""), 1e-8)
    scale = max(float(gradient.abs().max()) for gradient in theirs.values())  # some are zero before a norm
    parts = {
        f"{edit.module}.{name}": (f"{edit.module}.{part.old}", part.of)
        for edit in plan.edits
        if isinstance(edit, ReplacingEdit)
        for name, part in edit.parts().items()
    }
    for name, gradient in ours.items():
        old, of = parts.get(name, (name, lambda gradient: gradient))
        assert near(gradient, of(plan.change_of(old).of_gradient(theirs[old])), 1e-8, scale), name
    assert niwaki.check(network, plan, x).holds


@pytest.mark.parametrize("seed", range(2))
def test_costs_and_shapes_are_those_of_the_cut_network(seed: int) -> None:
    network, layers = blocks_space()
    plan, x = random_plan(layers, seed), images()
    small = niwaki.cut(network, plan)
    cost, found = layers.space.cost(plan), niwaki.search_space(small, x).cost()
    assert (cost.params, cost.macs) == (found.params, found.macs)
    assert cost.memory == sum(t.numel() * t.itemsize for t in (*small.parameters(), *small.buffers()))
    assert cost.activations == 0
    assert tensor_shapes(small) == smaller_shapes(plan)
    assert plan.provenance["kept"] == {"params": cost.params, "macs": cost.macs, "memory": cost.memory}


def test_outputs_keep_their_order() -> None:
    """And the masked network has the kernel's centre, zeros around it, and is restored."""
    network, layers = blocks_space()
    plan = random_plan(layers, 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    edit = next(edit for edit in plan.edits_of(Implant) if edit.module == "blocks.0.first")
    dense = network.blocks[0].first.weight.detach().clone()
    with masked(network, plan):
        weight = network.blocks[0].first.weight.detach().clone()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    kept = list(plan.change_of("blocks.0.first.weight").edits[1].kept)
    for row in edit.slim:
        assert torch.equal(weight[row][kept, 2, 2], dense[row][kept, 2, 2])
        assert weight[row].count_nonzero() == len(kept)
    small = niwaki.cut(network, plan)
    rows = list(edit.kept)
    slim = [row in set(edit.slim) for row in rows]
    layer = small.blocks[0].first
    assert isinstance(layer, Implanted)
    x = images()[:, :1].expand(-1, len(kept), -1, -1)
    expected = torch.nn.functional.conv2d(x, weight[rows][:, kept], network.blocks[0].first.bias[rows], 1, 2)
    assert near(layer(x), expected) and sum(layer.slim_runs) == sum(slim)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d])
def test_other_dimensions_without_batches(kind: type[nn.Module]) -> None:
    dims = {nn.Conv1d: 1, nn.Conv3d: 3}[kind]
    network = randomised(nn.Sequential(kind(2, 6, 3, padding=1), nn.ReLU(), kind(6, 2, 1)))
    x = torch.randn(2, *(5,) * dims).double()
    layers = ImplantLayers.of(niwaki.search_space(network, x))
    plan = random_plan(layers, 0)
    small = niwaki.cut(network, plan)
    assert isinstance(small[0], Implanted) and near(small(x), zeroed(network, plan)(x))


def test_files(tmp_path: Path) -> None:
    network, layers = blocks_space()
    plan, x = random_plan(layers, 1), images()
    again = Plan.from_json(plan.to_json())
    assert again.edits == plan.edits and "implant: stem computes" in str(again)
    small = niwaki.cut(network, plan)
    with torch.no_grad():  # as after training
        small.stem.slim.weight.mul_(2)
    niwaki.save(small, tmp_path)
    loaded = niwaki.load(Blocks().double(), tmp_path).eval()
    assert torch.equal(loaded(x), small(x))
    torch.save(small.state_dict(), file := io.BytesIO())
    file.seek(0)
    loaded.load_state_dict(torch.load(file))


def test_pruned_again(tmp_path: Path) -> None:
    """The plan that both cuts make together is one for the dense network."""
    network, layers = blocks_space()
    x = images()
    small = niwaki.cut(network, random_plan(layers, 2))
    space = niwaki.search_space(small, x)
    assert {"stem.slim", "blocks.0.first.whole"} & {group.name for group in space.groups}
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.6))
    assert niwaki.check(small, plan, x).holds
    smaller = niwaki.cut(small, plan)
    niwaki.save(smaller, tmp_path)
    assert torch.equal(niwaki.load(Blocks().double(), tmp_path).eval()(x), smaller(x))
    whole = Plan.from_json((tmp_path / "plan.json").read_text())
    assert near(niwaki.cut(network, whole)(x), smaller(x)) and niwaki.check(network, whole, x).holds


def test_exported_networks_are_plain_torch() -> None:
    network, layers = blocks_space()
    x = images()
    small = niwaki.cut(network, random_plan(layers, 4))
    program = torch.export.export(small, (x,))
    assert near(program.module()(x), small(x), 1e-14)
    assert {node.target.namespace for node in program.graph.nodes if hasattr(node.target, "namespace")} == {"aten"}
    space = niwaki.search_space(program)
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(params=0.7))
    assert niwaki.check(program, plan).holds


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_shrinking_in_place_carries_the_optimizer(optimizer: type[torch.optim.Optimizer]) -> None:
    """It goes on as an optimizer of the cut network with the same state does."""
    network, layers = blocks_space()
    plan, x = random_plan(layers, 5), images()
    extra = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    with torch.no_grad():
        for name, value in zeroed(network, plan).state_dict().items():
            network.state_dict()[name].copy_(value)
    step = optimizer(network.parameters(), lr=0.01, **extra)
    network(x).square().sum().backward()
    step.step()
    before = {name: dict(step.state[value]) for name, value in network.named_parameters()}
    gradient = network.blocks[1].first.weight.grad.clone()
    expected = niwaki.cut(network, plan)
    niwaki.shrink(network, plan, step)
    assert near(network(x), expected(x))
    held = [id(value) for group in step.param_groups for value in group["params"]]
    assert sorted(held) == sorted(map(id, network.parameters()))
    key = "momentum_buffer" if extra else "exp_avg"
    edit = next(edit for edit in plan.edits_of(Implant) if edit.module == "blocks.1.first")
    old = plan.change_of(edit.weight).of(before[edit.weight][key])
    new = step.state[network.blocks[1].first.slim.weight][key]
    assert near(new, edit.parts()["slim.weight"].of(old), 1e-14)
    gradient = plan.change_of(edit.weight).of_gradient(gradient)
    assert torch.equal(network.blocks[1].first.slim.weight.grad, edit.parts()["slim.weight"].of(gradient))
    network(x).square().sum().backward()
    step.step()


def test_the_same_plan_twice_is_done() -> None:
    network, layers = blocks_space()
    plan, x = random_plan(layers, 6), images()
    small = niwaki.cut(network, plan)
    assert torch.equal(niwaki.cut(small, plan)(x), small(x))
    other = random_plan(layers, 7)
    with pytest.raises(PlanError, match=r"have left this model already|wants something else of"):
        niwaki.cut(small, other)


def test_after_a_cut_without_implants() -> None:
    """A plan that implants, for the dense network, in one that has been cut already: what it still wants is done."""
    network, layers = blocks_space()
    plan, x = random_plan(layers, 8), images()
    keep = layers.space.keep_of(plan)
    first = niwaki.cut(network, layers.space.plan(keep))
    both = niwaki.cut(first, plan)
    assert torch.equal(both(x), niwaki.cut(network, plan)(x))


def test_hap_takes_the_lowest_and_implants_the_best_of_them() -> None:
    network, layers = blocks_space()
    space = layers.space
    rng = np.random.default_rng(0)
    values = rng.random(space.num_units)
    values[space.groups[0].numbers] *= 0.01  # below every threshold
    scores = niwaki.score(space, lambda space: values)
    plan = hap(space, scores, 0.5, implants=0.2, least=0.1)
    keep, slim = space.keep_of(plan), np.zeros(space.num_units, dtype=bool)
    for edit in plan.edits_of(Implant):
        layer = next(layer for layer in layers.layers if layer.module == edit.module)
        slim[np.unique(layer.units[np.asarray(edit.slim)])] = True
    goes = slim | ~keep
    first = space.groups[0]
    assert (~goes)[first.numbers].sum() == max(1, int(np.ceil(0.1 * first.units)))
    assert (~goes)[first.first + values[first.numbers].argmax()]
    others = np.ones(space.num_units, dtype=bool)
    others[first.numbers] = False
    assert values[others & goes].max() < values[others & ~goes].min()
    assert slim.sum() == int(0.2 * goes.sum()) and (slim <= layers.can).all()
    assert values[slim].min() >= values[goes & ~slim & layers.can].max()
    assert niwaki.check(network, plan, images()).holds


def test_implants_of_another_plan() -> None:
    network, layers = blocks_space()
    space = layers.space
    scores = niwaki.score(space, "magnitude")
    plan = niwaki.choose(space, scores, niwaki.Budget(macs=0.4))
    more = implanted(space, plan, scores, 0.25)
    assert space.keep_of(plan).sum() < space.keep_of(more).sum()
    assert space.cost(plan).macs < space.cost(more).macs < space.cost().macs
    assert niwaki.check(network, more, images()).holds


def test_the_dense_space_does_not_know_the_new_layers() -> None:
    network, layers = blocks_space()
    plan = random_plan(layers, 0)
    with pytest.raises(PlanError, match=r"another layer in the place of '.*', which this search space knows nothing"):
        niwaki.reindex(layers.space, plan, niwaki.cut(network, plan))


@pytest.mark.parametrize("seed", range(2))
def test_with_structures_that_are_erased(seed: int, tmp_path: Path) -> None:
    """Layers behind an erased one have other numbers, and so have their implants."""
    network = randomised(Residual())
    x = images()
    layers = ImplantLayers.of(niwaki.search_space(network, x, erase=True))
    space, rng = layers.space, np.random.default_rng(seed)
    state = rng.integers(0, 3, space.num_units)
    state[[group.first for group in space.groups]] = 0
    structures = [group for group in space.groups if group.structure is not None]
    gone = structures[seed % len(structures)]
    state[gone.first] = 2
    keep = space.keep_of(space.plan(state < 2))
    slim = (state == 1) & layers.can & keep
    plan = planned_with(layers, keep, slim)
    small = niwaki.cut(network, plan)
    assert len(small.blocks) == 3 and plan.edits_of(Implant)
    assert near(small(x), zeroed(network, plan)(x)) and niwaki.check(network, plan, x).holds
    assert tensor_shapes(small) == smaller_shapes(plan)
    assert space.cost(plan).macs == niwaki.search_space(small, x).cost().macs
    niwaki.save(small, tmp_path)
    assert torch.equal(niwaki.load(Residual().double(), tmp_path).eval()(x), small(x))
    again = niwaki.search_space(small, x)
    more = niwaki.choose(again, niwaki.score(again, "magnitude"), niwaki.Budget(macs=0.7))
    niwaki.save(smaller := niwaki.cut(small, more), tmp_path)
    assert torch.equal(niwaki.load(Residual().double(), tmp_path).eval()(x), smaller(x))
