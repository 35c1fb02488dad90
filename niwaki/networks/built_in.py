"""The built-in networks, as a source."""

from __future__ import annotations

import torch
from torch import nn

from niwaki.networks.small import BUILT_IN
from niwaki.networks.source import ExampleNetwork, ImageTask, NetworkRequest, NetworkSource, source


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
