"""BatchNorm statistics over data: exact, whatever the batches, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.errors import MethodError, TraceError


class Net(nn.Module):
    """Two norms in a row, one that nothing reaches, one without statistics, one of instances; and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.first, self.conv = nn.Dropout(0.5), nn.BatchNorm2d(3, momentum=0.3), nn.Conv2d(3, 4, 3)
        self.second, self.none = nn.BatchNorm2d(4, momentum=None), nn.BatchNorm2d(4, track_running_stats=False)
        self.unreached, self.instances = nn.BatchNorm1d(2), nn.InstanceNorm2d(4, track_running_stats=True)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        result: Tensor = self.instances(self.none(self.second(self.conv(self.first(self.drop(x))))))
        return result


@pytest.mark.parametrize("size", [40, 16, 3])
def test_statistics_are_those_of_all_the_data(size: int) -> None:
    torch.manual_seed(0)
    net, x = Net(), 5 * torch.randn(40, 3, 6, 6) + 100
    with torch.no_grad():
        net(x)
    net.eval()
    net.second.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes, state = [module.training for module in net.modules()], torch.get_rng_state()
    reached = niwaki.reestimate_norms(net, x.split(size))
    assert reached == ("first", "second")
    assert torch.allclose(net.first.running_mean, x.mean((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(net.first.running_var, x.transpose(0, 1).flatten(1).var(1), rtol=1e-5)
    with torch.no_grad():
        batches = [net.conv(nn.functional.batch_norm(one, None, None, training=True)) for one in x.split(size)]
    inside = torch.cat(batches)
    assert torch.allclose(net.second.running_mean, inside.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(net.second.running_var, inside.transpose(0, 1).flatten(1).var(1), rtol=1e-4)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.running_{what}" for name in reached for what in ("mean", "var")}
    assert [module.training for module in net.modules()] == modes and torch.equal(state, torch.get_rng_state())
    assert net.first.momentum == 0.3 and net.second.momentum is None


def test_the_network_after_a_cut_sees_what_it_was_made_for() -> None:
    """Cutting half of what a norm's inputs sum over halves them; with new statistics the norm does not notice."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5, bias=False), nn.BatchNorm1d(5, eps=1e-12))
    x = torch.randn(500, 4)
    with torch.no_grad():
        net[0].weight[4:], net[0].bias[4:] = net[0].weight[:4], net[0].bias[:4]
        net[2].weight[:, 4:] = net[2].weight[:, :4]
    niwaki.reestimate_norms(net, [x])
    expected = net.eval()(x)
    space = niwaki.search_space(net, x)
    plan = niwaki.choose(space, niwaki.score(space, lambda _: [2.0] * 4 + [1.0] * 4), niwaki.Budget(units=4))
    small = niwaki.cut(net, plan)
    assert not torch.allclose(small(x), expected, atol=0.1)
    niwaki.reestimate_norms(small, ((one, 0) for one in x.split(100)), forward=lambda model, batch: model(batch[0]))
    assert torch.allclose(small(x), expected, atol=1e-4)


def test_a_failure_leaves_everything_as_it_was() -> None:
    net, x = Net().train(), torch.randn(8, 3, 6, 6)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(TraceError, match=r"The model does not run on batch 2: RuntimeError: .* a dict by keywords"):
        niwaki.reestimate_norms(net, [x, x[:, :2]])
    with pytest.raises(MethodError, match="There are no batches"):
        niwaki.reestimate_norms(net, iter(()))
    with pytest.raises(TraceError, match="Expected more than 1 value per channel"):
        niwaki.reestimate_norms(nn.BatchNorm1d(3), [torch.randn(1, 3)])
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_half_precision_is_summed_in_full() -> None:
    norm, x = nn.BatchNorm1d(3).to(torch.bfloat16), (torch.randn(4096, 3) + 3).to(torch.bfloat16)
    niwaki.reestimate_norms(norm, x.split(1000))
    assert torch.allclose(norm.running_mean.float(), x.float().mean(0), rtol=1e-2)


def test_networks_without_norms_have_nothing_to_estimate() -> None:
    assert niwaki.reestimate_norms(nn.Linear(2, 2), [torch.zeros(1, 2)]) == ()
