"""What a unit costs after the layers that read it have been fitted to do without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.errors import MethodError
from niwaki.networks.super_resnet import SuperResNet
from niwaki.post_training import surgeon
from niwaki.testing.models import randomised


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def joint(weight: Tensor, inputs: Tensor, gradients: Tensor, gone: list[int]) -> float:
    """The least of 1/2 tr(G D A D') over all D with which the inputs ``gone`` are not read any more, by solving for the
    free entries."""
    stay = [column for column in range(weight.shape[1]) if column not in gone]
    change = torch.zeros_like(weight)
    change[:, gone] = -weight[:, gone]
    change[:, stay] = weight[:, gone] @ inputs[gone][:, stay] @ torch.linalg.inv(inputs[stay][:, stay])
    return float((gradients @ change @ inputs * change).sum() / 2)


def sums(x: Tensor, out: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """The covariance of a layer's inputs [N, S], and the products of the gradients of its outputs [N, O]."""
    (gradient,) = torch.autograd.grad(loss, out)
    rows = gradient.reshape(-1, out.shape[-1])
    return torch.cov(x.detach().reshape(-1, x.shape[-1]).T, correction=0), rows.T @ rows


def test_units_cost_what_the_best_other_weights_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other: what the first two cost together is what it costs to do without both."""
    monkeypatch.setattr(surgeon, "_RIDGE", 0.0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(200, 5).double(), torch.randint(0, 3, (200,))
    space = niwaki.search_space(net, x)
    values = niwaki.score(space, niwaki.Surgeon([(x, y)], loss_fn)).values
    hidden = net[:2](x)
    out = net[2](hidden)
    inputs, gradients = sums(hidden, out, F.cross_entropy(out, y))
    weight = net[2].weight.detach()
    alone = [joint(weight, inputs, gradients, [unit]) for unit in range(6)]
    order = values.argsort().tolist()
    assert order[0] == min(range(6), key=alone.__getitem__)
    assert values[order[0]] == pytest.approx(alone[order[0]])
    assert values[order[:2]].sum() == pytest.approx(joint(weight, inputs, gradients, order[:2]))
    whole = joint(weight, inputs, gradients, order[:5])
    assert whole <= values[order[:5]].sum() < 1.2 * whole  # none counts less than one that left before it


def test_a_channel_is_a_block_and_all_readers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surgeon, "_RIDGE", 0.0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.other = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 2), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).tanh()
            result: Tensor = self.conv(y).mean((2, 3)) + self.other(y).mean((2, 3))
            return result

    torch.manual_seed(0)
    net = Net().double()
    x, y = torch.randn(30, 2, 4, 4).double(), torch.randint(0, 3, (30,))
    space = niwaki.search_space(net, x)
    values = niwaki.score(space, niwaki.Surgeon([(x, y)], loss_fn)).values
    hidden = net.first(x).tanh()
    outs = [layer(hidden) for layer in (net.conv, net.other)]
    loss = F.cross_entropy(sum(out.mean((2, 3)) for out in outs), y)  # type: ignore[arg-type]
    alone = torch.zeros(4, dtype=torch.float64)
    for layer, out in zip((net.conv, net.other), outs, strict=True):
        size = layer.kernel_size[0]
        patches = F.unfold(hidden.detach(), size).transpose(1, 2)
        (gradient,) = torch.autograd.grad(loss, out, retain_graph=True)
        rows = gradient.flatten(2).transpose(1, 2).reshape(-1, 3)
        inputs = torch.cov(patches.reshape(-1, patches.shape[-1]).T, correction=0)
        for unit in range(4):
            block = list(range(unit * size**2, (unit + 1) * size**2))
            alone[unit] += joint(layer.weight.detach().flatten(1), inputs, rows.T @ rows, block)
    assert int(values.argmin()) == int(alone.argmin()) and values.min() == pytest.approx(float(alone.min()))


def test_units_that_no_layer_sums_over_are_worth_their_fisher_information() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            weights = (self.q(x) @ self.k(x).mT).softmax(-1)
            result: Tensor = self.out(weights @ x).mean(1)
            return result

    torch.manual_seed(0)
    net, x, y = Attention(), torch.randn(8, 5, 4), torch.randint(0, 3, (8,))
    space = niwaki.search_space(net, x)
    found = niwaki.score(space, niwaki.Surgeon([(x, y)], loss_fn))
    assert found.criterion == "Surgeon" and space.num_units == 6
    assert (found.values == niwaki.score(space, "fisher", [(x, y)], loss_fn).values).all()


def test_after_compensation_less_is_lost_than_with_the_choice_by_magnitude() -> None:
    """Units that others can replace go first: the second half is a mixture of the first, with large weights."""
    torch.manual_seed(0)
    net = randomised(nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))).double().eval()
    with torch.no_grad():
        net[0].weight[8:] = 3 * torch.randn(8, 8, dtype=torch.float64) @ net[0].weight[:8]
    x = torch.randn(300, 6).double()
    y = net(x).argmax(1)
    space, budget = niwaki.search_space(net, x), niwaki.Budget(macs=0.55)
    lost = {}
    for criterion in ("magnitude", niwaki.Surgeon([(x, y)], loss_fn)):
        scores = niwaki.score(space, criterion)
        plan = niwaki.choose(space, scores, budget, compare="group" if criterion == "magnitude" else "space")
        made = niwaki.compensate(space, plan, [x])
        with torch.no_grad():
            lost[scores.criterion] = float((niwaki.cut(made.model, plan)(x) - net(x)).square().mean())
    assert lost["Surgeon"] < 0.1 * lost["magnitude"]


def test_wrong_inputs_get_sentences_and_the_model_is_as_it_was() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(8, 4), torch.randint(0, 3, (8,))
    net[0].weight.requires_grad_(False)
    space = niwaki.search_space(net, x)
    with pytest.raises(
        MethodError, match="There are no batches. Pass some inputs; a loader that is used up gives none"
    ):
        niwaki.score(space, niwaki.Surgeon([], loss_fn))
    with pytest.raises(MethodError, match="The loss of batch 0 is nan"):
        niwaki.score(space, niwaki.Surgeon([(x * float("nan"), y)], loss_fn))
    assert niwaki.score(space, niwaki.Surgeon(iter([(x, y)]), loss_fn)).values.shape == (6,)
    assert not net[0].weight.requires_grad and net[2].weight.grad is None and not net[2]._forward_hooks
    structures = niwaki.search_space(SuperResNet(3, 1, (4,), (2,), (3, 5)), torch.randn(2, 1, 6, 6), erase=True)
    with pytest.raises(MethodError, match="The surgeon scores units, and this search space has structures, too"):
        niwaki.score(structures, niwaki.Surgeon([(x, y)], loss_fn))


class Constant(nn.Module):
    """A unit that is always 2, and is read by a layer without a bias."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 4, bias=False)
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()
        with torch.no_grad():
            self.first.weight[3], self.first.bias[3] = 0.0, 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.first(x).relu()))  # type: ignore[no-any-return]


