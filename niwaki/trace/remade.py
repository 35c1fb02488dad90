"""Find the buffers that the code of a module may replace while it runs, such as tables with one row per position.

In a run where such a buffer fits, it looks like any other. In another run the code creates it in full size, whatever a
cut removed from it.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor

from niwaki.trace.inventory import Inventory

_STORING = frozenset({"STORE_ATTR", "DELETE_ATTR"})
_CALLED = frozenset({"register_buffer", "setattr", "__setattr__"})


def may_be_remade(inventory: Inventory) -> frozenset[str]:
    """The names of buffers that ``forward`` of their module, or a method that it names, assigns or registers."""
    owners = dict(inventory.modules)
    found = []
    for name, _ in inventory.buffers:
        path, _, leaf = name.rpartition(".")
        kind: Any = type(owners[path])
        if leaf in _stored(kind):
            found.append(name)
    return frozenset(found)


def remade(inventory: Inventory) -> list[tuple[Tensor, Tensor]]:
    """Buffers that were replaced in the run, each with its replacement."""
    owners = dict(inventory.modules)
    found = []
    for name, buffer in inventory.buffers:
        path, _, leaf = name.rpartition(".")
        here = owners[path]._buffers  # the buffers of a scripted module have no `get`
        now = here[leaf] if leaf in here else None
        if now is not None and now is not buffer:
            found.append((buffer, now))
    return found


@lru_cache(maxsize=4096)
def _stored(kind: type) -> frozenset[str]:
    """The names of attributes that ``forward`` of a class may store."""
    waiting, seen, found = ["forward"], {"forward", "__init__"}, set()
    while waiting:
        for code in _codes(_method(kind, waiting.pop())):
            found |= _stores(code)
            named = set(code.co_names) - seen
            seen |= named
            waiting += named
    return frozenset(found)


def _method(kind: type, name: str) -> FunctionType | None:
    """The function that a class defines under a name, without its decorators; None for classes of torch."""
    for base in kind.__mro__:
        if name in base.__dict__:
            found = base.__dict__[name]
            found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
            found = inspect.unwrap(found) if callable(found) else found
            return found if isinstance(found, FunctionType) and not base.__module__.startswith("torch.") else None
    return None


def _codes(function: FunctionType | None) -> Iterator[CodeType]:
    """The code of a function and of those defined in it."""
    waiting = [] if function is None else [function.__code__]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _stores(code: CodeType) -> set[str]:
    found = {str(one.argval) for one in dis.get_instructions(code) if one.opname in _STORING}
    if not _CALLED.isdisjoint(code.co_names):
        found |= {constant for constant in code.co_consts if isinstance(constant, str)}
    return found
