"""Find the functions, containers and plain objects that refer to a model."""

from __future__ import annotations

import dis
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.core.objects import Note, attributes_of, copyable, filled

ATOMS = frozenset(
    {type(None), type(...), type(NotImplemented), bool, int, float, complex, str, bytes, range, slice}
    | {torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size}
)
_SEQUENCES = (list, tuple, set, frozenset, deque)
_LEAVES = (type, ModuleType, Enum, Note, *ATOMS)
_MOST_THINGS = 10_000  # a closure that reaches more objects holds the program around the model
_MOST_ENTRIES = 2**16  # the most tensors that do not belong to the model


class Reach:
    """The objects that a model reaches. ``core``: the identities of its modules, parameters and buffers. ``owned``:
    these, and the containers, objects and other tensors in their attributes; not objects that only functions refer
    to."""

    def __init__(self, model: nn.Module) -> None:
        self.core = {id(module) for module in model.modules()}
        self.core |= {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        seen: dict[int, Any] = {}
        waiting: list[Any] = [model]
        while waiting:
            value = waiting.pop()
            if isinstance(value, (*_LEAVES, FunctionType, weakref.ref)) or id(value) in seen:
                continue
            seen[id(value)] = value
            waiting += vars(value).values() if isinstance(value, nn.Module) else _held(value)
        self.owned = frozenset(seen)
        self._things = seen  # kept alive, since they are known by identity
        self._known: dict[int, tuple[Any, bool]] = {}

    def binds(self, value: Any) -> bool:
        """Whether a function that refers to ``value`` has to refer to a copy of it when the model is copied: ``value``
        reaches a part of the model, and nothing that a copy cannot use (other networks, files, ...)."""
        if id(value) not in self._known:
            self._known[id(value)] = value, self._leads_here(value)
        return self._known[id(value)][1]

    def _leads_here(self, value: Any) -> bool:
        found, entries = False, 0
        for thing, descends in self._walk(value):
            if id(thing) in self.owned:
                found = True
            elif isinstance(thing, Tensor):
                entries += thing.numel()
            elif not descends:
                return False
        return found and entries <= _MOST_ENTRIES

    def stands_alone(self, value: Any) -> bool:
        """Whether an object reaches no module and no tensor."""
        return all(
            descends and not isinstance(thing, (Tensor, nn.Module)) and id(thing) not in self.core
            for thing, descends in self._walk(value, stop=self.core)
        )

    def _walk(self, value: Any, stop: Iterable[int] | None = None) -> Iterator[tuple[Any, bool]]:
        """All objects that are reached, and whether their content can be read; objects of the model are not
        followed."""
        stop = self.owned if stop is None else stop
        seen: dict[int, Any] = {}
        waiting = [value]
        while waiting:
            thing = waiting.pop()
            if isinstance(thing, _LEAVES) or id(thing) in seen:
                continue
            seen[id(thing)] = thing
            if id(thing) in stop or isinstance(thing, Tensor):
                yield thing, True
                continue
            inside = None if isinstance(thing, nn.Module) or len(seen) > _MOST_THINGS else _look(thing)
            yield thing, inside is not None
            waiting += inside or ()


def contents(function: FunctionType) -> list[Any]:
    """The references of a function: its closure, defaults and attributes."""
    found = [cell.cell_contents for cell in function.__closure__ or () if filled(cell)]
    return [*found, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *vars(function).values()]


def named_globally(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The modules and tensors that a function refers to by global names, directly or by their methods; also those of
    the functions in its closure and in its file."""
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, FunctionType) or id(one) in seen:
            continue
        seen.add(id(one))
        waiting += (getattr(item, "__func__", item) for item in contents(one))
        for name in _globals_read(one.__code__):
            value = one.__globals__.get(name)
            owner = value.__self__ if isinstance(value, MethodType) else value
            if isinstance(owner, (nn.Module, Tensor)):
                yield name, owner
            if isinstance(value, FunctionType) and value.__globals__ is one.__globals__:
                waiting.append(value)


def _globals_read(code: CodeType) -> Iterator[str]:
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _globals_read(inner)


def names_of(kinds: Iterable[type]) -> frozenset[int]:
    """The identities of objects that the code of some classes has names for: globals, attributes of these classes,
    variables around their methods; and objects directly inside of such containers, classes and modules."""
    spaces: dict[int, dict[str, Any]] = {}
    direct: dict[int, Any] = {}
    for base in dict.fromkeys(base for kind in kinds for base in kind.__mro__):
        functions = [item for item in vars(base).values() if isinstance(item, FunctionType)]
        module = sys.modules.get(base.__module__)
        for space in (*(function.__globals__ for function in functions), {} if module is None else vars(module)):
            spaces.setdefault(id(space), space)
        own = [*vars(base).values(), *(item for function in functions for item in contents(function))]
        direct |= {id(item): item for item in own}
    direct |= {id(item): item for space in spaces.values() for item in list(space.values())}
    return frozenset(direct).union(id(item) for thing in direct.values() for item in _named_inside(thing))


def _named_inside(thing: Any) -> Iterable[Any]:
    if isinstance(thing, (type, ModuleType)):
        return list(vars(thing).values())
    return _items(thing) if isinstance(thing, (dict, *_SEQUENCES)) else ()


def _held(value: Any) -> list[Any]:
    """The items of a container, the attributes of an object."""
    return _look(value) or []


def _look(value: Any) -> list[Any] | None:
    """The references of an object; None if they cannot be read."""
    if isinstance(value, FunctionType):
        return contents(value)
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, BuiltinFunctionType):
        return [value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, weakref.ref):
        return [value()]
    attributes = [item for kept in attributes_of(value) for item in kept.values()]
    if isinstance(value, (dict, *_SEQUENCES)):
        return [*_items(value), *attributes]
    return attributes if copyable(type(value)) else None


def _items(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [*dict.keys(container), *dict.values(container)]
    kind = next(kind for kind in _SEQUENCES if isinstance(container, kind))
    return list(kind.__iter__(container))
