"""Leave a model exactly as it was: mode, weights, gradients, buffers, attributes, caches, random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_CONTAINERS = (list, dict, set)


@contextmanager
def preserved(model: torch.nn.Module) -> Iterator[None]:
    """Whatever happens inside, an error included, ``model`` and the random generators come out as they went in.

    Buffers are copied; parameters only have their version watched (a forward pass does not write them: one that does
    is undone from a copy made by the tracer before the write). Attributes are restored by identity, and lists, dicts
    and sets that hang directly on a module also by content.
    """
    modules = list(model.modules())
    attributes = [(module, dict(module.__dict__)) for module in modules]
    contents = [
        (value, _copy(value)) for _, saved in attributes for value in saved.values() if isinstance(value, _CONTAINERS)
    ]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(enabled=True):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, saved in attributes:
            module.__dict__.clear()
            module.__dict__.update(saved)
        for value, content in contents:
            _restore(value, content)
        with torch.no_grad():
            for buffer, content in buffers:
                if not buffer.is_meta and not torch.equal(buffer, content):
                    buffer.copy_(content)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _copy(value: Any) -> Any:
    return value.copy() if value else ()  # most are empty, and copying those is what would take the time


def _restore(value: Any, content: Any) -> None:
    if isinstance(value, list):
        value[:] = content
    else:
        value.clear()
        value.update(content)
