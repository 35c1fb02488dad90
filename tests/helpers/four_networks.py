"""Small networks of four kinds with random weights: their inputs, their logits, and a loss that can be learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO

from niwaki.networks.small import ResNet
from niwaki.networks.torchvision_cpu import load
from niwaki.trace.structures import tensors_in


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
