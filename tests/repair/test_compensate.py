"""Least-squares compensation: exact where units depend on one another, better where they do not, honest elsewhere."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from exactness import deviations
from remembering import Remembering, last_half
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.core.plan import Plan
from niwaki.errors import MethodError, PlanError, TraceError
from niwaki.repair.compensate import Compensated
from niwaki.testing.models import randomised
from niwaki.unions import Writers, union_plan


def compensated(net: nn.Module, x: Tensor, ridge: float = 1e-12) -> tuple[Compensated, Plan, float, float]:
    """The result, and how far the cuts without and with it are from the dense network."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    space = niwaki.search_space(net, x)
    plan = last_half(space)
    result = niwaki.compensate(space, plan, x.split(17), ridge=ridge)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        dense = net.eval()(x)
        far = [float((niwaki.cut(one, plan)(x) - dense).abs().max() / dense.abs().max()) for one in (net, result.model)]
    return result, plan, far[0], far[1]


def dependent(*layers: nn.Module) -> nn.Sequential:
    """The second half of the outputs of the first layer is a mixture of its first half, and a constant."""
    net = nn.Sequential(*layers).double()
    weight, bias = net[0].weight, net[0].bias
    half = len(weight) // 2
    with torch.no_grad():
        mixture = torch.randn(half, half, dtype=torch.float64)
        weight[half:] = (mixture @ weight[:half].flatten(1)).reshape(weight[half:].shape)
        bias[half:] = mixture @ bias[:half] + 0.7
    return net


@pytest.mark.parametrize(
    "net",
    [
        dependent(nn.Linear(4, 8), nn.Linear(8, 3)),
        dependent(nn.Conv1d(4, 8, 3, bias=True), nn.Conv1d(8, 3, 3, dilation=2, stride=2)),
        dependent(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 3, (3, 1), stride=2, padding=(1, 0), padding_mode="reflect")),
        dependent(nn.Conv3d(4, 8, 1), nn.Conv3d(8, 2, 2)),
    ],
    ids=["linear", "1d", "2d", "3d"],
)
def test_units_that_depend_on_others_leave_without_a_trace(net: nn.Sequential) -> None:
    torch.manual_seed(0)
    sides = {nn.Linear: (), nn.Conv1d: (12,), nn.Conv2d: (7, 7), nn.Conv3d: (4, 4, 4)}[type(net[0])]
    result, plan, without, with_it = compensated(net, torch.randn(60, 4, *sides, dtype=torch.float64))
    assert without > 0.1 and with_it < 1e-6, (without, with_it)
    assert list(result.layers) == ["1"] and not result.left
    assert result.layers["1"].before > 0.01 and result.layers["1"].after < 1e-9
    assert "1 layer has new weights" in str(result) and "1: 0.00% (" in str(result)


def test_without_a_bias_and_at_zero_padding_what_is_linear_is_kept() -> None:
    torch.manual_seed(0)
    net = dependent(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, padding=1, bias=False))
    with torch.no_grad():
        net[0].bias.zero_()
    result, _, without, with_it = compensated(net, torch.randn(40, 3, 8, 8, dtype=torch.float64))
    assert without > 0.1 and with_it < 1e-6 and not result.left
    assert not result.layers["1"].centred
    assert "about zero, without a bias or a norm behind for a shift: 1" in str(result)


