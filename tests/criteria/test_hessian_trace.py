"""`relative_hessian_trace`: against exact second derivatives, and what it does with batches, dtypes and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from handmade import MLP, ConvNet, conv_space, mlp_space
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import niwaki
from niwaki.core.space import SearchSpace
from niwaki.criteria.products import ProbeProgress
from niwaki.criteria.trace import is_weight, random_signs
from niwaki.errors import MethodError, UnknownName
from niwaki.testing.curvature import hessian_diagonal

NAME = "relative_hessian_trace"
DIFFERENCES = niwaki.SecondDerivatives(by="differences")
Loss = Callable[[nn.Module, Any], Tensor]


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def relative(space: SearchSpace, diagonal: dict[str, Tensor]) -> NDArray[np.float64]:
    """The criterion's definition, for a Hessian with this diagonal, unit by unit."""
    parameters = dict(space.model.named_parameters())
    found = np.zeros(space.num_units)
    for group in space.groups:
        for piece in group.slices:
            if piece.role.produces and piece.parameter and is_weight(parameters[piece.tensor], piece.dim):
                for unit, index in enumerate(torch.from_numpy(piece.index)):
                    own = parameters[piece.tensor].detach().index_select(piece.dim, index)
                    trace = diagonal[piece.tensor].index_select(piece.dim, index).sum()
                    found[group.first + unit] += float(trace.clamp(min=0) / (2 * own.numel()) * own.square().sum())
    return found


def exact(space: SearchSpace, batch: Any, loss_fn: Loss = loss) -> NDArray[np.float64]:
    parameters = {n: p for n, p in space.model.eval().named_parameters() if p.dim() > 1}
    with sdpa_kernel(SDPBackend.MATH):
        return relative(space, hessian_diagonal(loss_fn(space.model, batch), parameters))


def quadratic(seed: int = 0) -> tuple[dict[str, Tensor], Loss]:
    """Curvatures of both signs, and the loss that has them, times the mean of the batch."""
    model = MLP(5, 4, 3)
    generator = torch.Generator().manual_seed(seed)
    curvature = {n: torch.randn(p.shape, generator=generator).double() for n, p in model.named_parameters()}

    def of(model: nn.Module, batch: Tensor) -> Tensor:
        parts = [(curvature[name] * p.square()).sum() / 2 for name, p in model.named_parameters()]
        return batch.mean() * torch.stack(parts).sum()

    return curvature, of


