"""Networks by name: built in, from timm or torchvision, or from a function in a Python file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from niwaki.train import torchvision_cpu
from niwaki.train.errors import RunError
from niwaki.train.networks import BUILT_IN


@dataclass(frozen=True, slots=True)
class Task:
    """What a network must fit: images [B, channels, *size] in, scores [B, classes] out."""

    classes: int
    channels: int
    size: tuple[int, int]


def build_model(name: str, task: Task, width: float = 1.0) -> nn.Module:
    """A network with fresh random weights (from torch's global generator).

    Args:
        name: a built-in name, ``timm:NAME``, ``torchvision:NAME`` or ``path/to/file.py:factory``. A factory is called
            with those of ``num_classes``, ``in_channels`` and ``image_size`` that it has parameters for.
        task: what it must fit.
        width: multiplies all widths of a built-in network.

    Raises:
        RunError: there is no such network, or it cannot be built.
    """
    if name in BUILT_IN:
        return BUILT_IN[name](task.classes, task.channels, task.size, width)
    source, colon, item = name.rpartition(":")
    if colon and source == "timm":
        return _from_timm(item, task)
    if colon and source == "torchvision":
        return _from_torchvision(item, task)
    if colon and source.endswith(".py"):
        return _from_file(Path(source), item, task)
    raise RunError(
        f"There is no model {name!r}. Give {', '.join(BUILT_IN)}, timm:NAME, torchvision:NAME or "
        "path/to/file.py:factory."
    )


def channels_of(name: str, channels: int) -> int:
    """The image channels a network takes, where it has no choice: torchvision's take three."""
    return 3 if name.startswith("torchvision:") else channels


def _from_timm(name: str, task: Task) -> nn.Module:
    _import_torchvision()  # timm imports it
    try:
        import timm
    except ImportError as cause:
        raise RunError(f"timm:{name} needs timm: pip install timm.") from cause
    if not timm.is_model(name):
        raise RunError(f"timm has no model {name!r}.{_nearest(name, timm.list_models())}")
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=task.classes, in_chans=task.channels, img_size=max(task.size)
        )
    except TypeError:  # most convolutional networks have no image size
        model = timm.create_model(name, pretrained=False, num_classes=task.classes, in_chans=task.channels)
    return model


def _from_torchvision(name: str, task: Task) -> nn.Module:
    models: Any = importlib.import_module(f"{_import_torchvision()}.models")
    if name not in models.list_models(module=models):
        raise RunError(f"torchvision has no model {name!r}.{_nearest(name, models.list_models(module=models))}")
    model: nn.Module = models.get_model(name, weights=None, num_classes=task.classes)
    return model


def _import_torchvision() -> str:
    try:
        return torchvision_cpu.load().__name__
    except ImportError as cause:
        raise RunError(str(cause)) from cause


def _from_file(path: Path, item: str, task: Task) -> nn.Module:
    if not path.is_file():
        raise RunError(f"There is no file {str(path)!r} to take the model from.")
    spec = importlib.util.spec_from_file_location(f"niwaki_model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RunError(f"{str(path)!r} cannot be imported as a Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and the source lines of pins look the module up
    try:
        spec.loader.exec_module(module)
    except Exception as cause:
        raise RunError(f"Importing {str(path)!r} failed: {type(cause).__name__}: {cause}") from cause
    factory: Callable[..., object] | None = vars(module).get(item)
    if factory is None or not callable(factory):
        raise RunError(f"{str(path)!r} has no function {item!r}.")
    offered: Mapping[str, object] = {
        "num_classes": task.classes,
        "in_channels": task.channels,
        "image_size": task.size,
    }
    wanted = inspect.signature(factory).parameters
    try:
        model = factory(**{key: value for key, value in offered.items() if key in wanted})
    except Exception as cause:
        raise RunError(f"{item}() in {str(path)!r} failed: {type(cause).__name__}: {cause}") from cause
    if not isinstance(model, nn.Module):
        raise RunError(f"{item}() in {str(path)!r} returned a {type(model).__name__}, not a torch.nn.Module.")
    return model


def _nearest(name: str, names: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, names, n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""