def test_the_fit_is_the_least_squares_solution() -> None:
    """Against torch's own solver, by stacking the ridge under the data."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double(), torch.randn(50, 4).double()
    result, _, _, _ = compensated(net, x, ridge=0.1)
    with torch.no_grad():
        hidden = net[1](net[0](x))
        stay, gone = hidden[:, :4] - hidden[:, :4].mean(0), hidden[:, 4:] - hidden[:, 4:].mean(0)
        strength = (0.1 * (stay**2).mean() * len(x)).sqrt()
        rows = torch.cat([stay, strength * torch.eye(4, dtype=torch.float64)])
        target = torch.cat([gone @ net[2].weight[:, 4:].T, torch.zeros(4, 3, dtype=torch.float64)])
        change = torch.linalg.lstsq(rows, target).solution.T
        new = result.model[2]
        assert torch.allclose(new.weight[:, :4], net[2].weight[:, :4] + change, atol=1e-9)
        assert torch.equal(new.weight[:, 4:], net[2].weight[:, 4:])
        residual = gone @ net[2].weight[:, 4:].T - stay @ change.T
        whole = (net[2](hidden) - net[2](hidden).mean(0)).square().sum()
        assert result.layers["2"].after == pytest.approx(float(residual.square().sum() / whole))
        assert torch.allclose(
            (hidden[:, :4] @ new.weight[:, :4].T + new.bias).mean(0), net[2](hidden).mean(0), atol=1e-12
        )


def test_layers_are_fitted_to_what_the_cut_network_makes_of_their_inputs() -> None:
    """The second layer that is fitted, against torch's own solver, and against a fit to the dense network's inputs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    x = torch.randn(80, 4).double()
    result, plan, without, with_it = compensated(net, x)
    assert list(result.layers) == ["2", "4"]
    small = niwaki.cut(result.model, plan)
    with torch.no_grad():
        target, read = net(x), small[:4](x)
        rows = torch.cat([read, torch.ones(80, 1, dtype=torch.float64)], 1)
        best = torch.linalg.lstsq(rows, target).solution
        assert torch.allclose(small[4].weight.T, best[:-1], atol=1e-5)
        assert torch.allclose(small[4].bias, best[-1], atol=1e-5)
        lost = (target - small(x)).square().sum() / (target - target.mean(0)).square().sum()
        assert result.layers["4"].after == pytest.approx(float(lost), rel=1e-5)
        hidden = net[:4](x)
        rows = torch.cat([hidden[:, :6], torch.ones(80, 1, dtype=torch.float64)], 1)
        at_once = torch.linalg.lstsq(rows, target).solution
        other = torch.cat([read, torch.ones(80, 1, dtype=torch.float64)], 1) @ at_once
    assert (target - other).square().sum() > 1.05 * (target - small(x)).square().sum()
    assert with_it < 0.5 * without


def test_a_layer_that_is_called_twice_learns_from_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(4, 10), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            first: Tensor = self.out(self.into(x).tanh())
            return first + self.out(self.into(x * 2 + 1).tanh())

    torch.manual_seed(0)
    net, x = Twice().double(), torch.randn(60, 4).double()
    result, plan, _, _ = compensated(net, x)
    small = niwaki.cut(result.model, plan)
    with torch.no_grad():
        both = torch.cat([x, x * 2 + 1])
        read = torch.cat([small.into(both).tanh(), torch.ones(120, 1, dtype=torch.float64)], 1)
        best = torch.linalg.lstsq(read, net.out(net.into(both).tanh())).solution
    assert torch.allclose(small.out.weight.T, best[:-1], atol=1e-5)


def test_the_law_holds_for_the_compensated_network() -> None:
    torch.manual_seed(0)
    net = randomised(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 4)
        )
    )
    x = torch.randn(8, 3, 8, 8)
    space = niwaki.search_space(net, x)
    plan = last_half(space)
    result = niwaki.compensate(space, plan, [(x,), {"input": x}])
    assert set(result.layers) == {"3", "5"}
    found = deviations(result.model, plan, x)
    assert found["eval"] < 1e-10 and found["float32"] < 1e-5 and found["train"] < 1e-8


def test_what_cannot_be_compensated_is_named() -> None:
    class Standardised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight / self.weight.norm(), self.bias)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.own, self.bare = nn.Conv1d(2, 8, 1), Standardised(8, 2), nn.Parameter(torch.randn(2, 8))
            self.one, self.other, self.unused = nn.Conv1d(8, 2, 1), nn.Conv1d(8, 2, 1), nn.Linear(8, 2)
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y = F.linear(x.mT, self.bare).mT + self.one(x) + self.other(x)
            result: Tensor = y + self.own(x.mT).mT + F.linear(x.mT, self.unused.weight).mT
            return result

    result, _, _, _ = compensated(Net(), torch.randn(20, 2, 5))
    assert not result.layers
    assert dict(result.left) == {
        "own": "test_what_cannot_be_compensated_is_named.<locals>.Standardised computes something of its own",
        "bare": "it is not the matrix of a layer whose sums can be seen from outside",
        "one": "it shares its weight or bias with another module",
        "other": "it shares its weight or bias with another module",
        "unused": "no batch reached it as a layer of its own",
    }
    assert "not bare: it is not the matrix of a layer" in str(result)


