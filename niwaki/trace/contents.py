"""Note and restore the content of objects: containers, attributes, slots, closures, tensors, arrays, random generators.

Objects are followed however nested, each once. Their own code never runs: a class may forbid to write, or do more than
that. Classes, Python modules, and objects of torch's and niwaki's own classes (an optimizer, the dataset of a loader)
are not looked into.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import lru_cache, partial
from itertools import zip_longest
from types import CellType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, cast

import numpy as np
import torch

from niwaki.core.objects import attributes_of, filled, slots_of
from niwaki.trace.fake import is_fake
from niwaki.trace.tracked import TrackedFloat, TrackedInt

PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), TrackedInt, TrackedFloat, torch.dtype})
_MOST = 2**14  # the number of objects that are followed; beyond it lie data, or the rest of the program
_LONGEST = 2**16  # containers with more items are data: their items are restored, but not followed
_NOTHING = object()
_NOT_FOLLOWED = frozenset({"torch", "niwaki", "threading", "multiprocessing", "logging", "weakref"})
_CLOSED = (type, ModuleType, BaseException, Enum)
_Restore = Callable[[Any, Any], None]


class Contents:
    """Notes the content of objects, and restores it.

    ``apart``: identities of objects that other code restores. ``copied``: whether tensors and arrays are copied, not
    only the references to them. ``most``: the number of objects that are followed.
    """

    def __init__(
        self, apart: Iterable[int] = (), before: Contents | None = None, copied: bool = True, most: int = _MOST
    ) -> None:
        self._apart = set(apart)
        self._copied, self._most = copied, most
        self._noted: dict[int, tuple[Any, list[tuple[_Restore, Any]]]] = {} if before is None else dict(before._noted)

    def __len__(self) -> int:
        """The number of objects that were noted."""
        return len(self._noted)

    def note(self, value: Any) -> None:
        """Note the present content of ``value``, and of all objects reachable from it."""
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if type(item) not in PLAIN and id(item) not in self._noted and id(item) not in self._apart:
                waiting.extend(self._inside(item))

    def restore(self) -> None:
        """Restore the content of every noted object."""
        with torch.no_grad():
            for value, kept in self._noted.values():
                for put_back, content in kept:
                    put_back(value, content)

    def _inside(self, item: Any) -> Iterable[Any]:
        """Note one object, and return its content."""
        if isinstance(item, _CLOSED) or (isinstance(item, FunctionType) and _package(item.__module__) in _NOT_FOLLOWED):
            return ()
        kept: list[tuple[_Restore, Any]] = []
        inside: list[Any] = []
        if isinstance(item, (tuple, frozenset)):
            inside += item
        elif isinstance(item, _CONTAINERS):
            content = _content(item)
            kept.append((_refill, content))
            if len(content) <= _LONGEST and len(self._noted) <= self._most:
                inside += content.values() if isinstance(item, dict) else content
        elif isinstance(item, torch.Tensor):
            if is_fake(item):
                return ()
            if self._copied and not isinstance(item, torch.nn.Parameter):
                kept.append((rewrite, (item.data, item.detach().clone())))
        elif isinstance(item, np.ndarray):
            if self._copied and item.dtype != object:
                kept.append((_rewrite_array, item.copy()))
        elif isinstance(item, FunctionType):
            cells = [cell for cell in item.__closure__ or () if filled(cell)]
            inside += [*cells, *(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
        elif isinstance(item, CellType):
            kept.append((_refill_cell, item.cell_contents))
            inside.append(item.cell_contents)
        elif isinstance(item, MethodType):
            inside += [item.__self__, item.__func__]
        elif isinstance(item, partial):
            inside += [item.func, *item.args, *item.keywords.values()]
        for kind, read, write in _GENERATORS:
            if isinstance(item, kind):
                kept.append((write, read(item)))
        inside += self._attributes(item, kept)
        self._noted[id(item)] = item, kept
        return inside

    def _attributes(self, item: Any, kept: list[tuple[_Restore, Any]]) -> Iterator[Any]:
        """Note the attributes of an object, and yield their values."""
        kind: Any = type(item)
        if len(self._noted) > self._most or not is_followed(kind):
            return
        own, _ = attributes_of(item)
        if own is not item and (own or isinstance(item, torch.Tensor) or _has_dictionary(kind)):
            kept.append((_put_back_attributes, dict(own)))
            yield from own.values()
        if _slots(kind):
            slots = _in_slots(item)
            kept.append((_put_back_slots, slots))
            yield from slots.values()


@lru_cache(maxsize=4096)
def is_followed(kind: Any) -> bool:
    """Whether objects of a class are followed: not those of torch's classes, or of Python's classes that run code."""
    if issubclass(kind, (torch.Tensor, torch.nn.Module)):
        return True
    return all(_package(base.__module__) not in _NOT_FOLLOWED for base in kind.__mro__)


def is_users(kind: type) -> bool:
    """Whether a class is a user's: not one of Python, torch or niwaki."""
    return is_users_package(kind.__module__)


