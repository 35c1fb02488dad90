"""Small networks of well-known definitions, from which structures are erased: random weights, no downloads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.networks.cells import CellNetwork
from niwaki.networks.demo_supernet import DemoSupNet
from niwaki.networks.small import ResNet
from niwaki.networks.stacked_unets import StackedUnets, UNet
from niwaki.networks.super_resnet import SuperResNet
from niwaki.networks.torchvision_cpu import load

load()

import torchvision.models as tv  # noqa: E402 - its operators are declared by now
import transformers  # noqa: E402
from torchvision.models.densenet import DenseNet  # noqa: E402
from torchvision.models.googlenet import Inception  # noqa: E402
from torchvision.models.resnet import BasicBlock, Bottleneck  # noqa: E402


@dataclass(frozen=True, slots=True)
class Network:
    """``build`` makes the module and its example inputs. ``least``: how many structures, of those that one counts by
    hand (branches, halves of layers, layers, kernels), can be erased by themselves at least."""

    build: Callable[[], tuple[nn.Module, Any]]
    least: int


class PreActivation(nn.Module):
    """Residual blocks whose norms and activations come first, with the branch written in three ways."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, 4, 1),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Conv2d(4, width, 3, padding=1),
            )
            for _ in range(3)
        )
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [B, 4]."""
        x = self.stem(x)
        x = x + self.blocks[0](x)
        x = torch.add(self.blocks[1](x), x)
        y = self.blocks[2](x)
        y += x
        return self.head(torch.relu(self.norm(y)).mean((2, 3)))  # type: ignore[no-any-return]


class Classifier(nn.Sequential):
    """Parts between a convolution and a linear layer."""

    def __init__(self, width: int, parts: list[nn.Module], wide: int) -> None:
        stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        super().__init__(stem, *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 3))


def blocks_of_torchvision() -> nn.Module:
    """torchvision's residual blocks, which add in place."""

    def shortcut(before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after))

    return Classifier(6, [BasicBlock(6, 6), BasicBlock(6, 8, 2, shortcut(6, 8)), Bottleneck(8, 2), Bottleneck(8, 2)], 8)


def images(build: Callable[[], nn.Module], size: int) -> Callable[[], tuple[nn.Module, Any]]:
    """Two random images beside a network."""
    return lambda: (build(), torch.randn(2, 3, size, size))


def tokens(build: Callable[[], nn.Module], *more: str) -> Callable[[], tuple[nn.Module, Any]]:
    """Two sequences of tokens, also under other names."""

    def both() -> tuple[nn.Module, Any]:
        ids = torch.arange(14).view(2, 7) % 13
        return build(), {"input_ids": ids, **dict.fromkeys(more, ids), "use_cache": False}

    return both


def decoder(family: str, **more: Any) -> nn.Module:
    """A causal language model of two layers, with grouped-query attention."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        **more,
    )
    return getattr(transformers, f"{family}ForCausalLM")(config)  # type: ignore[no-any-return]


def bert() -> tuple[nn.Module, Any]:
    """Post-norm layers."""
    config = transformers.BertConfig(
        vocab_size=13, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.BertModel(config), {"input_ids": torch.arange(14).view(2, 7) % 13}


def gpt2() -> nn.Module:
    """Two layers whose linear layers are called Conv1D."""
    config = transformers.GPT2Config(vocab_size=13, n_embd=16, n_layer=2, n_head=2, n_inner=12, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


def t5() -> nn.Module:
    """An encoder and a decoder of two layers each."""
    config = transformers.T5Config(vocab_size=13, d_model=16, d_ff=12, num_layers=2, num_heads=2, d_kv=8)
    return transformers.T5Model(config)


NETWORKS: Mapping[str, Network] = {
    "resnet": Network(images(lambda: ResNet(3, 3, (8, 8), (4, 6), 2), 8), 5),
    "resnet, pre-activation": Network(images(PreActivation, 6), 3),
    "resnet of torchvision": Network(images(blocks_of_torchvision, 8), 5),
    "densenet": Network(images(lambda: DenseNet(4, (2, 2), 6, 2, num_classes=3), 32), 4),
    "inception": Network(
        images(lambda: Classifier(6, [Inception(6, 4, 4, 6, 2, 4, 3), Inception(17, 4, 4, 6, 2, 4, 3)], 17), 6), 8
    ),
    "unet": Network(images(lambda: Classifier(4, [UNet((4, 6, 8), True)], 4), 8), 12),
    "vit": Network(images(lambda: tv.VisionTransformer(8, 4, 2, 2, 12, 10, num_classes=3), 8), 4),
    "swin": Network(images(lambda: tv.SwinTransformer([2, 2], 8, [2, 1], [2, 2], [2, 2], num_classes=3), 8), 6),
    "llama": Network(tokens(lambda: decoder("Llama")), 4),
    "mixtral": Network(tokens(lambda: decoder("Mixtral", num_local_experts=4)), 4),
    "t5": Network(tokens(t5, "decoder_input_ids"), 10),
    "gpt2": Network(tokens(gpt2), 5),
    "bert": Network(bert, 6),
    "cells": Network(images(lambda: CellNetwork(3, 3, 4, cells=2, nodes=2), 6), 64),
    "super resnet": Network(images(lambda: SuperResNet(3, 3, (4, 6), (1, 2)), 6), 28),
    "stacked unets": Network(images(lambda: StackedUnets(3, 3, (4, 6, 8)), 6), 26),
    "supernet": Network(images(lambda: DemoSupNet(3, 3, 4), 6), 7),
}
LARGE: Mapping[str, Network] = {  # too slow for the tests, or there in another size
    "mixtral experts": Network(tokens(lambda: decoder("Mixtral", num_local_experts=8)), 4),
    "olmoe experts": Network(tokens(lambda: decoder("Olmoe", num_experts=8, num_experts_per_tok=2)), 4),
    "darts, 8 cells": Network(images(lambda: CellNetwork(10, 3, 16, 8, 4, (2, 5)), 8), 592),
}
