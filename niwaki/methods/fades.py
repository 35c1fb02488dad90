"""How the units that a period has marked come to zero in its steps; the table of all fades, by name.

A fade is an update that decides on step t = 0 ... T - 1 of a period what is left of each unit. The linear one leaves
(T - t - 1) / (T - t) of what there is. On the last step whatever is still there is set to zero, by any fade.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from niwaki.errors import MethodError, UnknownName

if TYPE_CHECKING:  # a schedule names its fade, and what fades are made of knows schedules
    from niwaki.methods.parts import Update
    from niwaki.methods.trained_units import TrainedUnits

LINEAR = "linear"
FADING = "fading"  # the phase

Build = Callable[["TrainedUnits"], "Update"]
_REGISTRY: dict[str, Build] = {}


def fade(name: str) -> Callable[[Build], Build]:
    """Register the decorated function or class, which makes the update for some units, under ``name``."""

    def register(build: Build) -> Build:
        if name in _REGISTRY:
            raise MethodError(f"There is already a fade {name!r}. Give the new one another name.")
        _REGISTRY[name] = build
        return build

    return register


def fades() -> dict[str, Build]:
    """All registered fades by name."""
    return dict(_REGISTRY)


def fade_named(name: str) -> Build:
    """The fade called ``name``.

    Raises:
        UnknownName: no fade has this name; the message lists those that exist.
    """
    if not isinstance(name, str) or name not in _REGISTRY:
        raise UnknownName(f"There is no fade {name!r}. Registered are: {', '.join(sorted(_REGISTRY))}.")
    return _REGISTRY[name]
