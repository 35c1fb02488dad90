"""Paths into the attributes of modules: containers, configs, partials, closures. Read, and replaced by copies.

Nothing here changes what it is given, and no code of the things it copies runs: what several modules share stays what
it is for all but the one that is given a copy.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import CellType, FunctionType, MemberDescriptorType, ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch


@dataclass(frozen=True, slots=True)
class Field:
    """A step to an attribute of an object; a step to an item of a container is its index or key."""

    name: str


Step = int | str | Field
Where = tuple[Step, ...]

_LONGEST = 256  # containers with more items than this are data, not settings
_PARTIAL = ("func", "args", "keywords")
_FUNCTION = ("__defaults__", "__kwdefaults__", "__closure__")
_TORCH = str(Path(torch.__file__).parent)
_SEQUENCES = (tuple, list, torch.Size)
_MAPPINGS = (dict, OrderedDict, defaultdict)
_NOTHING = object()
# Things with an identity of their own, for which no copy could stand.
_UNIQUE = (torch.nn.Module, torch.Tensor, type, Enum, ModuleType, BaseException)


def describe(module: str, name: str, where: Where) -> str:
    """A path as one would write it: ``layers.0.attention.config.heads``, ``norm.normalized_shape[0]``."""
    steps = (f".{step.name}" if isinstance(step, Field) else f"[{step!r}]" for step in where)
    return (f"{module}.{name}" if module else name) + "".join(steps)


def parts(value: Any) -> Iterator[tuple[Step, Any]]:
    """What a copy of ``value`` could hold other things in the place of. Nothing for what is better not copied."""
    if isinstance(value, (tuple, list)):
        if len(value) <= _LONGEST and (type(value) in _SEQUENCES or _is_namedtuple(value)):
            yield from enumerate(value)
    elif isinstance(value, dict):
        if len(value) <= _LONGEST and (type(value) in _MAPPINGS or _is_subclassed(type(value))):
            yield from ((key, item) for key, item in dict.items(value) if type(key) in (int, str))
            yield from _fields(value)
    elif isinstance(value, partial):
        yield from ((Field(name), getattr(value, name)) for name in _PARTIAL)
    elif isinstance(value, FunctionType):
        if not value.__code__.co_filename.startswith(_TORCH):
            yield from ((Field(name), _of_function(value, name)) for name in _FUNCTION)
    elif not isinstance(value, _UNIQUE) and _copyable(type(value)):
        yield from _fields(value)


def _fields(value: Any) -> Iterator[tuple[Step, Any]]:
    for kept in _attributes(value):
        yield from ((Field(name), item) for name, item in kept.items() if kept is not value)


def part(value: Any, step: Step) -> Any:
    """One of the `parts` of a value.

    Raises:
        LookupError: it has no such part.
    """
    for known, item in parts(value):
        if known == step and type(known) is type(step):
            return item
    raise LookupError(step)


def rebuilt(value: Any, changes: Mapping[Step, Any]) -> Any:
    """A copy of ``value`` with some of its `parts` changed; what is not changed is shared with it."""
    if isinstance(value, (tuple, list)):
        items = [changes.get(index, item) for index, item in enumerate(value)]
        if isinstance(value, list):
            return items
        return torch.Size(items) if isinstance(value, torch.Size) else tuple.__new__(type(value), items)
    if type(value) in _MAPPINGS:
        copied = value.copy()
        copied.update(changes)
        return copied
    named = {step.name: item for step, item in changes.items() if isinstance(step, Field)}
    if isinstance(value, partial):
        func, args, keywords = (named.get(name, getattr(value, name)) for name in _PARTIAL)
        return type(value)(func, *args, **keywords)
    if isinstance(value, FunctionType):
        return _function(value, *(named.get(name, _of_function(value, name)) for name in _FUNCTION))
    other = _new(type(value))
    if isinstance(value, dict):
        dict.update(other, {**value, **{step: item for step, item in changes.items() if not isinstance(step, Field)}})
    own, slots = _attributes(value)
    for name, item in slots.items():
        _slots(type(value))[name].__set__(other, named.get(name, item))
    if own:
        object.__getattribute__(other, "__dict__").update({**own, **{k: v for k, v in named.items() if k in own}})
    return other


def replaced(value: Any, where: Sequence[Step], new: Any) -> Any:
    """``value`` with ``new`` at the end of a path, in copies of all that lies on the way.

    Raises:
        LookupError: there is no such path in ``value``.
    """
    if not where:
        return new
    return rebuilt(value, {where[0]: replaced(part(value, where[0]), where[1:], new)})


def class_attribute(kind: type, name: str) -> Any:
    """What a class and its bases say of a name, without asking descriptors; None if nothing."""
    return next((base.__dict__[name] for base in kind.__mro__ if name in base.__dict__), None)


def where_to_json(where: Where) -> Any:
    """A path as plain data: nothing, an index, or a list of indices, keys and ``{"attribute": name}``."""
    if not where or (len(where) == 1 and isinstance(where[0], int)):
        return where[0] if where else None
    return [{"attribute": step.name} if isinstance(step, Field) else step for step in where]


def where_from_json(data: Any) -> Where:
    """Read a path back.

    Raises:
        TypeError, KeyError: the data is no path.
    """
    if data is None:
        return ()
    return tuple(_step(item) for item in (data if isinstance(data, list) else [data]))


def _step(data: Any) -> Step:
    if isinstance(data, dict):
        return Field(str(data["attribute"]))
    if type(data) not in (int, str):
        raise TypeError(f"{data!r} is no step of a path to a number")
    step: Step = data
    return step


def is_setting(value: Any) -> bool:
    """Whether something that a class holds would be the same on an object: a number, container or plain object, and
    nothing that behaves, such as a method or a property."""
    if type(value) is int:
        return True
    kind = type(value)
    return not callable(value) and class_attribute(kind, "__get__") is None and any(True for _ in parts(value))


def _is_namedtuple(value: Any) -> bool:
    return isinstance(getattr(type(value), "_fields", None), tuple)


def _is_subclassed(kind: type) -> bool:
    """Whether a class of dicts is plain dict to C."""
    try:
        dict.__new__(kind)
    except TypeError:  # an OrderedDict, say
        return False
    return _copyable(kind)


def _copyable(kind: type) -> bool:
    """Whether an object of this class is no more than its attributes, and may be forgotten without a trace."""
    if any("__del__" in base.__dict__ for base in kind.__mro__):
        return False
    try:
        _new(kind)
    except TypeError:  # part of it is kept where Python code cannot reach
        return False
    return True


def _new(kind: type) -> Any:
    """An object without attributes; no code of its class runs."""
    return next((base for base in (SimpleNamespace, dict) if issubclass(kind, base)), object).__new__(kind)


def _attributes(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an object keeps in its dictionary and in its slots."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        own = {}
    slots = {name: _content(slot, value) for name, slot in _slots(type(value)).items()}
    return own, {name: item for name, item in slots.items() if item is not _NOTHING}


def _slots(kind: type) -> dict[str, MemberDescriptorType]:
    if kind not in _SLOTS:
        _SLOTS[kind] = {
            name: member
            for base in reversed(kind.__mro__)
            for name, member in base.__dict__.items()
            if isinstance(member, MemberDescriptorType) and name != "__dict__"
        }
    return _SLOTS[kind]


_SLOTS: WeakKeyDictionary[type, dict[str, MemberDescriptorType]] = WeakKeyDictionary()


def _content(slot: MemberDescriptorType, value: Any) -> Any:
    try:
        return slot.__get__(value)
    except AttributeError:
        return _NOTHING


def _of_function(function: FunctionType, name: str) -> Any:
    """Its defaults or what its closure holds; a cell that is still empty is its own content."""
    if name != "__closure__":
        return getattr(function, name)
    return tuple(cell if _empty(cell) else cell.cell_contents for cell in function.__closure__ or ())


def _function(function: FunctionType, defaults: Any, keywords: Any, contents: tuple[Any, ...]) -> FunctionType:
    cells = tuple(
        cell if _empty(cell) or cell.cell_contents is content else CellType(content)
        for cell, content in zip(function.__closure__ or (), contents, strict=True)
    )
    other = FunctionType(function.__code__, function.__globals__, function.__name__, defaults, cells or None)
    other.__kwdefaults__ = keywords
    other.__dict__.update(function.__dict__)
    other.__qualname__, other.__doc__, other.__module__ = function.__qualname__, function.__doc__, function.__module__
    return other


def _empty(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises if nothing is in it yet
    except ValueError:
        return True
    return False
