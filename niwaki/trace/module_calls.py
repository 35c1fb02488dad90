"""What modules are called with and what they return, as numbers of values.

Tensors become `Ref`, plain data stays, an object that the module was given is known by its place among the arguments,
and anything else is `UNKNOWN`: nothing of the run is held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, final

import torch

from niwaki.trace.graph import ModuleCall, Ref

Steps = tuple[int | str, ...]
_PLAIN = (type(None), bool, float, str)
_CONTAINERS = (tuple, list, dict)


class Unknown(Enum):
    """Something that is neither a tensor, plain data nor an argument."""

    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN


@dataclass(frozen=True, slots=True)
class Argument:
    """An object that a module was given: the number or name of the argument, then the places in its containers."""

    steps: Steps


@final
class ModuleCalls:
    """Notes the calls of one run. ``number_of``: the value number of a tensor, if it has one; ``now``: how many
    operators have run."""

    def __init__(self, number_of: Callable[[torch.Tensor], int | None], now: Callable[[], int]) -> None:
        self._number_of, self._now = number_of, now
        self._open: list[tuple[str | None, int]] = []
        self.made: list[ModuleCall] = []

    def enter(self, module: str | None) -> None:
        """A module is called; None if the model does not have it."""
        self._open.append((module, self._now()))

    def leave(self, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """The innermost open call ends."""
        module, first = self._open.pop()
        if module is None:
            return
        tensors: dict[Steps, int] = {}
        objects: dict[int, Steps] = {}
        arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        for name, given in arguments:
            self._look(given, (name,), tensors, objects)
        self.made.append(ModuleCall(module, first, self._now(), tensors, self._told(result, objects)))

    def _look(self, given: Any, steps: Steps, tensors: dict[Steps, int], objects: dict[int, Steps]) -> None:
        if isinstance(given, torch.Tensor):
            number = self._number_of(given)
            if number is not None:
                tensors[steps] = number
        elif type(given) in _CONTAINERS:
            for name, item in given.items() if type(given) is dict else enumerate(given):
                if isinstance(name, (int, str)):
                    self._look(item, (*steps, name), tensors, objects)
        elif type(given) not in _PLAIN and not isinstance(given, int):
            objects.setdefault(id(given), steps)

    def _told(self, result: Any, objects: Mapping[int, Steps]) -> Any:
        if isinstance(result, torch.Tensor):
            number = self._number_of(result)
            return UNKNOWN if number is None else Ref(number)
        kind = type(result)
        if kind in _PLAIN:
            return result
        if isinstance(result, int):
            return int.__int__(result)
        if kind is dict:
            if not all(isinstance(name, str) for name in result):
                return UNKNOWN
            return {name: self._told(item, objects) for name, item in result.items()}
        if kind in _CONTAINERS:
            return kind(self._told(item, objects) for item in result)
        return Argument(objects[id(result)]) if id(result) in objects else UNKNOWN
