"""The built-in networks, by name, as a source."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from niwaki.networks.cells import CellNetwork
from niwaki.networks.demo_supernet import DemoSupNet
from niwaki.networks.small import Perceptron, ResNet
from niwaki.networks.source import ExampleNetwork, ImageTask, NetworkRequest, NetworkSource, source
from niwaki.networks.stacked_unets import StackedUnets
from niwaki.networks.super_resnet import SuperResNet


def _scaled(widths: tuple[int, ...], width: float) -> tuple[int, ...]:
    return tuple(max(1, round(channels * width)) for channels in widths)


Factory = Callable[[int, int, tuple[int, int], float], nn.Module]

BUILT_IN: Mapping[str, Factory] = {
    "resnet": lambda classes, channels, size, width: ResNet(classes, channels, size, _scaled((16, 32, 64), width)),
    "mlp": lambda classes, channels, size, width: Perceptron(classes, channels, size, _scaled((256, 128), width)),
    "superresnet": lambda classes, channels, size, width: SuperResNet(
        classes, channels, _scaled((16, 32, 64), width), (2, 2, 2)
    ),
    "unets": lambda classes, channels, size, width: StackedUnets(classes, channels, _scaled((16, 32, 64), width)),
    "cells": lambda classes, channels, size, width: CellNetwork(classes, channels, _scaled((16,), width)[0]),
    "supernet": lambda classes, channels, size, width: DemoSupNet(classes, channels, _scaled((16,), width)[0]),
}


@source
class BuiltIn(NetworkSource):
    """Small networks for small images."""

    form = ", ".join(BUILT_IN)

    def item(self, name: str) -> str | None:
        """The name itself."""
        return name if name in BUILT_IN else None

    def fit(self, item: str, task: ImageTask, width: float) -> nn.Module:
        """The network for the task."""
        return BUILT_IN[item](task.classes, task.channels, task.size, width)

    def show(self, item: str, wish: NetworkRequest) -> ExampleNetwork:
        """The network that `niwaki train` trains on the digits, or for the images of the request."""
        channels, size = wish.images or (1, (8, 8))
        inputs = (torch.randn(1, channels, *size, device="cpu"),)
        return ExampleNetwork(self.fit(item, ImageTask(wish.classes or 10, channels, size), 1.0), inputs)
