"""Paths into the attributes of modules (containers, configs, partials, closures): read values, and replace them in
copies.

Nothing here changes its arguments, and no code of copied objects runs: an object that several modules share is
unchanged for all but the one that gets a copy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import torch

from niwaki.core.libraries import TORCH, is_of
from niwaki.core.objects import (
    Note,
    attributes_of,
    class_attribute,
    closure_of,
    copyable,
    empty,
    function_like,
    set_attributes,
)


@dataclass(frozen=True, slots=True)
class Field:
    """A step to an attribute of an object; a step to an item of a container is its index or key."""

    name: str


Step = int | str | Field
Where = tuple[Step, ...]

_LONGEST = 256  # containers with more items than this are data, not settings
_PARTIAL = ("func", "args", "keywords")
_FUNCTION = ("__defaults__", "__kwdefaults__", "__closure__")
_SEQUENCES = (tuple, list, torch.Size)
# Objects with an identity of their own, which a copy cannot replace.
_UNIQUE = (torch.nn.Module, torch.Tensor, type, Enum, ModuleType, BaseException, Note)


def describe(module: str, name: str, where: Where) -> str:
    """A path as Python code: ``layers.0.attention.config.heads``, ``norm.normalized_shape[0]``."""
    steps = (f".{step.name}" if isinstance(step, Field) else f"[{step!r}]" for step in where)
    return (f"{module}.{name}" if module else name) + "".join(steps)


def parts(value: Any) -> Iterator[tuple[Step, Any]]:
    """The parts of ``value`` that a copy could replace, by their steps; empty for values that should not be copied."""
    if isinstance(value, (tuple, list)):
        if len(value) <= _LONGEST and (type(value) in _SEQUENCES or _is_namedtuple(value)):
            yield from enumerate(value)
    elif isinstance(value, dict):
        if len(value) <= _LONGEST and copyable(type(value)):
            yield from ((key, item) for key, item in _items(value).items() if type(key) in (int, str))
            yield from _fields(value)
    elif isinstance(value, partial):
        yield from ((Field(name), getattr(value, name)) for name in _PARTIAL)
    elif isinstance(value, FunctionType):
        if not is_of(value.__code__, TORCH):
            yield from ((Field(name), _of_function(value, name)) for name in _FUNCTION)
    elif not isinstance(value, _UNIQUE) and copyable(type(value)):
        yield from _fields(value)


def _fields(value: Any) -> Iterator[tuple[Step, Any]]:
    """The attributes of an object, except dunder names of Python and its libraries (``__orig_class__``). An object that
    is its own dictionary has items only."""
    for kept in attributes_of(value):
        if kept is not value:
            yield from ((Field(name), item) for name, item in kept.items() if not _is_dunder(name))


def part(value: Any, step: Step) -> Any:
    """One of the `parts` of a value.

    Raises:
        LookupError: it does not have this part.
    """
    for known, item in parts(value):
        if known == step and type(known) is type(step):
            return item
    raise LookupError(step)


def rebuilt(value: Any, changes: Mapping[Step, Any]) -> Any:
    """A copy of ``value``, of the same class, with some of its `parts` changed; unchanged parts are shared with it.

    Example:
        >>> class Settings(OrderedDict):
        ...     pass
        >>> rebuilt(Settings(depth=2, width=8), {"width": 6})
        Settings([('depth', 2), ('width', 6)])
    """
    named = {step.name: item for step, item in changes.items() if isinstance(step, Field)}
    if isinstance(value, FunctionType):
        return function_like(value, *(named.get(name, _of_function(value, name)) for name in _FUNCTION))
    other = _copy_of_items(value, changes, named)
    own, slots = attributes_of(value)
    if own is value:
        object.__setattr__(other, "__dict__", other)
        return other
    inside = {id(value): other}  # a value that refers to itself
    changed = [
        {name: named.get(name, inside.get(id(item), item)) for name, item in kept.items()} for kept in (own, slots)
    ]
    if isinstance(value, partial):
        changed[1] = {}  # its function and arguments
    set_attributes(other, *changed)
    return other


def _copy_of_items(value: Any, changes: Mapping[Step, Any], named: Mapping[str, Any]) -> Any:
    """A copy that has no attributes yet."""
    if isinstance(value, (tuple, list)):
        items = [changes.get(index, item) for index, item in enumerate(value)]
        if isinstance(value, list):
            return items
        return torch.Size(items) if isinstance(value, torch.Size) else tuple.__new__(type(value), items)
    if isinstance(value, partial):
        func, args, keywords = (named.get(name, getattr(value, name)) for name in _PARTIAL)
        return partial.__new__(type(value), func, *args, **keywords)
    other = empty(type(value))
    if isinstance(value, dict):
        store = OrderedDict.__setitem__ if isinstance(value, OrderedDict) else dict.__setitem__
        for key, item in _items(value).items():
            item = changes.get(key, item) if type(key) in (int, str) else item
            store(other, key, other if item is value else item)
    return other


def replaced(value: Any, where: Sequence[Step], new: Any) -> Any:
    """``value`` with ``new`` at the end of a path; all objects on the path are copied.

    Raises:
        LookupError: ``value`` does not have this path.
    """
    if not where:
        return new
    return rebuilt(value, {where[0]: replaced(part(value, where[0]), where[1:], new)})


def where_to_json(where: Where) -> Any:
    """A path as plain data: None, an index, or a list of indices, keys and ``{"attribute": name}``."""
    if not where or (len(where) == 1 and isinstance(where[0], int)):
        return where[0] if where else None
    return [{"attribute": step.name} if isinstance(step, Field) else step for step in where]


def where_from_json(data: Any) -> Where:
    """Read a path back.

    Raises:
        TypeError, KeyError: the data is not a path.
    """
    if data is None:
        return ()
    return tuple(_step(item) for item in (data if isinstance(data, list) else [data]))


def _step(data: Any) -> Step:
    if isinstance(data, dict):
        return Field(str(data["attribute"]))
    if type(data) not in (int, str):
        raise TypeError(f"{data!r} is not a step of a path to a number")
    step: Step = data
    return step


def is_setting(value: Any) -> bool:
    """Whether a class attribute would be the same on an instance: a number, container or plain object, not a method,
    property or other descriptor."""
    if type(value) is int:
        return True
    kind = type(value)
    return not callable(value) and class_attribute(kind, "__get__") is None and any(True for _ in parts(value))


def _items(value: dict[Any, Any]) -> dict[Any, Any]:
    """The items of a dict of any class, in its order."""
    return dict(OrderedDict.items(value) if isinstance(value, OrderedDict) else dict.items(value))


def _of_function(function: FunctionType, name: str) -> Any:
    return closure_of(function) if name == "__closure__" else getattr(function, name)


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_namedtuple(value: Any) -> bool:
    return isinstance(getattr(type(value), "_fields", None), tuple)
