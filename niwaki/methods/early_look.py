"""A controller's step at the beginning of a forward pass of the training, where no gradient takes up memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, final
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import distributed, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle


@final
class EarlyLook:
    """Calls ``look`` when a forward pass of the training of ``model`` begins and no parameter has a gradient.

    Just before the optimizer's step, which is the other place for it, the gradients of all parameters are there, beside
    all that a pass of the controller needs. Between two steps the parameters stay what they are, so that both places
    give the same. It is called there only if the step before has found no gradients either: a run that was killed and
    goes on, which begins without any, is to do as it would have done.

    ``usual``: whether it has, which is part of a method's state.
    """

    def __init__(self, model: nn.Module, look: Callable[[], None]) -> None:
        self._model, self._look = model, look
        self._parameters = tuple(model.parameters())
        self._handle: RemovableHandle | None = None
        self._free: bool | None = None  # whether the first pass since the last step has found no gradients
        self.usual = False

    def watch(self, on: bool) -> None:
        """From now on, or not any more."""
        if on and self._handle is None:
            # A function of a module, so that a copy or a pickle of the model takes it along without what it does.
            self._handle = self._model.register_forward_pre_hook(_begins)
            _WATCHED.setdefault(self._model, WeakSet()).add(self)
            self._model.__dict__[_PREPARES] = partial(_scriptable, self._model)
        if not on and self._handle is not None:
            self._handle.remove()
            self._handle = None
            _WATCHED[self._model].discard(self)
            if not _WATCHED[self._model]:
                self._model.__dict__.pop(_PREPARES, None)

    @property
    def _devices(self) -> set[str]:
        """Where the parameters are now: a model may be moved."""
        return {one.device.type for one in self._parameters}

    def step_begins(self) -> None:
        """The optimizer is about to step. A loop that steps under autocast would have the other place under it, too."""
        under = any(torch.is_autocast_enabled(device) for device in self._devices)
        self.usual, self._free = self._free is True and not under, None

    def begins(self) -> None:
        """A forward pass of the training."""
        here = tuple(self._model.parameters())
        if len(here) != len(self._parameters) or any(a is not b for a, b in zip(here, self._parameters, strict=True)):
            return  # it runs with other tensors, as under `torch.func.functional_call`
        free = all(one.grad is None for one in here)
        if self._free is None:
            self._free = free
        if free and self._free and self.usual:  # between two passes of a step somebody may have moved the weights
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                for device in sorted(self._devices):
                    stack.enter_context(torch.autocast(device, enabled=False))
                self._look()


_PREPARES = "__prepare_scriptable__"  # what `torch.jit.script` calls, of every module that has it
_WATCHED: WeakKeyDictionary[nn.Module, WeakSet[EarlyLook]] = WeakKeyDictionary()


def _scriptable(model: nn.Module) -> Any:
    """The model, or a copy of it, without the hook, which would be compiled as a part of it. The optimizer's next step
    puts it back."""
    for look in list(_WATCHED.get(model, ())):
        look.watch(False)
    for number in [number for number, hook in model._forward_pre_hooks.items() if hook is _begins]:
        del model._forward_pre_hooks[number]
    model.__dict__.pop(_PREPARES, None)
    own = getattr(model, _PREPARES, None)  # that of its class
    return model if own is None else own()


def _begins(model: nn.Module, args: Any) -> None:
    if torch.compiler.is_compiling() or not (model.training and torch.is_grad_enabled()) or _watched_or_transformed():
        return
    for look in list(_WATCHED.get(model, ())):
        look.begins()


def _watched_or_transformed() -> bool:
    """Whether what is computed now is recorded or changed by somebody, or other processes would have to take part.

    Activation checkpoints around the model count what the pass saves for the backward pass; weights that are computed
    once for a block (`torch.nn.utils.parametrize.cached`) would be those of the controller for the training, too; a
    CUDA graph would repeat its step for ever.
    """
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    inside = torch._C._functorch.peek_interpreter_stack() is not None or torch._C._is_tracing()
    saved = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    graphed = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return several or bool(modes) or inside or saved or bool(parametrize._cache_enabled) or graphed