def is_users_package(module: str | None) -> bool:
    """Whether a Python module is a user's: not one of Python, torch or niwaki."""
    return _package(module) not in _NOT_FOLLOWED | {"builtins", "collections", "abc", "typing", "enum"}


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


@lru_cache(maxsize=4096)
def _has_dictionary(kind: type) -> bool:
    return any("__dict__" in vars(base) for base in kind.__mro__ if base is not type)


def _put_back_attributes(value: Any, content: dict[str, Any]) -> None:
    own, _ = attributes_of(value)
    if not (same(own.keys(), content.keys()) and same(own.values(), content.values())):
        own.clear()
        own.update(content)


def _put_back_slots(value: Any, content: dict[str, Any]) -> None:
    now, kind = _in_slots(value), cast(Any, type(value))
    for name, slot in _slots(kind).items():
        if name in content and now.get(name, _NOTHING) is not content[name]:
            slot.__set__(value, content[name])
        elif name in now and name not in content:
            slot.__delete__(value)


def _in_slots(value: Any) -> dict[str, Any]:
    _, slots = attributes_of(value)
    kind: Any = type(value)
    return {name: item for name, item in slots.items() if name in _slots(kind)}


@lru_cache(maxsize=4096)
def _slots(kind: Any) -> dict[str, MemberDescriptorType]:
    """The slots that Python classes declare; slots of C code cannot be written."""
    declared = {name for base in kind.__mro__ if "__slots__" in vars(base) for name in vars(base)}
    return {name: slot for name, slot in slots_of(kind).items() if name in declared}


def _refill(value: Any, content: Any) -> None:
    """Restore the items of a container by the methods of the built-in classes."""
    if isinstance(value, dict):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        if not (same(kind.keys(value), content.keys()) and same(kind.values(value), content.values())):
            kind.clear(value)
            for name, item in content.items():
                kind.__setitem__(value, name, item)
    elif isinstance(value, set):
        if len(value) != len(content) or not all(item in value for item in content):
            set.clear(value)
            set.update(value, content)
    else:
        sequence = list if isinstance(value, list) else deque
        if not same(sequence.__iter__(value), content):
            sequence.clear(value)
            sequence.extend(value, content)


def _content(value: Any) -> Any:
    """The items of a container: for a dictionary another one, else a list."""
    if isinstance(value, dict):
        return dict((OrderedDict if isinstance(value, OrderedDict) else dict).items(value))
    kind = next(kind for kind in _CONTAINERS if isinstance(value, kind))
    return list(kind.__iter__(value))


def rewrite(value: torch.Tensor, kept: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Restore the memory and the content of a tensor."""
    memory, content = kept
    if value.is_meta or is_fake(value):
        return
    if value.shape != memory.shape or (value.layout is torch.strided and value.data_ptr() != memory.data_ptr()):
        value.data = memory
    if not torch.equal(value, content):
        value.detach().copy_(content)


def _rewrite_array(value: np.ndarray[Any, Any], content: np.ndarray[Any, Any]) -> None:
    if value.flags.writeable and value.shape == content.shape:
        value[...] = content


def _refill_cell(value: CellType, content: Any) -> None:
    value.cell_contents = content


def same(now: Iterable[Any], before: Iterable[Any]) -> bool:
    """Whether both hold the same objects, by identity and in the same order."""
    return all(one is other for one, other in zip_longest(now, before, fillvalue=_NOTHING))


def _set_bits(generator: np.random.Generator, state: Any) -> None:
    generator.bit_generator.state = state


_CONTAINERS: tuple[Any, ...] = (list, dict, set, deque)
_GENERATORS: tuple[tuple[Any, Any, Any], ...] = (
    (torch.Generator, torch.Generator.get_state, torch.Generator.set_state),
    (random.Random, random.Random.getstate, random.Random.setstate),
    (np.random.RandomState, np.random.RandomState.get_state, np.random.RandomState.set_state),
    (np.random.Generator, lambda generator: generator.bit_generator.state, _set_bits),
)
