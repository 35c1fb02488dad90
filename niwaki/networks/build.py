"""Build a network from its name."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

from niwaki.errors import NiwakiError, RunError
from niwaki.networks.source import ExampleNetwork, ImageTask, NetworkRequest, NetworkSource, find, forms


def build_model(name: str, task: ImageTask, width: float = 1.0) -> nn.Module:
    """A network with fresh random weights (from torch's global generator).

    Args:
        name: a built-in name, ``timm:NAME``, ``torchvision:NAME`` or ``path/to/file.py:factory``. A factory is called
            with those of ``num_classes``, ``in_channels`` and ``image_size`` that it has parameters for.
        task: the images and classes that it must fit.
        width: multiplies all widths of a built-in network.

    Raises:
        RunError: there is no such network, or it cannot be built.
    """
    source, item = _found(name)
    return source.fit(item, task, width)


def example_network(name: str, wish: NetworkRequest, meta: bool = False) -> ExampleNetwork:
    """A network of random weights in its usual size, with example inputs if its source has any; nothing is downloaded.
    ``meta``: on the meta device, where it has shapes and no weights.

    Raises:
        RunError: there is no such network, or it cannot be built.

    >>> found = example_network("mlp", NetworkRequest())
    >>> [tuple(x.shape) for x in found.inputs]
    [(1, 1, 8, 8)]
    """
    source, item = _found(name)
    try:
        with torch.device("meta") if meta else nullcontext():
            return source.show(item, wish)
    except NiwakiError:
        raise
    except Exception as cause:
        where = " on the meta device" if meta else ""
        first = next(iter(str(cause).strip().splitlines()), "")
        raise RunError(f"{name} cannot be built{where}: {type(cause).__name__}: {first}") from cause


def channels_of(name: str, channels: int) -> int:
    """The image channels of a network: fixed by its source (torchvision's networks take three), else ``channels``."""
    found = find(name)
    fixed = found[0].channels if found else None
    return channels if fixed is None else fixed


def _found(name: str) -> tuple[NetworkSource, str]:
    found = find(name)
    if found is None:
        raise RunError(f"There is no model {name!r}. Give {forms()}.")
    return found
