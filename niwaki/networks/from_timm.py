"""A source of networks: timm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from niwaki.errors import RunError, nearest
from niwaki.networks.source import ExampleNetwork, ImageTask, LibrarySource, NetworkRequest, source
from niwaki.networks.torchvision_cpu import import_library, import_torchvision


@source
class Timm(LibrarySource):
    """Every name that timm knows, with or without a tag."""

    prefix, form = "timm:", "timm:NAME"

    def fit(self, item: str, task: ImageTask, width: float) -> nn.Module:
        """The network with another head, and for other channels and image sizes where timm supports them."""
        timm = _timm(item)
        return _created(timm, item, task.size, num_classes=task.classes, in_chans=task.channels)

    def show(self, item: str, wish: NetworkRequest) -> ExampleNetwork:
        """The network with the input size of its configuration."""
        timm = _timm(item)
        given: dict[str, Any] = {} if wish.classes is None else {"num_classes": wish.classes}
        usual = timm.get_pretrained_cfg(item)
        size = None
        if wish.images is not None:
            channels, size = wish.images
            given |= {} if channels == 3 else {"in_chans": channels}
            size = None if usual is not None and size == tuple(usual.input_size[1:]) else size
        model = _created(timm, item, size, **given)
        config: Any = model.pretrained_cfg
        return ExampleNetwork(model, (torch.randn(1, *config["input_size"], device="cpu"),))


def _timm(item: str) -> Any:
    import_torchvision()  # timm imports it
    timm = import_library("timm", f"timm:{item}")
    if not timm.is_model(item):
        raise RunError(f"timm has no model {item!r}.{nearest(item, timm.list_models())}")
    return timm


def _created(timm: Any, item: str, size: tuple[int, int] | None, **given: Any) -> nn.Module:
    sized: Mapping[str, Any] = {} if size is None else {"img_size": max(size)}
    try:
        model: nn.Module = timm.create_model(item, pretrained=False, **given, **sized)
    except TypeError:  # most convolutional networks have no image size
        model = timm.create_model(item, pretrained=False, **given)
    return model
