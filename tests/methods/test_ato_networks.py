"""After its schedule, a network that Auto-Train-Once pruned computes the same masked, as it is, and cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from four_networks import NETWORKS, logits, loss_fn, macs

import niwaki
from niwaki.methods import Schedule

SCHEDULE = Schedule(start=2, until=32)
STEPS = SCHEDULE.until + 2


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("resnet", torch.optim.AdamW),
        ("resnet", torch.optim.SGD),
        ("mobilenet_v2", torch.optim.SGD),
        ("vit", torch.optim.AdamW),
        ("llama", torch.optim.AdamW),
    ],
)
def test_masked_as_it_is_and_cut(name: str, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    build, inputs = NETWORKS[name]
    model = build()
    space = niwaki.search_space(model, inputs(0)[:1])
    trained = optimizer(model.parameters(), lr=3e-3)
    method = niwaki.ATO(
        space, trained, niwaki.Budget(macs=0.5), SCHEDULE, loss_fn=loss_fn, batches=[inputs(seed) for seed in (1, 2)]
    )
    for step in range(STEPS):
        model.train()
        trained.zero_grad()
        loss_fn(model, inputs(10 + step)).backward()
        trained.step()
    assert method.done
    plan, x = method.plan(), inputs(3)
    small = niwaki.cut(model, plan)
    keep = torch.from_numpy(space.keep_of(plan)).float()
    assert not keep.all()
    model.eval(), small.eval()
    with torch.no_grad():
        whole = logits(model, x)
        masked = method.selector.controller.training.gates.value(keep, lambda network: logits(network, x))
        cut = logits(small, x)
    scale = float(whole.abs().max())
    assert float((masked - whole).abs().max()) <= 1e-5 * scale
    assert float((cut - whole).abs().max()) <= 1e-5 * scale
    assert bool((whole.argmax(1) == cut.argmax(1)).all())
    dense, left = space.cost().macs, space.cost(plan).macs
    assert left <= 0.5 * dense
    torch.manual_seed(0)
    if name != "llama" and name != "vit":  # torch does not count the attention that it computes on a CPU
        assert (macs(build().eval(), x), macs(small, x)) == (dense, left)
    else:
        counted = dense - macs(build().eval(), x)
        assert 0 < left - macs(small, x) < counted, "the rest is attention"
