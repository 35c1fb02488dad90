"""Track the whole numbers among the attributes of modules while a trace runs.

Each module sees copies of the containers and objects that belong to it, configs above all, in which the numbers carry
the module and the path to them. Of an object that several modules share each module gets its own copy, as the cut will
make it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from types import FunctionType
from typing import Any

import torch

from niwaki.core.numbers import Attribute
from niwaki.core.objects import class_attribute
from niwaki.core.paths import Field, Step, Where, is_setting, parts, rebuilt
from niwaki.trace.extent import Extent, Place
from niwaki.trace.inventory import Inventory
from niwaki.trace.tracked import TrackedFloat, TrackedInt, track_floats

_DEEPEST = 6  # steps of a path
_MODULE_INTERNALS = frozenset(torch.nn.Module().__dict__)


class Tracking:
    """Replaces the integers of a model's modules by tracked ones, until `preserved` restores them.

    They are written into ``__dict__`` directly, so that no attribute handling of the module runs.

    ``places``: where tracked numbers are now.
    """

    def __init__(self, inventory: Inventory, extent: Extent) -> None:
        self.places: list[Place] = []
        self._plain = extent.plain
        self._left_alone = set(extent.objects)
        self._without: set[int] = set()  # objects that hold no numbers
        self._copies: list[tuple[Any, Any, dict[Step, Any]]] = []  # original, copy, what the copy held at first
        self._held: list[Any] = []  # keeps objects alive whose identities are in `_without`
        self._classes: dict[type, dict[str, Any]] = {}
        for path, module in inventory.modules if extent.attributes else ():
            self.places += [(path, name, ()) for name in track_floats(path, module, self._plain)]
            own = module.__dict__
            for name, value in self._settings_of(type(module)).items():
                tracked = value if name in own else self._tracked(path, name, (), value)
                if tracked is not value:
                    own[name] = tracked
            for name, value in list(own.items()):
                if type(value) not in _SIMPLE and name not in _MODULE_INTERNALS:
                    tracked = self._tracked(path, name, (), value)
                    if tracked is not value:
                        own[name] = tracked

    def _settings_of(self, kind: type) -> dict[str, Any]:
        """The attributes of a module's class that may hold numbers; those of torch's classes are left out."""
        if kind not in self._classes:
            found: dict[str, Any] = {}
            for base in reversed(kind.__mro__):
                if not base.__module__.startswith("torch."):
                    found |= vars(base)
            known = {name for base in kind.__mro__ if base.__module__.startswith("torch.") for name in vars(base)}
            self._classes[kind] = {
                name: value
                for name, value in found.items()
                if name not in known and not name.startswith("__") and is_setting(value)
            }
        return self._classes[kind]

    def unfit(self) -> frozenset[int]:
        """The identities of originals that must not be copied in the next trace: the model wrote to their copies, and
        other code may read the originals."""
        return frozenset(id(original) for original, copy, held in self._copies if not _holds(copy, held))

    def _tracked(self, path: str, name: str, where: Where, value: Any) -> Any:
        if type(value) is int:
            place = (path, name, where)
            if place in self._plain:
                return value
            self.places.append(place)
            return TrackedInt(value, Attribute(path, name, where, value))
        if isinstance(value, _ATOMS) or id(value) in self._without or id(value) in self._left_alone:
            return value
        if len(where) >= _DEEPEST:
            return value
        self._left_alone.add(id(value))  # during the walk: the value may contain itself
        changes = {}
        for step, item in parts(value):
            tracked = self._tracked(path, name, (*where, step), item)
            if tracked is not item:
                changes[step] = tracked
        self._left_alone.discard(id(value))
        if not changes:
            self._without.add(id(value))
            self._held.append(value)
            return value
        copy = rebuilt(value, changes)
        fixed = isinstance(value, (tuple, partial, FunctionType))
        self._copies.append((value, copy, {} if fixed else dict(parts(copy))))
        return copy


_SIMPLE = frozenset({bool, float, str, type(None), TrackedFloat})
_ATOMS = (bool, float, str, bytes, type(None), torch.nn.Module, torch.Tensor, torch.dtype, torch.device)


def _holds(copy: Any, held: Mapping[Step, Any]) -> bool:
    """Whether nothing was written except by `cached_property`; for objects that cannot be written to, ``held`` is
    empty."""
    if not held:
        return True
    now = dict(parts(copy))
    new = [step.name for step in now.keys() - held.keys() if isinstance(step, Field)]
    cached = all(isinstance(class_attribute(type(copy), name), cached_property) for name in new)
    return cached and len(now) == len(held) + len(new) and all(now[step] is held[step] for step in held)
