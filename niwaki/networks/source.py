"""The definition of a source of networks, and the table of all sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn


@dataclass(frozen=True, slots=True)
class ImageTask:
    """The task of a network: images [B, channels, *size] in, scores [B, classes] out."""

    classes: int
    channels: int
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class NetworkRequest:
    """The wishes for a network that is inspected; with None, the source chooses.

    ``images``: channels and size, if its first input is a batch of images.
    """

    classes: int | None = None
    images: tuple[int, tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ExampleNetwork:
    """A network and example inputs as `niwaki.search_space` takes them; None if the source has none."""

    model: nn.Module
    inputs: Any = None


class NetworkSource(ABC):
    """A source of networks. ``form``: the form of its names. ``channels``: the channels of its images, if fixed.
    ``trained``: whether its networks may come with the weights of a training."""

    form: ClassVar[str]
    channels: ClassVar[int | None] = None
    trained: ClassVar[bool] = False

    @abstractmethod
    def item(self, name: str) -> str | None:
        """The argument of `fit` and `show` for a name of this source; None for names of other sources."""

    @abstractmethod
    def fit(self, item: str, task: ImageTask, width: float) -> nn.Module:
        """A network to train on ``task``, of fresh random weights; ``width`` scales it if the source supports that."""

    @abstractmethod
    def show(self, item: str, wish: NetworkRequest) -> ExampleNetwork:
        """A network in its usual size, to inspect. Inputs are on the CPU, wherever the network is."""


class LibrarySource(NetworkSource):
    """Networks of a library, whose names stand behind a ``prefix``, as in ``timm:NAME``."""

    prefix: ClassVar[str]

    def item(self, name: str) -> str | None:
        """The name behind the prefix; None for a name without it."""
        return name.removeprefix(self.prefix) if name.startswith(self.prefix) else None


_SOURCES: list[NetworkSource] = []


def source(kind: type[NetworkSource]) -> type[NetworkSource]:
    """Register a source of networks (class decorator)."""
    _SOURCES.append(kind())
    return kind


def find(name: str) -> tuple[NetworkSource, str] | None:
    """The source of a network, and the item of its name there."""
    for candidate in _SOURCES:
        item = candidate.item(name)
        if item is not None:
            return candidate, item
    return None


def forms() -> str:
    """The forms of names, as part of a sentence.

    >>> import niwaki.networks
    >>> forms()  # doctest: +ELLIPSIS
    'resnet, mlp, superresnet, unets, cells, supernet, timm:NAME, ... or path/to/file.py:factory'
    """
    known = [candidate.form for candidate in _SOURCES]
    return f"{', '.join(known[:-1])} or {known[-1]}"
