"""HESSO on search spaces of the real engine: what it leaves behind can be cut out without a change of the outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from blocks import Attention, Grouped
from handmade import MLP, ConvNet
from torch import Tensor, nn

import niwaki
from niwaki.per_unit.index import UnitIndex, unit_parameters
from niwaki.per_unit.plain import entries_of

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(6, 20, 14), (6,)),
    "conv": (lambda: ConvNet(8, 12), (1, 6, 6)),
    "grouped": (Grouped, (1, 6, 6)),
    "attention": (Attention, (5, 16)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("optimizer_of", [torch.optim.SGD, torch.optim.AdamW])
def test_train_prune_cut(name: str, optimizer_of: type[torch.optim.Optimizer]) -> None:
    build, shape = NETS[name]
    model = build()
    space = niwaki.search_space(model, torch.randn(1, *shape))
    optimizer = optimizer_of(model.parameters(), lr=0.02)
    method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.6), niwaki.Schedule(start=3, until=30, periods=4))
    for _ in range(35):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(8, *shape)), torch.randint(0, 3, (8,))).backward()
        optimizer.step()
    plan = method.plan()
    small = niwaki.cut(model, plan).eval()
    x = torch.randn(4, *shape)
    torch.testing.assert_close(small(x), model.eval()(x), rtol=1e-5, atol=1e-5)
    assert space.cost(plan).macs <= 0.6 * space.cost().macs
    assert sum(p.numel() for p in small.parameters()) == space.cost(plan).params


@pytest.mark.parametrize("name", NETS)
def test_places_and_slices_say_the_same(name: str) -> None:
    """The index by places, which the fast path uses, sums what the slices of each unit hold."""
    build, shape = NETS[name]
    model = build()
    space = niwaki.search_space(model, torch.randn(1, *shape))
    index = UnitIndex.of(space, unit_parameters(space))
    entries = [
        sum(
            unit_parameters(space)[tensor].index_select(dim, positions).numel()
            for tensor, dim, positions in entries_of(space, unit, produces=True)
        )
        for unit in range(space.num_units)
    ]
    assert index.entries.tolist() == entries
    assert min(entries) > 0


def test_a_method_explains_itself() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    space = niwaki.search_space(model, torch.randn(1, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.5), niwaki.Schedule(start=1, until=5, periods=2))
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    assert str(method) == (
        "HESSO: step 5, done (period 2 of 2); 5 of 10 units marked, 5 zero; 50.0% of the MACs and 51.4% of the "
        "parameters left"
    )


class Coarse(nn.Module):
    """Channels that leave four at a time, and a recurrent layer of units that cost next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.narrow, self.rows = nn.Conv2d(16, 16, 3, padding=1), nn.GRU(16, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.narrow(torch.relu(self.norm(self.conv(x)))))
        return self.head(self.rows(y.mean(2).transpose(1, 2))[0][:, -1])


@pytest.mark.parametrize("readmit", [False, True], ids=["final", "readmit"])
@pytest.mark.parametrize("macs", [0.7, 0.5, 0.3])
def test_small_steps_do_not_leave_in_the_place_of_a_large_one(macs: float, readmit: bool) -> None:
    """Portions are part of the whole choice: else small steps fill the first, and a large one comes on top of them."""
    torch.manual_seed(0)
    model = Coarse()
    space = niwaki.search_space(model, torch.randn(1, 1, 8, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = niwaki.Schedule(start=2, until=62, periods=10)
    method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=macs), schedule, readmit=readmit)
    for _ in range(62):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(16, 1, 8, 8)), torch.randint(10, (16,))).backward()
        optimizer.step()
    assert macs - 0.01 < method.progress.macs <= macs
    assert "tight" not in method.plan().provenance
