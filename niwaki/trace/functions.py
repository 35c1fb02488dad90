"""Find the functions on a model (hooks, attributes), and the variables of Python modules that their code names."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from niwaki.core.objects import filled
from niwaki.trace.contents import PLAIN, Contents, is_users_package

_MOST = 2**10  # functions that are followed
_CODE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, partial)
_CONTAINERS = (list, dict, set, deque)
_FUNCTIONS = (FunctionType, MethodType, partial)
_HOLDING = (dict, list, tuple)
_NO_FUNCTIONS = frozenset({*PLAIN, set})
_TABLES = frozenset({dict, OrderedDict, list, tuple})  # testing these for emptiness runs no code of the user
_TENSORS = frozenset({"_parameters", "_buffers", "_modules"})  # tables of a module that hold no functions
_NOTHING = object()


def functions_on(modules: Iterable[torch.nn.Module]) -> Iterator[Any]:
    """Yield hooks, and functions that are attributes, alone or in a container."""
    for module in modules:
        for name, value in vars(module).items():
            kind = type(value)
            if kind in _NO_FUNCTIONS or (kind in _TABLES and not value):  # true of most attributes
                continue
            if isinstance(value, _FUNCTIONS):
                yield value
            elif isinstance(value, _HOLDING) and name not in _TENSORS:
                items = value.values() if isinstance(value, dict) else value
                for item in items:
                    if isinstance(item, _FUNCTIONS):
                        yield item


class NamedVariables:
    """A snapshot of the variables of Python modules that functions on ``modules`` name, or functions that these call.
    It holds their values and the items of containers among them, but not the content of tensors."""

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        modules = list(modules)
        self._found = _named(functions_on(modules))
        self._contents = Contents(map(id, modules) if self._found else (), copied=False)
        for _, _, value in self._found:
            if isinstance(value, _CONTAINERS):
                self._contents.note(value)

    def restore(self) -> None:
        """Give all variables and containers what they held."""
        for variables, name, value in self._found:
            if value is _NOTHING:
                variables.pop(name, None)
            elif variables.get(name, _NOTHING) is not value:
                variables[name] = value
        self._contents.restore()


@contextmanager
def preserved_globals(modules: Iterable[torch.nn.Module]) -> Iterator[NamedVariables]:
    """Restore the `NamedVariables` of ``modules`` at the end of the block, also after an error."""
    variables = NamedVariables(modules)
    try:
        yield variables
    finally:
        variables.restore()


def _named(functions: Iterable[Any]) -> list[tuple[dict[str, Any], str, Any]]:
    """Find the variables that the user's own functions name, with their values; not functions, classes or modules."""
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
    """Yield the names in a function's code and in the functions inside it: of variables and of attributes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
