"""A source of networks: functions in Python files."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from niwaki.errors import RunError
from niwaki.networks.source import ExampleNetwork, ImageTask, NetworkRequest, NetworkSource, source
from niwaki.trace.structures import map_tensors

Factory = Callable[..., object]


@source
class File(NetworkSource):
    """A factory in a Python file. It is called with those of ``num_classes``, ``in_channels`` and ``image_size`` that
    it has parameters for. It returns the network, or the network and example inputs."""

    form = "path/to/file.py:factory"
    trained = True

    def item(self, name: str) -> str | None:
        """The name itself."""
        path, colon, _ = name.rpartition(":")
        return name if colon and path.endswith(".py") else None

    def fit(self, item: str, task: ImageTask, width: float) -> nn.Module:
        """The network of the factory for this task."""
        offered = {"num_classes": task.classes, "in_channels": task.channels, "image_size": task.size}
        return _made(item, _factory(item), offered).model

    def show(self, item: str, wish: NetworkRequest) -> ExampleNetwork:
        """The network of the factory, called with the known arguments only."""
        offered: dict[str, object] = {} if wish.classes is None else {"num_classes": wish.classes}
        if wish.images is not None:
            offered["in_channels"], offered["image_size"] = wish.images
        factory = _factory(item)
        required = [
            name
            for name, parameter in inspect.signature(factory).parameters.items()
            if parameter.default is parameter.empty and name not in offered
        ]
        for name in ("in_channels", "image_size"):
            if name in required:
                raise RunError(
                    f"{item} needs {name}, which has no default. Give the shape of its images, such as "
                    "--input 1x3x32x32."
                )
        return _made(item, factory, {"num_classes": 10, **offered} if "num_classes" in required else offered)


def _factory(item: str) -> Factory:
    text, _, name = item.rpartition(":")
    path = Path(text)
    if not path.is_file():
        raise RunError(f"There is no file {text!r} to take the model from.")
    spec = importlib.util.spec_from_file_location(f"niwaki_model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RunError(f"{text!r} cannot be imported as a Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and the source lines of pins look the module up
    try:
        spec.loader.exec_module(module)
    except Exception as cause:
        raise RunError(f"Importing {text!r} failed: {type(cause).__name__}: {cause}") from cause
    factory: Factory | None = vars(module).get(name)
    if factory is None or not callable(factory):
        raise RunError(f"{text!r} has no function {name!r}.")
    return factory


def _made(item: str, factory: Factory, offered: Mapping[str, object]) -> ExampleNetwork:
    path, _, name = item.rpartition(":")
    wanted = inspect.signature(factory).parameters
    try:
        made = factory(**{key: value for key, value in offered.items() if key in wanted})
    except Exception as cause:
        raise RunError(f"{name}() in {path!r} failed: {type(cause).__name__}: {cause}") from cause
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise RunError(
            f"{name}() in {path!r} returned an object of the type {type(model).__name__}, not a torch.nn.Module."
        )
    return ExampleNetwork(model, map_tensors(inputs, _grounded))


def _grounded(tensor: Tensor) -> Tensor:
    """An input on the CPU in place of one that a factory made on the meta device."""
    if not tensor.is_meta:
        return tensor
    if tensor.is_floating_point():
        return torch.randn(tensor.shape, dtype=tensor.dtype, device="cpu")
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
