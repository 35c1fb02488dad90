"""The table of all mask generators by name."""

from __future__ import annotations

from typing import TypeVar

from niwaki.errors import MethodError, UnknownName
from niwaki.masks.protocol import MaskGenerator

Kind = TypeVar("Kind", bound=type[MaskGenerator])
_REGISTRY: dict[str, type[MaskGenerator]] = {}


def generator(kind: Kind) -> Kind:
    """Register the decorated class under its ``name``."""
    if kind.name in _REGISTRY:
        raise MethodError(f"There is already a mask generator {kind.name!r}. Give the new one another name.")
    _REGISTRY[kind.name] = kind
    return kind


def generators() -> dict[str, type[MaskGenerator]]:
    """All registered generators by name.

    >>> sorted(generators())
    ['gru', 'independent', 'shared', 'transformer']
    """
    return dict(_REGISTRY)


def generator_named(name: object) -> type[MaskGenerator]:
    """The generator called ``name``.

    Raises:
        UnknownName: there is none; the message lists those there are.
    """
    if not isinstance(name, str) or name not in _REGISTRY:
        raise UnknownName(f"There is no mask generator {name!r}. Registered are: {', '.join(sorted(_REGISTRY))}.")
    return _REGISTRY[name]
