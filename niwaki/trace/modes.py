"""Find out whether a run in eval mode stands for a run in train mode.

It does where nothing but torch's own BatchNorm and Dropout reads the mode: both treat units alike in either mode,
except that BatchNorm averages over the batch in train mode (its rule reads `Run.both`). So reads of ``Module.training``
are watched; any other code that reads or sets it makes a run in train mode necessary. So does a write into the output
of a Dropout, which only in eval mode is its input (`Recorder.tangled`).
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
    """Watches reads of the mode. ``alike``: whether only torch's own BatchNorm and Dropout have read it so far."""

    def __init__(self, modules: Iterable[Module]) -> None:
        modules = list(modules)
        own = any(map(_has_its_own, {type(module) for module in modules}))
        self.alike = not own and all(_NAME in vars(module) for module in modules)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch reads of the mode inside the block."""
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
    """Stands for the attribute ``training`` of all modules while a watch runs, in all threads: a read in another thread
    can only cause one run too many."""

    def __get__(self, module: Module | None, _: type) -> Any:
        if module is None:
            raise AttributeError(_NAME)
        if sys._getframe(1).f_code not in _ALIKE:
            _tell()
        try:
            return vars(module)[_NAME]
        except KeyError:  # a scripted module has it elsewhere, where `__getattr__` finds it
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
    """Whether a class defines the attribute ``training`` itself."""
    return any(_NAME in vars(base) for base in kind.__mro__ if base is not Module)
