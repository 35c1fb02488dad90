"""Criteria of activations, curvature and norm scales, mixes of criteria, and the sets that units are compared in."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from handmade import MLP, ConvNet, conv_space, mlp_space, overlap_space
from handmade import Overlap as OverlapNet
from torch import Tensor, nn

import niwaki
from niwaki.core.isomorphic import classes_of
from niwaki.core.space import SearchSpace
from niwaki.criteria import normalise, score
from niwaki.criteria.curvature import curvature
from niwaki.criteria.products import ExactProducts
from niwaki.errors import MethodError, UnknownName
from niwaki.methods import HESSO, Schedule
from niwaki.per_unit.index import UnitIndex, unit_parameters
from niwaki.selection.budget import Budget


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def read_by_modules(model: nn.Module, readers: list[tuple[str, int]], batch: Tensor) -> list[Tensor]:
    """What modules read, as [units, samples, positions], by hooks; ``(name, positions per unit)``."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
        for name, _ in readers
    ]
    model.eval()
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    found = []
    for name, per in readers:
        x = seen[name]
        x = x.movedim(1, 0).flatten(2) if x.dim() == 4 else x.flatten(0, -2).T.unsqueeze(2)  # [positions, rows, place]
        found.append(x.unflatten(0, (-1, per)).transpose(1, 2).flatten(2))
    return found


READERS: dict[str, dict[str, list[tuple[str, int]]]] = {
    "mlp": {"first": [("b", 1)], "second": [("c", 1)]},
    "conv": {"stream": [("up", 1), ("mid", 1)], "hidden": [("down", 1)], "gated": [("head", 1)]},
}


@pytest.mark.parametrize("net", READERS)
def test_activations_are_what_the_readers_read(net: str) -> None:
    model = {"mlp": MLP, "conv": ConvNet}[net]().double()
    space = (mlp_space if net == "mlp" else conv_space)(model)  # type: ignore[arg-type]
    batches = [torch.randn(5, *((6,) if net == "mlp" else (1, 8, 8)), dtype=torch.double) for _ in range(2)]
    found = {name: score(space, name, batches, loss).values for name in ("activation", "energy")}
    for group in space.groups:
        reads = [read for batch in batches for read in read_by_modules(model, READERS[net][group.name], batch)]
        mean = torch.stack([read.abs().mean((1, 2)) for read in reads]).mean(0)
        nuclear = torch.stack([torch.linalg.matrix_norm(read, ord="nuc") for read in reads]).mean(0)
        np.testing.assert_allclose(found["activation"][group.numbers], mean, rtol=1e-12)
        np.testing.assert_allclose(found["energy"][group.numbers], nuclear, rtol=1e-9)


