"""A ``float`` that remembers which attribute it is, for as long as nothing is computed from it."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch

from niwaki.core.metadata import EPSILONS
from niwaki.core.repairs import Scalar
from niwaki.trace.extent import Place
from niwaki.trace.numbers import current_trace


class TrackedFloat(float):
    """A float attribute of a module. Arithmetic gives plain floats, which no repair can reach."""

    scalar: Scalar
    trace: object

    def __new__(cls, scalar: Scalar) -> TrackedFloat:
        self = super().__new__(cls, scalar.value)
        self.scalar = scalar
        self.trace = current_trace.get()
        return self

    # What code is told that asks for it; `type` tells the truth.
    __class__ = property(lambda self: float)

    def __reduce__(self) -> tuple[Any, ...]:
        return (float, (float.__float__(self),))


def track_floats(path: str, module: torch.nn.Module, plain: Container[Place]) -> list[str]:
    """Replace the float attributes of a module, and an epsilon that is None, by tracked floats, but for those that have
    to stay ``plain``. Returns the names of those replaced."""
    made = []
    for name, value in list(module.__dict__.items()):
        if type(value) is float and (path, name, ()) not in plain:
            module.__dict__[name] = TrackedFloat(Scalar(path, name, value))
            made.append(name)
    for kind, name in EPSILONS.items():
        if isinstance(module, kind) and module.__dict__.get(name, 0.0) is None and (path, name, ()) not in plain:
            dtype = next((p.dtype for p in module.parameters(recurse=False)), torch.get_default_dtype())
            module.__dict__[name] = TrackedFloat(Scalar(path, name, torch.finfo(dtype).eps, epsilon=True))
            made.append(name)
    return made
