"""Find the line of the user's source, and the module, that is running now."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from os import sep
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from niwaki.core.libraries import EINOPS, TORCH
from niwaki.core.location import Location, running_at
from niwaki.trace.inventory import Inventory
from niwaki.trace.module_calls import ModuleCalls

# Functions of einops are operators to a user's code, as those of torch are.
_INTERNAL = (TORCH, EINOPS, f"{Path(__file__).parent}{sep}")


class Lines:
    """The running lines of a model inside ``watching``; equal locations are one object."""

    def __init__(self, inventory: Inventory) -> None:
        self._names = {id(module): name for name, module in reversed(inventory.modules)}
        self._modules = [""]
        self._outermost: FrameType | None = None
        self._model = ""
        self._known: dict[tuple[str, int, str], Location] = {}

    @property
    def module(self) -> str:
        """The module whose code is running."""
        return self._modules[-1]

    def here(self) -> Location:
        """The innermost line that is neither torch's nor this package's machinery, up to the call of the model."""
        told = running_at.get()
        if told is not None:
            return told
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self._outermost and _internal(frame.f_code.co_filename):
            frame = frame.f_back
        module = self._modules[-1]
        if frame is None or frame is self._outermost:
            line = self._model, 0, module
        else:
            line = frame.f_code.co_filename, frame.f_lineno, module
        known = self._known.get(line)
        if known is None:
            known = self._known[line] = Location(*line)
        return known

    @contextmanager
    def watching(self, model: torch.nn.Module, caller: FrameType, calls: ModuleCalls) -> Iterator[None]:
        """Inside, ``caller`` calls ``model``. The calls of its modules are noted in ``calls``."""

        def enter(module: torch.nn.Module, _: Any) -> None:
            name = self._names.get(id(module))
            self._modules.append(self._modules[-1] if name is None else name)
            calls.enter(name)

        def leave(_: torch.nn.Module, *call: Any) -> None:
            """``call``: arguments, keywords and result; after an error torch leaves the keywords out."""
            if len(self._modules) > 1:
                self._modules.pop()
                calls.leave(*(call if len(call) == 3 else (*call[:1], {}, None)))

        self._outermost, self._model = caller, type(model).__qualname__
        handles = (
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, with_kwargs=True, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            del self._modules[1:]
            self._outermost = None  # a frame references its variables: nothing of a run would be freed


@cache
def _internal(filename: str) -> bool:
    return filename.startswith(_INTERNAL)