def test_wrong_inputs_get_sentences() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(6, 4)
    space = niwaki.search_space(net, x)
    plan = last_half(space)
    for ridge in (0, -1.0, float("nan"), "much"):
        with pytest.raises(MethodError, match=r"ridge=.* must be a number above 0, such as 1e-3"):
            niwaki.compensate(space, plan, [x], ridge=ridge)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="There are no batches. Pass some inputs; a loader that is used"):
        niwaki.compensate(space, plan, [])
    with pytest.raises(TraceError, match=r"The model does not run on batch 2: .* forward=lambda model, batch: model"):
        niwaki.compensate(space, plan, [x, (x, torch.zeros(6))])
    assert niwaki.compensate(space, plan, [(x, 0)], forward=lambda model, batch: model(batch[0])).layers
    other = niwaki.search_space(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), x)
    with pytest.raises(PlanError, match="The plan is for another network"):
        niwaki.compensate(other, plan, [x])
    ghost = niwaki.search_space(net.to("meta"), x)
    with pytest.raises(TraceError, match="on the meta device, where it has no weights to change"):
        niwaki.compensate(ghost, plan, [x])


def test_infinite_inputs_leave_a_layer_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    result, _, _, _ = compensated(net, torch.full((20, 4), float("inf")))
    assert result.left == {"1": "what it reads is not finite"}
    assert torch.equal(result.model[1].weight, net[1].weight)


def test_where_all_samples_are_the_same_a_bias_gives_the_output() -> None:
    """Covariances are zero, or roundings of zero, and no share of the output's variance can be named."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    result, _, without, far = compensated(net, torch.randn(1, 4).expand(40, 4))
    assert without > 1e-3 and far < 1e-5 and result.layers["2"].after == 0.0
    assert "2: 0.00% (infinite without repair: its output is constant)" in str(result)


def test_a_one_shot_cut_of_digits_loses_less() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    torch.manual_seed(0)
    pixels, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(216, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        picked = torch.randint(1200, (128,))
        optimizer.zero_grad()
        F.cross_entropy(net(x[picked]), y[picked]).backward()
        optimizer.step()
    net.eval()
    space = niwaki.search_space(net, x[:2])
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
    result = niwaki.compensate(space, plan, x[:256].split(64))
    with torch.no_grad():
        dense, plain, repaired = (
            float(F.cross_entropy(one(x[1200:]), y[1200:]))
            for one in (net, niwaki.cut(net, plan), niwaki.cut(result.model, plan))
        )
    assert plain > 2 * dense and repaired < dense + 0.1 * (plain - dense), (dense, plain, repaired)


def chain(depth: int, bias: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Conv2d(3 if number == 0 else 8, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8), nn.ReLU()]
    return randomised(nn.Sequential(*layers, nn.Conv2d(8, 2, 1)))  # type: ignore[return-value]


def test_without_a_bias_the_norm_behind_takes_up_the_shift() -> None:
    """The fit is that of a layer with a bias, and the law holds for it."""
    torch.manual_seed(0)
    net, x = chain(3).double().eval(), torch.randn(34, 3, 6, 6, dtype=torch.float64)
    biased = chain(3, bias=True).double().eval()
    biased.load_state_dict(net.state_dict(), strict=False)
    for layer in biased:
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.bias)
    biased[-1].load_state_dict(net[-1].state_dict())
    found = [compensated(one, x, ridge=1e-3) for one in (net, biased)]
    assert [found[0][0].layers[name].norm for name in ("3", "6", "9")] == ["4", "7", None]
    assert all(fit.centred for fit in found[0][0].layers.values()) and "about zero" not in str(found[0][0])
    assert not torch.equal(found[0][0].model[4].running_mean, net[4].running_mean)
    for name in ("3", "6", "9"):
        assert torch.allclose(found[0][0].model[int(name)].weight, found[1][0].model[int(name)].weight)
        assert found[0][0].layers[name].after == pytest.approx(found[1][0].layers[name].after)
    small = [niwaki.cut(result.model, plan).eval() for result, plan, *_ in found]
    with torch.no_grad():
        assert torch.allclose(small[0](x), small[1](x))
        kept = torch.tensor(list(found[0][1].kept["3"]))
        means = [one[:5](x).mean((0, 2, 3)) for one in (net, small[0])]  # behind the norm
        assert torch.allclose(means[1], means[0][kept])
    assert deviations(found[0][0].model, found[0][1], x)["eval"] < 1e-10


@pytest.mark.parametrize("depth", [2, 6])
def test_depth_costs_no_further_passes(depth: int) -> None:
    torch.manual_seed(0)
    net, x = chain(depth), torch.randn(12, 3, 4, 4)
    space = niwaki.search_space(net, x[:1])
    plan, passes = last_half(space), 0

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        out: Tensor = model(batch)
        return out

    result = niwaki.compensate(space, plan, x.split(4), forward=forward)
    assert len(result.layers) == depth and passes == 3 * 3  # for each of three batches


def test_few_positions_are_drawn_from_all_batches_and_stand_for_all() -> None:
    torch.manual_seed(0)
    net, x = chain(2).double().eval(), torch.randn(40, 3, 8, 8, dtype=torch.float64)
    space = niwaki.search_space(net, x[:1])
    plan = last_half(space)
    whole, same, few = (
        niwaki.compensate(space, plan, x.split(10), ridge=1e-6, positions=positions) for positions in (2560, 10**6, 640)
    )
    assert torch.equal(whole.model[3].weight, same.model[3].weight)
    assert not torch.equal(whole.model[3].weight, few.model[3].weight)
    assert few.layers["3"].after == pytest.approx(whole.layers["3"].after, rel=0.2)
    with torch.no_grad():
        lost = [float((niwaki.cut(one.model, plan)(x) - net(x)).square().mean()) for one in (whole, few)]
    assert lost[1] < 1.3 * lost[0]


def test_the_ridge_is_chosen_on_positions_that_are_held_out() -> None:
    """With few samples of many inputs a stronger ridge, with many a weaker one; never much worse than the best."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 30)).double()
    x, fresh = torch.randn(48, 20).double(), torch.randn(2000, 20).double()
    space = niwaki.search_space(net, x)
    plan = last_half(space)

    def error(ridge: float | None, data: Tensor) -> float:
        made = niwaki.compensate(space, plan, [data], ridge=ridge)
        with torch.no_grad():
            return float((niwaki.cut(made.model, plan)(fresh) - net(fresh)).square().mean())

    few = {ridge: error(ridge, x) for ridge in (1e-5, 1e-3, 1e-1)}
    assert few[1e-5] > 1.2 * min(few.values())  # that a ridge matters here
    assert error(None, x) < 1.1 * min(few.values())
    assert error(None, fresh) <= 1.01 * error(1e-5, fresh)


