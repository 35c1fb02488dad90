"""The order in which units explain the outputs of the layers that read them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.errors import MethodError
from niwaki.post_training import explained


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explained, "_RIDGE", 0.0)


def left(read: Tensor, out: Tensor, chosen: list[int]) -> float:
    """The part of the variance of ``out`` that the best weights for the inputs ``chosen`` leave, by torch's solver."""
    centred = out - out.mean(0)
    rows = (read - read.mean(0))[:, chosen]
    rest = centred - rows @ torch.linalg.lstsq(rows, centred).solution if chosen else centred
    return float(rest.square().sum() / centred.square().sum())


def test_by_hand() -> None:
    """Three independent inputs of variance 1, weights 3, 2 and 1: 9, 4 and 1 of 14; then one nearly twice."""
    x = torch.tensor([[a, b, c] for a in (-1.0, 1) for b in (-1.0, 1) for c in (-1.0, 1)]).double()
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3))
        net[0].bias.zero_()
        net[1].weight.copy_(torch.tensor([[3.0, 2, 1]]))
    space = niwaki.search_space(net, x)
    values = niwaki.score(space, niwaki.CaP([x])).values
    assert values == pytest.approx([9 / 14, 4 / 14, 1 / 14])
    with torch.no_grad():
        net[0].weight[1, :2] = torch.tensor([1.0, 0.1])  # nearly the first unit again
    values = niwaki.score(space, niwaki.CaP([x])).values
    # The outputs are 5 a + 0.2 b + c: after the first unit, the third adds 1 and the second 0.04 of 26.04.
    assert values.argsort().tolist() == [1, 2, 0]
    assert values == pytest.approx([25 / 26.04, 0.04 / 26.04, 1 / 26.04])


def test_what_units_add_is_what_the_best_other_weights_explain() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double(), torch.randn(200, 5).double()
    space = niwaki.search_space(net, x)
    values = niwaki.score(space, niwaki.CaP([x[:90], x[90:]])).values
    with torch.no_grad():
        read, out = net[:2](x), net(x)
    chosen: list[int] = []
    lowest = 1.0
    for unit in values.argsort()[::-1].tolist():
        rest = [other for other in range(6) if other not in chosen]
        assert unit == min(rest, key=lambda other: left(read, out, [*chosen, other]))
        lowest = min(lowest, left(read, out, chosen) - left(read, out, [*chosen, unit]))
        assert values[unit] == pytest.approx(lowest, rel=1e-6)
        chosen.append(unit)


def test_a_channel_is_a_block_other_groups_are_given_and_all_readers_count() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(2, 4, 1), nn.Conv1d(2, 3, 1)
            self.both, self.one = nn.Conv1d(7, 2, 3), nn.Conv1d(4, 2, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a = self.a(x).tanh()
            return self.both(torch.cat([a, self.b(x).sigmoid()], 1)), self.one(a)

    torch.manual_seed(0)
    net, x = Net().double(), torch.randn(40, 2, 9).double()
    space = niwaki.search_space(net, x)
    values = niwaki.score(space, niwaki.CaP([x])).values
    group = next(group for group in space.groups if group.name == "a")
    with torch.no_grad():
        a = net.a(x).tanh()
        both = torch.cat([a, net.b(x).sigmoid()], 1).unfold(2, 3, 1).transpose(1, 2).flatten(0, 1).flatten(1)
        one = a.unfold(2, 2, 1).transpose(1, 2).flatten(0, 1).flatten(1)
        out_both, out_one = (out.transpose(1, 2).flatten(0, 1) for out in net(x))
    given = list(range(12, 21))  # the inputs of the other group: 3 channels of 3 places

    def adds(unit: int) -> float:
        block = list(range(3 * unit, 3 * unit + 3))
        first = left(both, out_both, given) - left(both, out_both, given + block)
        return (first + 1 - left(one, out_one, [2 * unit, 2 * unit + 1])) / 2

    alone = [adds(unit) for unit in range(4)]
    best = max(range(4), key=alone.__getitem__)
    here = values[group.first : group.first + 4]
    assert int(here.argmax()) == best and here[best] == pytest.approx(alone[best], rel=1e-6)


def test_it_prunes_and_says_what_it_cannot_score() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)), torch.randn(64, 5)
    pruned = niwaki.prune(
        *(net, x, niwaki.Budget(macs=0.5)),
        batches=[(x, torch.arange(64) % 3)],
        loss_fn=nn.CrossEntropyLoss(),
        method=niwaki.CaP([(x, None)], lambda model, batch: model(batch[0])),
        rounds=2,
    )
    assert pruned.plan.provenance["compare"] == "space" and pruned.report.small.macs <= 0.5 * pruned.report.dense.macs

    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).sum(1)

    with pytest.raises(MethodError, match="No linear layer or ungrouped convolution of its own reads the units"):
        niwaki.score(niwaki.search_space(Unread(), x), niwaki.CaP([x]))
    with pytest.raises(MethodError, match="There are no batches. Pass some inputs"):
        niwaki.score(niwaki.search_space(net, x), niwaki.CaP([]))
