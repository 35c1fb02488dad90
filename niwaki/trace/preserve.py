"""Leave a model exactly as it was: mode, weights, gradients, buffers, attributes, caches, random state."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from niwaki.trace.pretend import is_fake

_CONTAINERS = (list, dict, set, deque)


@contextmanager
def preserved(model: torch.nn.Module) -> Iterator[None]:
    """Whatever happens inside, an error included, ``model`` and the random generators come out as they went in.

    Buffers are copied; a write to a parameter is undone by the tracer from a copy made just before it. Attributes are
    restored by identity, and containers and plain tensors among them, however nested, also by content. Objects of other
    kinds that hang on a module are not looked into.
    """
    modules = list(model.modules())
    attributes = [(module, dict(module.__dict__)) for module in modules]
    contents: dict[int, tuple[Any, Any]] = {}
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for _, saved in attributes:
        for value in saved.values():
            _collect(value, contents, own)
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad, parameter.data) for parameter in model.parameters()]
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
        with torch.no_grad():
            for value, content in contents.values():
                _restore(value, content)
            for buffer, content in buffers:
                if _differs(buffer, content):
                    buffer.copy_(content)
        for parameter, gradient, data in gradients:
            if not is_fake(parameter) and (
                parameter.data.data_ptr() != data.data_ptr() or parameter.shape != data.shape
            ):
                parameter.data = data
            parameter.grad = gradient


def _collect(value: Any, contents: dict[int, tuple[Any, Any]], own: set[int]) -> None:
    """Note the content of containers, however nested, and of tensors that are no parameters or buffers."""
    if id(value) in contents or id(value) in own:
        return
    if isinstance(value, torch.Tensor):
        contents[id(value)] = value, value.detach().clone()
    elif isinstance(value, _CONTAINERS):
        contents[id(value)] = value, value.copy() if value else ()  # copying all the empty ones takes most time
        for item in value.values() if isinstance(value, dict) else value:
            _collect(item, contents, own)
    elif isinstance(value, tuple):
        for item in value:
            _collect(item, contents, own)


def _restore(value: Any, content: Any) -> None:
    if isinstance(value, torch.Tensor):
        if _differs(value, content):
            value.detach().copy_(content)
    elif isinstance(value, list):
        value[:] = content
    else:
        value.clear()
        value.extend(content) if isinstance(value, deque) else value.update(content)


def _differs(tensor: torch.Tensor, content: torch.Tensor) -> bool:
    return not tensor.is_meta and not is_fake(tensor) and not torch.equal(tensor, content)
