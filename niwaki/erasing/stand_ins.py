"""Modules that do the same, operator by operator: one of them is tried, the others hand on zeros.

Layers repeat. Of those with the same classes, settings and operators, from which the same is erased, or nothing, one
shows whether the code lives on; an `Absent` stands for each of the others meanwhile, so that a network of a hundred
layers is tried as fast as one of two.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import cached_property
from typing import final

from torch import nn

from niwaki.core.absent import Container, Result, Zeros
from niwaki.core.edits import EraseModules
from niwaki.erasing.living import RunLeft, around
from niwaki.erasing.returned import NoResult
from niwaki.trace.graph import ModuleCall

_SETTINGS = (type(None), bool, str)


@final
class StandIns:
    """Finds them among ``modules``."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._numbers: dict[Hashable, int] = {}

    def of(
        self,
        paths: Collection[str],
        edit: EraseModules,
        runs: Sequence[RunLeft],
        result_of: Callable[[str], Result],
    ) -> dict[str, Result]:
        """What stands for those of the modules at ``paths`` that are like another one after an ``edit``. ``result_of``:
        what a module returns, or `NoResult`."""
        gone = {*edit.absent, *edit.entries}
        calls = _calls(paths, runs)
        known: set[Hashable] = set()
        found: dict[str, Result] = {}
        for path in sorted(calls, key=lambda path: path.count(".")):
            if any(outer in gone or outer in found for outer in around(path)):
                continue
            did = tuple(self._did(path, number, left, call) for number, left, call in calls[path])
            kind = self._settings[path], did, _parts(path, edit)
            if kind in known:
                try:
                    found[path] = result_of(path)
                except NoResult:
                    continue
            known.add(kind)
        return found

    def _did(self, path: str, number: int, left: RunLeft, call: ModuleCall) -> Hashable:
        """The operators of a call, and which of them live."""
        nodes = left.run.nodes
        steps = tuple(
            (
                node.operator,
                node.location.file,
                node.location.line,
                node.location.module[len(path) :],
                place in left.living,
            )
            for place in range(call.first, call.end)
            for node in (nodes[place],)
        )
        return number, tuple(call.tensors), self._numbers.setdefault(steps, len(self._numbers))

    @cached_property
    def _settings(self) -> dict[str, int]:
        """For each module the number of its classes, settings and the names of its tensors, those inside included."""
        inside: dict[str, list[Hashable]] = {path: [] for path in self._modules}
        for path, module in self._modules.items():
            own = (
                type(module),
                tuple((name, value) for name, value in module.__dict__.items() if isinstance(value, _SETTINGS)),
                tuple((name, tensor is None) for name, tensor in module._parameters.items()),
                tuple((name, tensor is None) for name, tensor in module._buffers.items()),
            )
            for outer in around(path):
                if outer:
                    inside[outer].append((path[len(outer) :], own))
        numbers: dict[Hashable, int] = {}
        return {path: numbers.setdefault(tuple(found), len(numbers)) for path, found in inside.items()}


def with_stand_ins(edit: EraseModules, stand_ins: Mapping[str, Result]) -> EraseModules:
    """``edit``, with zeros in place of some modules that are left as they are inside."""

    def outside(path: str) -> bool:
        return not any(outer in stand_ins for outer in around(path))

    return EraseModules(
        edit.structures,
        {**{path: result for path, result in edit.absent.items() if outside(path)}, **stand_ins},
        tuple(filter(outside, edit.entries)),
        {path: number for path, number in edit.renumbered.items() if outside(path.rpartition(".")[0])},
        tuple(filter(outside, edit.unset)),
        {key: value for key, value in edit.numbers.items() if outside(key[0])},
        edit.gated,
    )


def _calls(paths: Collection[str], runs: Sequence[RunLeft]) -> dict[str, list[tuple[int, RunLeft, ModuleCall]]]:
    """The calls of the modules at ``paths``, each with its run and the number of that."""
    found: dict[str, list[tuple[int, RunLeft, ModuleCall]]] = {}
    for number, left in enumerate(runs):
        for call in left.run.calls:
            if call.module in paths:
                found.setdefault(call.module, []).append((number, left, call))
    return found


def _parts(path: str, edit: EraseModules) -> Hashable:
    """What an edit does inside of a module."""
    prefix = f"{path}."
    absent = ((one[len(prefix) :], _form(result)) for one, result in edit.absent.items() if one.startswith(prefix))
    return (
        frozenset(absent),
        frozenset(one[len(prefix) :] for one in (*edit.entries, *edit.unset) if one.startswith(prefix)),
    )


def _form(result: Result) -> Hashable:
    """What is returned, whatever its size."""
    if isinstance(result, Zeros):
        return result.given, result.sizes is None, result.written
    if isinstance(result, Container):
        return result.kind, result.keys, tuple(map(_form, result.items))
    return result
