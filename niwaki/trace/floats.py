"""A ``float`` that remembers which attribute it is, for as long as nothing is computed from it."""

from __future__ import annotations

from typing import Any

import torch

from niwaki.core.metadata import EPSILONS
from niwaki.core.repairs import Scalar
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

    def __reduce__(self) -> tuple[Any, ...]:
        return (float, (float.__float__(self),))


def track_floats(path: str, module: torch.nn.Module) -> None:
    """Replace the float attributes of a module, and an epsilon that is None, by tracked floats."""
    for name, value in list(module.__dict__.items()):
        if type(value) is float:
            module.__dict__[name] = TrackedFloat(Scalar(path, name, value))
    for kind, name in EPSILONS.items():
        if isinstance(module, kind) and module.__dict__.get(name, 0.0) is None:
            dtype = next((p.dtype for p in module.parameters(recurse=False)), torch.get_default_dtype())
            module.__dict__[name] = TrackedFloat(Scalar(path, name, torch.finfo(dtype).eps, epsilon=True))