def test_activations_of_any_layout() -> None:
    """Flattened feature maps, heads in a fused projection, and tokens: no layer is known by name."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 6, 3)
            self.into = nn.Linear(6 * 9, 16)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
            self.out = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.into(torch.relu(self.conv(x)).flatten(1)).unsqueeze(1).expand(-1, 3, -1)
            return self.out(self.attention(x, x, x, need_weights=False)[0]).mean(1)

    torch.manual_seed(0)
    model = Tokens().double()
    x = torch.randn(4, 1, 5, 5, dtype=torch.double)
    space = niwaki.search_space(model, x)
    units = next(group for group in space.groups if group.name == "conv")
    with torch.no_grad():
        maps = torch.relu(model.conv(x)).flatten(2).transpose(0, 1)  # [channel, sample, place]
    found = score(space, {"activation": 1.0, "energy": 0.0}, [x], loss, compare="space").values[units.numbers]
    assert np.corrcoef(found, maps.abs().mean((1, 2)))[0, 1] > 1 - 1e-12
    assert any("attention" in group.name for group in space.groups)
    energy = score(space, "energy", [x], loss).values[units.numbers]
    np.testing.assert_allclose(energy, torch.linalg.matrix_norm(maps, ord="nuc"), rtol=1e-9)


def test_a_space_without_units_has_no_scores() -> None:
    model = nn.Linear(3, 2)
    space = niwaki.search_space(model, torch.randn(1, 3))
    for name in ("magnitude", "taylor1", "activation", "hessian"):
        assert score(space, name, [torch.randn(2, 3)], loss).values.shape == (0,)


def test_a_constant_map_has_little_energy() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    model = Reader()
    with torch.no_grad():
        model.first.weight.copy_(torch.eye(2)[:, :, None, None])
    x = torch.randn(16, 2, 6, 6)
    x[:, 0] = x[:, 1].abs().mean()
    space = niwaki.search_space(model, x)
    flat, varied = score(space, "activation", [x], loss).values
    assert flat == pytest.approx(varied, rel=1e-5)
    flat, varied = score(space, "energy", [x], loss).values
    assert flat < 0.5 * varied


def test_unseen_activations_are_told() -> None:
    space = mlp_space(MLP())
    with pytest.raises(MethodError, match="No matrix product .* units of 2 of the 2 groups, first 'first', so th"):
        score(space, "activation", [torch.randn(2, 6)], lambda model, x: model.c.bias.sum())
    with pytest.raises(MethodError, match="'energy' is defined by the activations, so niwaki.score needs batches"):
        score(space, "energy")


def whole_hessian(model: nn.Module, space: SearchSpace, batch: Tensor) -> tuple[dict[str, slice], Tensor, Tensor]:
    """Where each parameter lies among all entries; the entries; the Hessian of the loss by them."""
    parameters = unit_parameters(space)
    place, first = {}, 0
    for name, value in parameters.items():
        place[name] = slice(first, first + value.numel())
        first += value.numel()

    def of(flat: Tensor) -> Tensor:
        parts = {name: flat[at].view_as(parameters[name]) for name, at in place.items()}
        return torch.func.functional_call(model, parts, (batch,)).square().mean()

    flat = torch.cat([value.detach().flatten() for value in parameters.values()])
    return place, flat, torch.func.hessian(of)(flat)


def test_curvature_is_the_hessian_of_each_unit() -> None:
    """The mean over all 128 sign vectors has no variance: exact."""
    torch.manual_seed(1)
    model = MLP(5, 4, 3).double().eval()
    with torch.no_grad():
        model.c.bias.add_(1)
    space, batch = mlp_space(model), torch.randn(6, 5, dtype=torch.double)
    parameters = unit_parameters(space)
    place, flat, hessian = whole_hessian(model, space, batch)
    expected = []
    for group in space.groups:
        for unit in range(group.units):
            mask = {name: torch.zeros_like(value) for name, value in parameters.items()}
            for piece in group.slices:
                if piece.role.produces and piece.parameter:
                    mask[piece.tensor].index_fill_(piece.dim, torch.from_numpy(piece.index[unit]), 1)
            x = torch.cat([mask[name].flatten() for name in place]) * flat
            expected.append(float((x @ hessian @ x).detach()))
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=space.num_units)), dtype=torch.double)
    products = ExactProducts(loss(model, batch), parameters, "hessian")
    found = curvature(space, UnitIndex.of(space, unit_parameters(space)), parameters, products, signs)
    assert max(expected) > 1e-3
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-10, atol=1e-14)
    values = score(space, "hessian", [batch], loss, probes=300).values
    assert np.corrcoef(values, np.clip(expected, 0, None))[0, 1] > 0.95


def test_the_curvature_is_that_of_the_mean_loss() -> None:
    """Batches whose curvatures cancel leave none, also for a criterion that reads the gradient too."""
    model = MLP(5, 4, 3).double()
    space, x = mlp_space(model), torch.randn(6, 5, dtype=torch.double)

    def signed(model: nn.Module, batch: float) -> Tensor:
        return batch * loss(model, x)

    one = score(space, "hessian", [1.0], signed, probes=200).values
    assert one.max() > 1e-3
    assert score(space, "hessian", [1.0, -0.9], signed, probes=200).values.max() < 0.3 * one.max()
    both = score(space, {"hessian": 1.0, "taylor1": 1.0, "activation": 1.0}, [1.0, 2.0], signed, probes=20)
    assert np.isfinite(both.values).all()


def test_curvature_where_units_overlap_is_finite_and_repeats() -> None:
    space = overlap_space(OverlapNet())
    first, again, other = (
        score(space, "hessian", [torch.ones(3, 5)], loss, seed=s, probes=2).values for s in (1, 1, 2)
    )
    assert (first == again).all() and (first != other).any() and np.isfinite(first).all() and first.max() > 0


def test_curvature_through_attention_and_without_second_derivative() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 2)
            self.heads, self.size = 2, 4

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(2, (3, self.heads, self.size)).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            return self.out(y.flatten(2))

    model = Attention()
    space = niwaki.search_space(model, torch.randn(2, 3, 8))
    assert space.num_units and score(space, "hessian", [torch.randn(2, 3, 8)], loss, probes=4).values.max() > 0

    with pytest.raises(MethodError, match="needs the second derivative of the loss, and the model has an op"):
        score(mlp_space(MLP()), "hessian", [torch.randn(2, 6)], lambda m, x: torch.cdist(m(x), m(x) + 1, p=1).mean())


def test_batchnorm_scales() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4)
    )
    model.append(nn.Conv2d(4, 1, 1))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -3.0, 0.5, 0.0]))
        model[4].weight.copy_(torch.tensor([1.0, 1.0, 1.5, 0.0]))
    space = niwaki.search_space(model, torch.randn(2, 1, 6, 6))
    assert score(space, "batchnorm_scale").values.tolist() == [1.0, 2.0, 1.0, 0.0]
    bare = conv_space(ConvNet())
    with pytest.raises(MethodError, match="'batchnorm_scale' is not defined for 1 of the 3 groups, first 'gated': no"):
        score(bare, "batchnorm_scale")


@pytest.mark.parametrize("vectorised", [True, False])
def test_what_methods_can_score_by(vectorised: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 1, 1)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([3.0, 1.0, 2.0, 0.1, 0.2, 5.0]))
    space = niwaki.search_space(model, torch.randn(2, 1, 6, 6, dtype=torch.double))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    budget, schedule = Budget(units=0.67), Schedule(start=1, until=4, periods=1)
    for name, what in (("activation", "activations"), ("hessian", "second derivatives")):
        with pytest.raises(MethodError, match=f"'{name}' needs {what}, which an optimizer step does not show to"):
            HESSO(space, optimizer, budget, schedule, criteria={name: 1.0})
    with pytest.raises(MethodError, match="'batchnorm_scale' is not defined"):
        net = MLP()
        bare, other = mlp_space(net), torch.optim.SGD(net.parameters(), lr=0.0)
        HESSO(bare, other, budget, schedule, criteria={"batchnorm_scale": 1.0})
    method = HESSO(space, optimizer, budget, schedule, criteria={"batchnorm_scale": 1.0}, vectorised=vectorised)
    for _ in range(4):
        optimizer.zero_grad()
        loss(model, torch.randn(2, 1, 6, 6, dtype=torch.double)).backward()
        optimizer.step()
    assert list(method.plan().kept[space.groups[0].name]) == [0, 1, 2, 5]


def test_a_mix_is_the_weighted_sum_of_normalised_criteria() -> None:
    space = conv_space(ConvNet().double())
    batches = [torch.randn(3, 1, 8, 8, dtype=torch.double) for _ in range(2)]
    everything = np.ones(space.num_units, dtype=bool)

    def mine(of: SearchSpace) -> np.ndarray:
        return np.arange(1.0, of.num_units + 1)

    for compare in ("group", "space", "isomorphic"):
        mix = score(space, {"magnitude": 0.5, mine: 2.0, "taylor1": 1}, (b for b in batches), loss, compare=compare)
        parts = [
            weight * normalise(space, values, everything, compare)
            for weight, values in (
                (0.5, score(space, "magnitude").values),
                (2.0, mine(space)),
                (1, score(space, "taylor1", batches, loss).values),
            )
        ]
        np.testing.assert_allclose(mix.values, sum(parts), rtol=1e-12)
        assert mix.criterion == "0.5 magnitude + 2 mine + 1 taylor1"
    assert (score(space, {"magnitude": 1}).values == score(space, "magnitude", compare="group").values).all()


def test_layer_by_layer() -> None:
    """The stream of the network has three layers, of very different scale."""
    model = ConvNet().double()
    with torch.no_grad():
        model.stem.weight.mul_(100)
    space = conv_space(model)
    stream = space.groups[0].numbers
    parts = []
    for module in (model.stem, model.norm0, model.norm2, model.down):
        x = torch.cat(
            [
                p.detach().transpose(0, 1) if p.dim() > 1 and module is model.down else p.detach()
                for p in [module.weight]
            ]
        )
        x = x.flatten(1) if x.dim() > 1 else torch.stack([x, module.bias.detach()], 1)
        parts.append(x.norm(dim=1) / x.norm(dim=1).mean())
    expected = torch.stack(parts).mean(0)
    found = score(space, "magnitude", compare="layer").values
    np.testing.assert_allclose(found[stream], expected, rtol=1e-12)
    batches = [torch.randn(3, 1, 8, 8, dtype=torch.double)]
    assert score(space, "taylor1", batches, loss, compare="layer").values.shape == (space.num_units,)
    with pytest.raises(MethodError, match="'geometric_median' scores units as a whole, so it cannot score them"):
        score(space, "geometric_median", compare="layer")
    with pytest.raises(MethodError, match="A function scores units as a whole"):
        score(space, lambda of: np.ones(of.num_units), compare="layer")


class Blocks(nn.Module):
    """Two equal blocks of unequal widths on one stream, and a head of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 6)) for width in (10, 20)
        )
        self.head = nn.Sequential(nn.Linear(6, 7, bias=False), nn.ReLU(), nn.Linear(7, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_isomorphic_groups() -> None:
    space = niwaki.search_space(Blocks(), torch.randn(2, 4))
    kinds = dict(zip([group.name for group in space.groups], classes_of(space).tolist(), strict=True))
    assert kinds["blocks.0.0"] == kinds["blocks.1.0"]
    assert len(set(kinds.values())) == len(kinds) - 1 == 3
    values = np.arange(1.0, space.num_units + 1)
    shares = normalise(space, values, np.ones(space.num_units, dtype=bool), "isomorphic")
    both = np.concatenate([shares[group.numbers] for group in space.groups if group.name.startswith("blocks")])
    assert both.mean() == pytest.approx(1)
    ratio = values / shares
    assert len(np.unique(ratio.round(9))) == 3


def test_errors_of_mixes_are_sentences() -> None:
    space = mlp_space(MLP())
    for mix, message in (
        ({}, "The mix of criteria is empty: name criteria and their weights"),
        ({"magnitude": -1.0}, "has the weight -1.0 for 'magnitude': it must be a finite number, 0 or more"),
        ({"magnitude": float("nan")}, "has the weight nan"),
        ({"magnitude": 0.0}, "has the weight 0 only"),
        ({"magnitude": True}, "has the weight True"),
    ):
        with pytest.raises(MethodError, match=message):
            score(space, mix)
    with pytest.raises(UnknownName, match="no criterion 'magnitud'"):
        score(space, {"magnitud": 1.0})
    with pytest.raises(MethodError, match="compare='layers' must be one of 'group', 'layer', 'isomorphic', 'space'"):
        score(space, "magnitude", compare="layers")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="probes=0 must be a whole number, 1 or more"):
        score(space, "hessian", [torch.randn(2, 6)], loss, probes=0)
