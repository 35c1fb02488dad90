"""Restore variables outside of a model that its passes may write to: those of its classes, and of the files that define
these."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch

from niwaki.trace.contents import Contents, is_users
from niwaki.trace.functions import NamedVariables, preserved_globals

_MOST = 2**12  # the number of values that are followed: a script may hold all data of a user
_CODE = (type, ModuleType, FunctionType, BuiltinFunctionType, classmethod, staticmethod, property)


@contextmanager
def preserved_outside(modules: Iterable[torch.nn.Module]) -> Iterator[NamedVariables]:
    """Restore the variables of the classes of ``modules`` and of the Python modules that define these at the end of the
    block, the containers and objects among their values, and the variables that functions on ``modules`` name. Tensors
    that are written to in place are the recorder's task. The content of a `functools.lru_cache` cannot be restored: see
    `caches` and `warmup`."""
    modules = list(modules)
    classes = {base for kind in {type(module) for module in modules} for base in kind.__mro__ if is_users(base)}
    files = {base.__module__ for base in classes}
    spaces: list[tuple[Mapping[str, Any], Callable[[str, Any], None]]] = [
        (vars(base), _class_setter(base)) for base in classes
    ]
    spaces += [(vars(sys.modules[name]), vars(sys.modules[name]).__setitem__) for name in files if name in sys.modules]
    contents = Contents(map(id, modules), copied=False, most=_MOST)
    kept = []
    for variables, write in spaces:
        data = {name: value for name, value in variables.items() if _is_data(name, value)}
        kept.append((variables, write, data))
        for value in data.values():
            contents.note(value)
    try:
        with preserved_globals(modules) as named:
            yield named
    finally:
        for variables, write, data in kept:
            for name, value in data.items():
                if name in variables and variables[name] is not value:
                    write(name, value)
        contents.restore()


def _class_setter(kind: type) -> Callable[[str, Any], None]:
    return lambda name, value: type.__setattr__(kind, name, value)


def _is_data(name: str, value: Any) -> bool:
    return not (name.startswith("__") or isinstance(value, _CODE))
