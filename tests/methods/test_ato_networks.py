"""After its schedule, a network that Auto-Train-Once pruned computes the same masked, as it is, and cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO

import niwaki
from niwaki.methods import Schedule
from niwaki.networks.small import ResNet
from niwaki.networks.torchvision_cpu import load
from niwaki.trace.structures import tensors_in

SCHEDULE = Schedule(start=2, until=32)
STEPS = SCHEDULE.until + 2


def images(size: int) -> Callable[[int], Tensor]:
    return lambda seed: torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 99, (4, 9), generator=torch.Generator().manual_seed(seed))


def mobilenet() -> nn.Module:
    """Depthwise convolutions."""
    model: nn.Module = load().models.mobilenet_v2(weights=None, num_classes=5, width_mult=0.25)
    return model


def vit() -> nn.Module:
    load()
    import timm

    small = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 5}
    return timm.models.VisionTransformer(**small)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "resnet": (lambda: ResNet(5, 3, (8, 8), (8, 16), blocks=1), images(8)),
    "mobilenet_v2": (mobilenet, images(32)),
    "vit": (vit, images(16)),
    "llama": (ZOO["llama"].build, tokens),  # grouped queries; a residual stream that is read through an RMSNorm
}


def logits(model: nn.Module, x: Tensor) -> Tensor:
    found = next(iter(tensors_in(model(x))))
    return found.mean(1) if found.dim() == 3 else found


def loss_fn(model: nn.Module, x: Any) -> Tensor:
    """Of labels that follow from the inputs."""
    labels = (x.flatten(1)[:, :5].float()).argmax(1)
    return nn.functional.cross_entropy(logits(model, x), labels)


def macs(model: nn.Module, x: Tensor) -> int:
    """As torch counts them, for one input."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x[:1])
    return counter.get_total_flops() // 2


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
