"""Leave a model exactly as it was: mode, weights, gradients, buffers, attributes, caches, random state."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from niwaki.trace.floats import TrackedFloat
from niwaki.trace.numbers import TrackedInt
from niwaki.trace.pretend import is_fake

_CONTAINERS = (list, dict, set, deque)
_EMPTIABLE = frozenset({list, dict, OrderedDict, set})
_NOTHING = object()
_PLAIN = frozenset({bool, int, float, str, type(None), TrackedInt, TrackedFloat})


class Snapshot:
    """What a model was like when this was made.

    Buffers are copied; a write to a parameter is undone by the tracer from a copy made just before it. Attributes are
    restored by identity, and containers and plain tensors among them, however nested, also by content. Objects of other
    kinds that hang on a module are not looked into.
    """

    def __init__(self, model: torch.nn.Module, before: Snapshot | None = None) -> None:
        """Of ``model``; of what hung on it already in the snapshot ``before``, the content is taken from there."""
        modules = list(model.modules()) if before is None else [module for module, _ in before._attributes.values()]
        self._attributes: dict[int, tuple[torch.nn.Module, dict[str, Any]]] = {
            id(module): (module, dict(module.__dict__)) for module in modules
        }
        parameters = _distinct(tensor for module in modules for tensor in module._parameters.values())
        buffers = _distinct(tensor for module in modules for tensor in module._buffers.values())
        self._contents: dict[int, tuple[Any, Any]] = {} if before is None else dict(before._contents)
        self._empty: list[Any] = []  # a module has a dozen containers for hooks, mostly with nothing inside
        self._own = {id(tensor) for tensor in (*parameters, *buffers)}
        for number, (_, saved) in self._attributes.items():
            known = {} if before is None else before._attributes[number][1]
            for name, value in saved.items():
                kind = type(value)
                if kind in _EMPTIABLE and not value:
                    self._empty.append(value)
                elif kind not in _PLAIN and known.get(name) is not value:
                    self._collect(value)
        copied = {} if before is None else before._buffers
        self._buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {
            id(buffer): copied.get(id(buffer)) or (buffer, buffer.detach().clone()) for buffer in buffers
        }
        self._gradients = [(parameter, parameter.grad, parameter.data) for parameter in parameters]

    def _collect(self, value: Any) -> None:
        """Note the content of containers, however nested, and of tensors that are no parameters or buffers."""
        inside: Iterable[Any] = ()
        if isinstance(value, tuple):
            inside = value
        elif isinstance(value, _CONTAINERS):
            if id(value) not in self._contents:
                self._contents[id(value)] = value, _content(value)
                content = self._contents[id(value)][1]
                inside = content.values() if isinstance(value, dict) else content
        elif isinstance(value, torch.Tensor) and id(value) not in self._contents and id(value) not in self._own:
            self._contents[id(value)] = value, value.detach().clone()
        for item in inside:
            if type(item) not in _PLAIN:
                self._collect(item)

    def restore(self) -> None:
        """Make the model what it was."""
        for module, saved in self._attributes.values():
            module.__dict__.clear()
            module.__dict__.update(saved)
        for container in self._empty:
            if container:
                container.clear()
        with torch.no_grad():
            for value, content in self._contents.values():
                _restore(value, content)
            for buffer, content in self._buffers.values():
                _write(buffer, content)
        for parameter, gradient, data in self._gradients:
            if not is_fake(parameter) and (
                parameter.data.data_ptr() != data.data_ptr() or parameter.shape != data.shape
            ):
                parameter.data = data
            parameter.grad = gradient


def _distinct(tensors: Iterator[torch.Tensor | None]) -> list[torch.Tensor]:
    return list({id(tensor): tensor for tensor in tensors if tensor is not None}.values())


@contextmanager
def preserved(model: torch.nn.Module) -> Iterator[Snapshot]:
    """Whatever happens inside, an error included, ``model`` and the random generators come out as they went in."""
    with _random_state():
        snapshot = Snapshot(model)
        try:
            yield snapshot
        finally:
            snapshot.restore()


@contextmanager
def restored(snapshot: Snapshot) -> Iterator[None]:
    """As `preserved`, but the model comes out as it was when the snapshot was made."""
    with _random_state():
        try:
            yield
        finally:
            snapshot.restore()


@contextmanager
def _random_state() -> Iterator[None]:
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(enabled=True):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


# What follows calls the methods of the built-in classes: one of one's own may forbid to write, or do more than that.


def _content(value: Any) -> Any:
    """What a container holds: for a dictionary as another, else in a list."""
    if isinstance(value, dict):
        return dict(_dictionary(value).items(value))
    kind = next(kind for kind in (list, set, deque) if isinstance(value, kind))
    return list(kind.__iter__(value))


def _restore(value: Any, content: Any) -> None:
    if isinstance(value, torch.Tensor):
        _write(value.detach(), content)
    elif isinstance(value, dict):
        kind = _dictionary(value)
        if not (_same(kind.keys(value), content.keys()) and _same(kind.values(value), content.values())):
            kind.clear(value)
            for name, item in content.items():
                kind.__setitem__(value, name, item)
    elif isinstance(value, set):
        set.clear(value)
        set.update(value, content)
    else:
        sequence = list if isinstance(value, list) else deque
        if not _same(sequence.__iter__(value), content):
            sequence.clear(value)
            sequence.extend(value, content)


def _dictionary(value: dict[Any, Any]) -> type[dict[Any, Any]]:
    return OrderedDict if isinstance(value, OrderedDict) else dict


def _same(now: Iterable[Any], before: Iterable[Any]) -> bool:
    """Whether both are the very same things, in the same order."""
    return all(one is other for one, other in zip_longest(now, before, fillvalue=_NOTHING))


def _write(tensor: torch.Tensor, content: torch.Tensor) -> None:
    """Give a tensor its old content, and its old shape: an observer of quantisation gets its own in its first pass."""
    if _differs(tensor, content):
        if tensor.shape != content.shape:
            tensor.resize_(content.shape)
        tensor.copy_(content)


def _differs(tensor: torch.Tensor, content: torch.Tensor) -> bool:
    return not tensor.is_meta and not is_fake(tensor) and not torch.equal(tensor, content)
