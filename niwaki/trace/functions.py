"""Functions on a model (hooks, attributes), and the variables of Python modules that their code names."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from niwaki.core.objects import filled
from niwaki.trace.contents import Contents, is_users_package

_MOST = 2**10  # functions that are followed
_CODE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, partial)
_CONTAINERS = (list, dict, set, deque)
_FUNCTIONS = (FunctionType, MethodType, partial)
_HOLDING = (dict, list, tuple)
_TENSORS = frozenset({"_parameters", "_buffers", "_modules"})  # tables of a module that hold no functions
_NOTHING = object()


def functions_on(modules: Iterable[torch.nn.Module]) -> Iterator[Any]:
    """Hooks, and functions that are attributes, alone or in a container."""
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, _FUNCTIONS):
                yield value
            elif isinstance(value, _HOLDING) and value and name not in _TENSORS:  # most are empty tables of hooks
                items = value.values() if isinstance(value, dict) else value
                for item in items:
                    if isinstance(item, _FUNCTIONS):
                        yield item


@contextmanager
def preserved_globals(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Variables of Python modules that functions on ``modules`` name, or functions that these call, come out as they
    went in; so do the containers among their values, but not the content of tensors."""
    modules = list(modules)
    found = _named(functions_on(modules))
    contents = Contents(map(id, modules), copied=False)
    for _, _, value in found:
        if isinstance(value, _CONTAINERS):
            contents.note(value)
    try:
        yield
    finally:
        for variables, name, value in found:
            if value is _NOTHING:
                variables.pop(name, None)
            elif variables.get(name, _NOTHING) is not value:
                variables[name] = value
        contents.restore()


def _named(functions: Iterable[Any]) -> list[tuple[dict[str, Any], str, Any]]:
    """The variables that the user's own functions name, each with its value; no functions, classes or modules."""
    waiting, seen = list(functions), set[int]()
    found: dict[tuple[int, str], tuple[dict[str, Any], str, Any]] = {}
    while waiting and len(seen) < _MOST:
        function = waiting.pop()
        if isinstance(function, MethodType):
            function = function.__func__
        elif isinstance(function, partial):
            waiting.append(function.func)
        if not isinstance(function, FunctionType) or id(function) in seen or not is_users_package(function.__module__):
            continue
        seen.add(id(function))
        waiting += [cell.cell_contents for cell in function.__closure__ or () if filled(cell)]
        for name in _names(function.__code__):
            value = function.__globals__.get(name, _NOTHING)
            if isinstance(value, _CODE):
                waiting.append(value)
            else:
                found[id(function.__globals__), name] = function.__globals__, name, value
    return list(found.values())


def _names(code: CodeType) -> Iterator[str]:
    """The names in a function's code and in the functions inside it: of variables, and of attributes too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