@pytest.mark.parametrize("where", ["buffer", "global"])
def test_batches_whose_passes_would_mix_are_run_one_after_the_other(where: str) -> None:
    torch.manual_seed(0)
    plain, net, batches = Remembering("local").eval(), Remembering(where).eval(), list(torch.randn(4, 64, 4))
    net.load_state_dict(plain.state_dict())
    found = []
    for one in (plain, net):
        space = niwaki.search_space(one, batches[0])
        found.append(niwaki.compensate(space, last_half(space), batches))
    assert found[0].layers == found[1].layers and len(found[0].layers) == 2
    for expected, value in zip(found[0].model.parameters(), found[1].model.parameters(), strict=True):
        assert torch.equal(expected, value)


@pytest.mark.parametrize("numbers", [(7,), (5, 6, 7, 8, 9, 10, 11)])
def test_an_error_in_a_pass_ends_all_of_them(numbers: tuple[int, ...]) -> None:
    net, batches = Remembering("local").eval(), list(torch.randn(4, 64, 4))
    space, runs, threads = niwaki.search_space(net, batches[0]), [0], threading.active_count()

    def forward(model: nn.Module, batch: Tensor) -> None:
        runs[0] += 1
        if runs[0] in numbers:
            raise ArithmeticError("no more")
        model(batch)

    with pytest.raises(ArithmeticError, match="no more"):
        niwaki.compensate(space, last_half(space), batches, forward=forward)
    assert threading.active_count() == threads


class Branch(nn.Module):
    """A layer that reads removed units and writes a stream, with a norm behind it or without one."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.norm, self.head = nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.norm(self.down(self.up(x).relu())))  # type: ignore[no-any-return]


@pytest.mark.parametrize("norm", [False, True])
def test_modules_that_the_plan_replaces_are_left_as_they_are(norm: bool) -> None:
    torch.manual_seed(0)
    net, x = randomised(Branch(norm)).double().eval(), torch.randn(50, 3).double()
    writers = Writers.of(niwaki.search_space(net, x, erase=True))
    keep = np.ones(writers.space.num_units, dtype=bool)
    for group in writers.space.width_groups:
        keep[group.first + 1 : group.first + 3] = False
    plan = union_plan(writers, keep, [np.arange(8) % 2 == 0 for _ in writers.writers])
    made = niwaki.compensate(writers.space, plan, [x])
    assert made.left == ({} if norm else {"down": "the plan puts another module in its place"})
    assert "up" in made.layers and all(fit.norm is None for fit in made.layers.values())
    assert torch.equal(made.model.norm.running_mean, net.norm.running_mean) if norm else "down" not in made.layers
    assert niwaki.check(made.model, plan, x).holds
