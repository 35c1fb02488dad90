"""Whether a run in eval mode tells what a run in train mode would do.

It does where nothing but torch's own BatchNorm and Dropout asks for the mode: as far as units go, these do the same in
either, but for norms, which in train mode average over the batch (their rule knows of it by `Run.both`). That is found
by watching who reads ``Module.training``; whoever else reads it, or sets it, makes a run in train mode necessary. So
does a write into what Dropout hands on: only in eval mode is that its input, too (`Recorder.tangled`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from torch.nn import Dropout, Dropout1d, Dropout2d, Dropout3d, Module
from torch.nn.modules.batchnorm import _BatchNorm

_ALIKE = frozenset(kind.forward.__code__ for kind in (_BatchNorm, Dropout, Dropout1d, Dropout2d, Dropout3d))


class ModeWatch:
    """``alike``: whether the mode has mattered to nothing but torch's own BatchNorm and Dropout so far."""

    def __init__(self, modules: Iterable[Module]) -> None:
        modules = list(modules)
        own = any(map(_has_its_own, {type(module) for module in modules}))
        self.alike = not own and all(_NAME in vars(module) for module in modules)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, reads of the mode are seen."""
        with _lock:
            _watches.append(self)
            if len(_watches) == 1:
                setattr(Module, _NAME, _Mode())
        try:
            yield
        finally:
            with _lock:
                _watches.remove(self)
                if not _watches:
                    delattr(Module, _NAME)


class _Mode:
    """Stands for the attribute ``training`` of all modules while anybody watches. In any thread: what another one does
    makes for a run too many at most."""

    def __get__(self, module: Module | None, _: type) -> Any:
        if module is None:
            raise AttributeError(_NAME)
        if sys._getframe(1).f_code not in _ALIKE:
            _tell()
        try:
            return vars(module)[_NAME]
        except KeyError:  # a scripted module keeps it elsewhere, and `__getattr__` finds it
            raise AttributeError(_NAME) from None

    def __set__(self, module: Module, value: bool) -> None:
        _tell()
        vars(module)[_NAME] = value


_NAME = "training"
_lock = Lock()
_watches: list[ModeWatch] = []


def _tell() -> None:
    for watch in _watches:
        watch.alike = False


def _has_its_own(kind: type) -> bool:
    """Whether a class answers for the mode in a way of its own."""
    return any(_NAME in vars(base) for base in kind.__mro__ if base is not Module)
