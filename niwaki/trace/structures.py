"""Tensors inside inputs and outputs: containers, dataclasses, objects of any kind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Set
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

ExampleCall = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments


def tensors_in(structure: Any) -> Iterator[torch.Tensor]:
    """The tensors of inputs or outputs: those in (nested) containers and dataclasses, or, if there are none, those in
    whatever objects there are. An object beside tensors, such as a cache, is none of the model's outputs."""
    found = list(_visible(structure))
    return iter(found) if found else _search(structure, set())


def map_tensors(structure: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of inputs, with ``function`` applied to the tensors in (nested) containers and dataclasses."""

    def mapped(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return function(leaf)
        if not is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        made = copy(leaf)
        for field in fields(leaf):
            object.__setattr__(made, field.name, map_tensors(getattr(leaf, field.name), function))
        return made

    return tree_map(mapped, structure)


def objects_in(structure: Any) -> list[str]:
    """The types of objects beside tensors in which `tensors_in` does not look, though they hold some."""
    leaves = [leaf for leaf in tree_leaves(structure) if not isinstance(leaf, (torch.Tensor, *_PLAIN))]
    opaque = [leaf for leaf in leaves if not is_dataclass(leaf) and next(_search(leaf, set()), None) is not None]
    return sorted({type(leaf).__qualname__ for leaf in opaque}) if any(True for _ in _visible(structure)) else []


def _visible(structure: Any) -> Iterator[torch.Tensor]:
    for leaf in tree_leaves(structure):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _visible([getattr(leaf, field.name) for field in fields(leaf)])


def _search(structure: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    for leaf in tree_leaves(structure):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif not isinstance(leaf, _PLAIN) and id(leaf) not in seen:
            seen.add(id(leaf))
            if isinstance(leaf, (Set, deque)):
                yield from _search(list(leaf), seen)
            yield from _search([value for _, value in _attributes(leaf)], seen)


_PLAIN = (int, float, complex, str, bytes, type, type(None), torch.nn.Module, torch.dtype, torch.device)


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    """The attributes that an object keeps in its dictionary or its slots."""
    yield from getattr(thing, "__dict__", {}).items()
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            value = getattr(thing, name, None)
            if value is not None:
                yield name, value
