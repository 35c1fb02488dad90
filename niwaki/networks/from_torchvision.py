"""A source of networks: torchvision, for all tasks."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.errors import RunError, nearest
from niwaki.networks.source import ExampleNetwork, ImageTask, LibrarySource, NetworkRequest, source
from niwaki.networks.torchvision_cpu import import_torchvision


@source
class Torchvision(LibrarySource):
    """Every name that torchvision lists; those for classification can be trained."""

    prefix, form = "torchvision:", "torchvision:NAME"
    channels = 3

    def fit(self, item: str, task: ImageTask, width: float) -> nn.Module:
        """The network with another head."""
        models = _models(item, task="classification")
        model: nn.Module = models.get_model(item, weights=None, num_classes=task.classes)
        return model

    def show(self, item: str, wish: NetworkRequest) -> ExampleNetwork:
        """The network without any downloaded part, and an input of the size its weights were trained with."""
        models = _models(item)
        known = inspect.signature(models.get_model_builder(item)).parameters
        given: dict[str, Any] = {"weights_backbone": None} if "weights_backbone" in known else {}
        if wish.classes is not None:
            given["num_classes"] = wish.classes
        model: nn.Module = models.get_model(item, weights=None, **given)
        for task, example in _EXAMPLES.items():
            if item in models.list_models(module=importlib.import_module(f"{models.__name__}.{task}")):
                return ExampleNetwork(model, example(models, item))
        if isinstance(model, models.VisionTransformer):
            return ExampleNetwork(model, (_noise(3, model.image_size, model.image_size),))
        return ExampleNetwork(model, _image(models, item))


def _models(item: str, task: str | None = None) -> Any:
    models: Any = importlib.import_module(f"{import_torchvision()}.models")
    names = models.list_models(module=models) if task else models.list_models()
    if item not in names:
        kind = f" for {task}" if task and item in models.list_models() else ""
        raise RunError(f"torchvision has no model {item!r}{kind}.{nearest(item, names)}")
    return models


def _noise(*shape: int) -> Tensor:
    return torch.randn(1, *shape, device="cpu")


def _image(models: Any, item: str) -> tuple[Tensor, ...]:
    return (_noise(3, *_crop(models, item, 224)),)


def _segmented(models: Any, item: str) -> tuple[Tensor, ...]:
    return (_noise(3, 520, 520),)


def _detected(models: Any, item: str) -> tuple[list[Tensor], ...]:
    return ([torch.rand(3, 320, 320, device="cpu")],)


def _clip(models: Any, item: str) -> tuple[Tensor, ...]:
    return (_noise(3, 16, *_crop(models, item, 112)),)


def _pair(models: Any, item: str) -> tuple[Tensor, ...]:
    return _noise(3, 128, 128), _noise(3, 128, 128)


def _crop(models: Any, item: str, usual: int) -> tuple[int, int]:
    """The image size of the preprocessing that belongs to the weights."""
    sizes = vars(models.get_model_weights(item).DEFAULT.transforms()).get("crop_size", [usual])
    return sizes[0], sizes[-1]


_EXAMPLES: Mapping[str, Callable[[Any, str], Any]] = {
    "segmentation": _segmented,
    "detection": _detected,
    "video": _clip,
    "optical_flow": _pair,
}
