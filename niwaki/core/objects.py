"""Read and copy Python objects (dictionaries, slots, closures) without running their code."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from types import CellType, FunctionType, MemberDescriptorType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

_NOTHING = object()
_ALLOCATORS = (SimpleNamespace, OrderedDict, defaultdict, dict, object)


class Note:
    """What niwaki has written on a module. It is no setting of the model, and nothing that walks over a model looks
    into it."""

    __slots__ = ()


def attributes_of(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attributes of an object, in its dictionary and in its slots. No code of its class runs.

    Example:
        >>> class Point:
        ...     __slots__ = ("x", "y", "__dict__")
        >>> point = Point()
        >>> point.x = 1
        >>> point.name = "a"
        >>> attributes_of(point)
        ({'name': 'a'}, {'x': 1})
    """
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        own = {}
    known = slots_of(type(value))
    slots = {name: _content(slot, value) for name, slot in known.items()} if known else {}  # most classes have none
    return own, {name: item for name, item in slots.items() if item is not _NOTHING} if slots else slots


def set_attributes(other: Any, own: dict[str, Any], slots: dict[str, Any]) -> None:
    """Fill the dictionary and the slots of a new object."""
    known = slots_of(type(other))
    for name, item in slots.items():
        known[name].__set__(other, item)
    if own:
        object.__getattribute__(other, "__dict__").update(own)


def class_attribute(kind: type, name: str) -> Any:
    """The entry of a class or its bases for a name, without calling descriptors; None if they have none."""
    return next((base.__dict__[name] for base in kind.__mro__ if name in base.__dict__), None)


def empty(kind: type) -> Any:
    """A new object of a class, without attributes and items."""
    return next(base for base in _ALLOCATORS if issubclass(kind, base)).__new__(kind)


def copyable(kind: type) -> bool:
    """Whether an object of this class consists of its attributes and, in a dict, its items alone, so that copying it
    has no other effect."""
    if any("__del__" in base.__dict__ for base in kind.__mro__):
        return False
    try:
        empty(kind)
    except TypeError:  # part of it lies where Python code cannot read
        return False
    return True


def filled(cell: CellType) -> bool:
    """Whether a cell has a value yet."""
    try:
        cell.cell_contents  # noqa: B018 - raises if not
    except ValueError:
        return False
    return True


def closure_of(function: FunctionType) -> tuple[Any, ...]:
    """The values in the cells of a function; an empty cell stands for itself."""
    return tuple(cell.cell_contents if filled(cell) else cell for cell in function.__closure__ or ())


def function_like(function: FunctionType, defaults: Any, keywords: Any, contents: tuple[Any, ...]) -> FunctionType:
    """A function of the same code with other defaults and other values in its closure."""
    cells = tuple(
        cell if not filled(cell) or cell.cell_contents is content else CellType(content)
        for cell, content in zip(function.__closure__ or (), contents, strict=True)
    )
    other = FunctionType(function.__code__, function.__globals__, function.__name__, defaults, cells or None)
    other.__kwdefaults__ = keywords
    other.__dict__.update(function.__dict__)
    other.__qualname__, other.__doc__, other.__module__ = function.__qualname__, function.__doc__, function.__module__
    return other


def slots_of(kind: type) -> dict[str, MemberDescriptorType]:
    """The slots of a class and its bases, by name."""
    known = _SLOTS.get(kind)
    if known is None:
        known = _SLOTS[kind] = {
            name: member
            for base in reversed(kind.__mro__)
            for name, member in base.__dict__.items()
            if isinstance(member, MemberDescriptorType) and name != "__dict__"
        }
    return known


_SLOTS: WeakKeyDictionary[type, dict[str, MemberDescriptorType]] = WeakKeyDictionary()


def _content(slot: MemberDescriptorType, value: Any) -> Any:
    try:
        return slot.__get__(value)
    except AttributeError:
        return _NOTHING
