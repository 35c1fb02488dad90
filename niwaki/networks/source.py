"""What a source of networks is, and the table of all of them."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn


@dataclass(frozen=True, slots=True)
class ImageTask:
    """What a network must fit: images [B, channels, *size] in, scores [B, classes] out."""

    classes: int
    channels: int
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class NetworkRequest:
    """What is known of a network that is only to be looked at; None leaves the choice to the source.

    ``images``: channels and size, if its first input is a batch of images.
    """

    classes: int | None = None
    images: tuple[int, tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ExampleNetwork:
    """A network and example inputs as `niwaki.search_space` takes them; None where the source knows none."""

    model: nn.Module
    inputs: Any = None


class NetworkSource(ABC):
    """Where networks come from. ``form``: how its names look. ``channels``: of its images, if it takes no others."""

    form: ClassVar[str]
    channels: ClassVar[int | None] = None

    @abstractmethod
    def item(self, name: str) -> str | None:
        """What `fit` and `show` need to know of a name of this source; None for names of others."""

    @abstractmethod
    def fit(self, item: str, task: ImageTask, width: float) -> nn.Module:
        """A network to train on ``task``, of fresh random weights; ``width`` scales it where that has a meaning."""

    @abstractmethod
    def show(self, item: str, wish: NetworkRequest) -> ExampleNetwork:
        """A network as it usually is, to be looked at. Inputs are on the CPU, wherever the network is."""


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
    """The source of a network, and what the source wants to know of its name."""
    for candidate in _SOURCES:
        item = candidate.item(name)
        if item is not None:
            return candidate, item
    return None


def forms() -> str:
    """How names look, as part of a sentence.

    >>> import niwaki.networks
    >>> forms()
    'resnet, mlp, timm:NAME, torchvision:NAME, hf:CLASS/config.json or path/to/file.py:factory'
    """
    known = [candidate.form for candidate in _SOURCES]
    return f"{', '.join(known[:-1])} or {known[-1]}"


def nearest(name: str, names: Sequence[str]) -> str:
    """A question that names what was probably meant, or nothing."""
    near = difflib.get_close_matches(name, names, n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""