class Attention(nn.Module):
    """Embeddings tied to the head, attention, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.heads, self.size = 2, 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, self.size)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.out(y.flatten(2))
        x = x + self.down(self.up(x).tanh())
        return x @ self.embed.weight.T


@pytest.mark.parametrize("how", [niwaki.SecondDerivatives(), DIFFERENCES], ids=["backward", "differences"])
def test_one_probe_is_exact_for_a_diagonal_hessian(how: niwaki.SecondDerivatives) -> None:
    """Batches count by their sizes, and negative traces are set to zero in the mean: not batch by batch."""
    curvature, of = quadratic()
    space = mlp_space(MLP(5, 4, 3).double())
    batches = [torch.full((3, 1), -0.5).double(), torch.full((1, 1), 2.0).double()]
    values = niwaki.score(space, NAME, batches, of, probes=1, second_derivatives=how).values
    mean = (3 * -0.5 + 2.0) / 4
    expected = relative(space, {name: mean * value for name, value in curvature.items()})
    assert 0 < (expected == 0).sum() < len(expected)
    np.testing.assert_allclose(values, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("net", ["mlp", "conv", "attention"])
def test_many_probes_are_near_the_exact_trace(net: str) -> None:
    torch.manual_seed(2)
    space: SearchSpace
    if net == "mlp":
        space, batch = mlp_space(MLP(5, 4, 3).double()), torch.randn(6, 5).double()
    elif net == "conv":
        space, batch = conv_space(ConvNet(4, 5).double()), torch.randn(6, 1, 5, 5).double()
    else:
        model, batch = Attention().double(), torch.randint(0, 11, (3, 5))
        space = niwaki.search_space(model, batch)
        assert {"qkv.weight", "up.weight", "embed.weight"} <= {p.tensor for g in space.groups for p in g.slices}
    expected = exact(space, batch)
    # The Hessian of so few weights is far from diagonal: of the convolutional one, deviations of 0.1 to 0.9 are chance.
    values = niwaki.score(space, NAME, [batch], loss, probes=350, seed=4).values
    assert np.abs(values - expected).max() < 0.25 * expected.max()
    assert spearmanr(values, expected).statistic > 0.9
    if net == "attention":  # without kinks, which differences see and derivatives do not
        other = niwaki.score(space, NAME, [batch], loss, probes=350, second_derivatives=DIFFERENCES).values
        assert spearmanr(other, expected).statistic > 0.9


def test_probes_average_out() -> None:
    """The estimate is unbiased: twice the probes leave about half of the squared error."""
    torch.manual_seed(1)
    space, batch = mlp_space(MLP(5, 4, 3).double()), torch.randn(6, 5).double()
    expected = exact(space, batch)

    def error(probes: int) -> float:
        values = [niwaki.score(space, NAME, [batch], loss, probes=probes, seed=seed).values for seed in range(12)]
        return float(np.square(np.array(values) - expected).mean())

    few, many = error(5), error(80)
    assert many < few / 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_signs_are_independent(dtype: torch.dtype) -> None:
    """Means and products of neighbours (eight of which come from one random number) are those of fair coins."""
    signs = random_signs(torch.zeros(3, 67, 101, dtype=dtype), 4)
    assert signs.shape == (3, 67, 101) and signs.dtype == dtype and signs.abs().eq(1).all()
    row = signs.double().flatten()
    bar = 4 / len(row) ** 0.5
    assert abs(float(row.mean())) < bar
    assert all(abs(float((row[by:] * row[:-by]).mean())) < bar for by in range(1, 17))
    assert not torch.equal(signs, random_signs(signs, 5)) and torch.equal(signs, random_signs(signs, 4))


def test_biases_and_norms_do_not_count() -> None:
    """Nor is anything of the model or its gradients changed."""
    space = conv_space(ConvNet(4, 5))
    batch = torch.randn(2, 1, 5, 5)
    before = niwaki.score(space, NAME, [batch], loss, probes=2).values
    with torch.no_grad():
        space.model.mid.bias += 1e3
        space.model.mid.bias -= 1e3
    calls = [p.grad for p in space.model.parameters()]
    assert calls == [None] * len(calls)
    sizes = {name for name, p in space.model.named_parameters() if p.dim() > 1}
    curvature = {name: torch.ones_like(p) for name, p in space.model.named_parameters()}

    def of(model: nn.Module, batch: Tensor) -> Tensor:
        return torch.stack([p.square().sum() / 2 for p in model.parameters()]).sum()

    values = niwaki.score(space, NAME, [batch], of, probes=1).values
    np.testing.assert_allclose(values, relative(space, {n: curvature[n] for n in sizes}), rtol=1e-5)
    assert before.shape == values.shape


def test_a_unit_without_matrices_is_made_of_what_it_has() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.head = nn.Parameter(torch.tensor([1.0, 2.0, 3.0])), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.start)

    model = Scaled()
    space = niwaki.search_space(model, torch.ones(2, 1))
    assert [group.units for group in space.groups] == [3]
    values = niwaki.score(space, NAME, [torch.ones(1)], lambda m, x: m.start.square().sum() / 2, probes=1).values
    np.testing.assert_allclose(values, [0.5, 2.0, 4.5])


def test_structures_count_all_weights_that_die_with_them() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.head(x + self.down(self.up(x).relu()))

    model = Residual()
    space = niwaki.search_space(model, torch.randn(2, 4), erase=True)
    whole = next(group for group in space.groups if group.structure is not None)
    values = niwaki.score(
        space,
        NAME,
        [torch.ones(2, 4)],
        lambda m, x: torch.stack([p.square().sum() / 2 for p in m.parameters()]).sum(),
        probes=1,
    ).values
    expected = sum(float(w.detach().square().sum()) / 2 for w in (model.up.weight, model.down.weight))
    np.testing.assert_allclose(values[whole.first], expected, rtol=1e-5)


def test_it_stops_when_the_ranking_is_stable() -> None:
    torch.manual_seed(0)
    space, batches = mlp_space(MLP(5, 4, 3)), [torch.randn(6, 5), torch.randn(6, 5)]
    seen: list[ProbeProgress] = []
    niwaki.score(space, NAME, batches, loss, second_derivatives=niwaki.SecondDerivatives(progress=seen.append))
    assert [(one.batch, one.probe) for one in seen] == [(b, p) for b in (0, 1) for p in range(1, 31)]
    assert seen[0].stability == 0 and 0.5 < seen[-1].stability <= 1
    seen.clear()
    eager = niwaki.SecondDerivatives(stable=0.2, progress=seen.append)
    niwaki.score(space, NAME, batches, loss, second_derivatives=eager)
    assert [(one.batch, one.probe) for one in seen][9:11] == [(0, 10), (1, 1)] and seen[9].stability >= 0.2


def test_differences_restore_the_weights_and_repeat_random_numbers() -> None:
    model = MLP(5, 4, 3)
    space, batch = mlp_space(model), torch.randn(6, 5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    at = {name: p.data_ptr() for name, p in model.named_parameters()}

    def noisy(model: nn.Module, x: Tensor) -> Tensor:
        return model(x + torch.randn(x.shape)).square().mean()

    values = niwaki.score(space, NAME, [batch], noisy, second_derivatives=DIFFERENCES).values
    same = niwaki.score(space, NAME, [batch], noisy).values
    assert spearmanr(values, same).statistic > 0.8
    calls = []

    def failing(model: nn.Module, x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(model, x)

    with pytest.raises(KeyboardInterrupt):
        niwaki.score(space, NAME, [batch], failing, second_derivatives=DIFFERENCES)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and p.data_ptr() == at[name]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_without_a_second_derivative_the_operator_is_named() -> None:
    space = mlp_space(MLP())

    def of(model: nn.Module, x: Tensor) -> Tensor:
        return torch.cdist(model(x), model(x) + 1, p=1).mean()

    with pytest.raises(MethodError, match=r"without one \(_cdist_backward\).*SecondDerivatives\(by='differences'\)"):
        niwaki.score(space, NAME, [torch.randn(2, 6)], of)
    with pytest.raises(MethodError, match=r"has an operator without one \(_Once\)"):
        niwaki.score(space, NAME, [torch.randn(2, 6)], lambda m, x: _Once.apply(m(x)).square().mean())
    values = niwaki.score(space, NAME, [torch.randn(2, 6)], of, probes=3, second_derivatives=DIFFERENCES).values
    assert np.isfinite(values).all()


def test_a_loss_without_curvature_has_the_trace_zero() -> None:
    space = mlp_space(MLP())
    linear = niwaki.score(space, NAME, [torch.ones(2)], lambda m, x: m.a.weight.sum(), probes=2).values
    assert (linear == 0).all()


def test_a_ranking_by_chance_is_told() -> None:
    """Of a loss with no curvature along any weight alone."""
    space = mlp_space(MLP())
    with pytest.warns(UserWarning, match=r"not stable: after 30 probes its estimated rank correlation .* is 0\.\d\d"):
        niwaki.score(space, NAME, [torch.ones(2)], lambda m, x: m.a.weight.sum() * m.b.weight.sum())


def test_half_precision() -> None:
    torch.manual_seed(0)
    model = ConvNet(6, 8)
    space, x = conv_space(model), torch.randn(64, 1, 6, 6)
    whole = niwaki.score(space, NAME, [x], loss, probes=60).values
    model.bfloat16()
    values = niwaki.score(space, NAME, [x.bfloat16()], loss, probes=60).values
    assert spearmanr(values, whole).statistic > 0.95
    model.half()
    with pytest.raises(MethodError, match=r"batch 0 are not finite: the model is in float16 \('.*'\), whose largest"):
        niwaki.score(space, NAME, [x.half()], lambda m, x: m(x).float().square().mean() * 1e7, probes=1)


def test_fresh_norms() -> None:
    """As if the statistics had been estimated before; the model keeps its own."""
    torch.manual_seed(0)
    model = ConvNet(4, 5)
    space, batches = conv_space(model), [3 + torch.randn(8, 1, 5, 5) for _ in range(2)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stale = niwaki.score(space, NAME, batches, loss, probes=3).values
    fresh = niwaki.score(space, NAME, iter(batches), loss, probes=3, fresh_norms=True).values
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.norm0.momentum == 0.1 and model.training
    niwaki.reestimate_norms(model, batches)
    np.testing.assert_allclose(fresh, niwaki.score(space, NAME, batches, loss, probes=3).values, 0.05, 1e-5)
    assert np.abs(fresh - stale).max() > 0.5 * fresh.max()


def test_bad_settings() -> None:
    with pytest.raises(UnknownName, match="by='forward' is not a way to second derivatives: choose 'backward' or"):
        niwaki.SecondDerivatives(by="forward")  # type: ignore[arg-type]
    for stable in (0, 1.5, True, "yes"):
        with pytest.raises(MethodError, match=r"stable=.* must be a rank correlation above 0 and up to 1"):
            niwaki.SecondDerivatives(stable=stable)  # type: ignore[arg-type]
    space = mlp_space(MLP())
    with pytest.raises(MethodError, match="niwaki.score needs batches and loss_fn"):
        niwaki.score(space, NAME)
