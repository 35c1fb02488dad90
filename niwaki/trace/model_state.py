"""Restore a model exactly: mode, weights, gradients, buffers, attributes, caches, random state."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from niwaki.core.objects import attributes_of
from niwaki.trace.contents import PLAIN, Contents, rewrite
from niwaki.trace.fake import is_fake
from niwaki.trace.functions import NamedVariables, functions_on, preserved_globals

_EMPTIABLE = frozenset({list, dict, OrderedDict, set})


class ModelState:
    """A snapshot of a model.

    Buffers are copied; the tracer undoes a write to a parameter from a copy made just before it. Attributes are
    restored by identity; everything reachable from them (containers, plain tensors, objects of any kind, attributes of
    parameters) is restored by content too, at any depth.
    """

    def __init__(self, model: torch.nn.Module, before: ModelState | None = None, others: Any = ()) -> None:
        """A snapshot of ``model`` and ``others``; content that the snapshot ``before`` holds already is taken from
        there."""
        modules = list(model.modules()) if before is None else [module for module, _ in before._attributes.values()]
        self._attributes: dict[int, tuple[torch.nn.Module, dict[str, Any]]] = {
            id(module): (module, dict(module.__dict__)) for module in modules
        }
        parameters = _distinct(tensor for module in modules for tensor in module._parameters.values())
        buffers = _distinct(tensor for module in modules for tensor in module._buffers.values())
        self._empty: list[Any] = []  # a module has a dozen containers for hooks, mostly with nothing inside
        own = {id(tensor) for tensor in (*parameters, *buffers)}
        self._contents: Contents = Contents(own | self._attributes.keys(), None if before is None else before._contents)
        for number, (_, saved) in self._attributes.items():
            known = {} if before is None else before._attributes[number][1]
            for name, value in saved.items():
                kind = type(value)
                if kind in _EMPTIABLE and not value:
                    self._empty.append(value)
                elif kind not in PLAIN and known.get(name) is not value:
                    self._contents.note(value)
        self._notes = [(tensor, dict(attributes_of(tensor)[0])) for tensor in (*parameters, *buffers)]
        for _, noted in self._notes:
            self._contents.note(noted)
        self._contents.note(others)
        copied = {} if before is None else before._buffers
        self._buffers: dict[int, tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]] = {
            id(buffer): copied.get(id(buffer)) or (buffer, (buffer.data, buffer.detach().clone())) for buffer in buffers
        }
        self._gradients = [(parameter, parameter.grad, parameter.data) for parameter in parameters]

    def restore(self) -> None:
        """Restore the model."""
        for module, saved in self._attributes.values():
            module.__dict__.clear()
            module.__dict__.update(saved)
        for container in self._empty:
            if container:
                container.clear()
        self._contents.restore()
        with torch.no_grad():
            for buffer, kept in self._buffers.values():
                rewrite(buffer, kept)
        for parameter, gradient, data in self._gradients:
            if not is_fake(parameter) and (
                parameter.data.data_ptr() != data.data_ptr() or parameter.shape != data.shape
            ):
                parameter.data = data
            parameter.grad = gradient
        for tensor, noted in self._notes:
            own, _ = attributes_of(tensor)
            if own or noted:
                own.clear()
                own.update(noted)


def _distinct(tensors: Iterator[torch.Tensor | None]) -> list[torch.Tensor]:
    return list({id(tensor): tensor for tensor in tensors if tensor is not None}.values())


@contextmanager
def preserved(model: torch.nn.Module, others: Any = ()) -> Iterator[ModelState]:
    """Restore ``model``, the content of ``others`` and the random generators at the end of the block, after an error
    too."""
    with _random_state():
        snapshot = ModelState(model, others=others)
        try:
            yield snapshot
        finally:
            snapshot.restore()


@contextmanager
def restored(snapshot: ModelState, named: NamedVariables) -> Iterator[None]:
    """As `preserved`, but the model and the variables come out as they were when the snapshots were made."""
    with _random_state():
        try:
            yield
        finally:
            snapshot.restore()
            named.restore()


@contextmanager
def held(model: torch.nn.Module, others: Any) -> Iterator[None]:
    """Restore the content of ``others`` (objects among the inputs, such as a cache) at the end of the block, and the
    variables that functions on ``model`` enclose or name, which copies of the model share."""
    modules = list(model.modules())
    own = {id(tensor) for module in modules for tensor in (*module._parameters.values(), *module._buffers.values())}
    contents = Contents(own.union(map(id, modules)))
    contents.note(others)
    contents.note(list(functions_on(modules)))
    try:
        with preserved_globals(modules):
            yield
    finally:
        contents.restore()


@contextmanager
def drawing_alike() -> Iterator[None]:
    """Inside of every such block the random generators start from the same state; then they are as they were."""
    with _random_state():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        yield


@contextmanager
def _random_state() -> Iterator[None]:
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(enabled=True):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