@pytest.mark.parametrize("norm", [False, True])
def test_a_constant_is_free_only_where_something_takes_up_the_shift(norm: bool) -> None:
    torch.manual_seed(0)
    net, x, y = Constant(norm).double().eval(), torch.randn(200, 5).double(), torch.randint(0, 4, (200,))
    space = niwaki.search_space(net, x)
    hidden = net.first(x).relu()
    out = net.second(hidden)
    loss = F.cross_entropy(net.norm(out), y)
    (gradient,) = torch.autograd.grad(loss, out)
    inputs = torch.cov(hidden.T, correction=0) if norm else hidden.T @ hidden / len(hidden)
    inputs = inputs.detach() + surgeon._RIDGE * inputs.diagonal().mean().detach() * torch.eye(6)
    alone = [joint(net.second.weight.detach(), inputs, gradient.T @ gradient, [unit]) for unit in range(6)]
    values = niwaki.score(space, niwaki.Surgeon([(x, y)], loss_fn)).values
    assert int(values.argmin()) == min(range(6), key=alone.__getitem__)
    assert values.min() == pytest.approx(min(alone), rel=1e-6)
    assert (values[3] < 1e-2 * values.max()) == norm


class Tied(nn.Module):
    """Two layers of one weight, or one layer that is called twice."""

    def __init__(self, second: str) -> None:
        super().__init__()
        self.first, self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.two.weight, self.two.bias, self.second = self.one.weight, self.one.bias, second

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(self.first(x).tanh()) * 5
        return y + self.get_submodule(self.second)(self.first(x * 2).tanh())  # type: ignore[no-any-return]


def test_uses_of_one_weight_by_two_layers_count_as_calls_of_one_layer() -> None:
    torch.manual_seed(0)
    x, y, found = torch.randn(50, 5), torch.randint(0, 4, (50,)), []
    for second in ("one", "two"):
        torch.manual_seed(1)
        space = niwaki.search_space(Tied(second), x)
        found.append(niwaki.score(space, niwaki.Surgeon([(x, y)], loss_fn)).values)
    assert found[0] == pytest.approx(found[1]) and found[0].min() > 0
