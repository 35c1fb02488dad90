"""Edit the modules of a network for a while, in place: a copy takes longer than most of what is tried with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

from torch import nn

from niwaki.core.edits import EraseModules
from niwaki.core.names import named_modules

_FORWARD = "forward"


@contextmanager
def edited(model: nn.Module, edit: EraseModules) -> Iterator[None]:
    """Make ``edit`` in ``model``, and undo it at the end of the block, after an error too.

    What is absent fails when it is called all the same: code may know a module by another way than its name.
    """
    modules = dict(named_modules(model))
    changed = [module for module in model.modules() if module._modules or module._parameters]
    held = [(module, dict(module._modules), dict(module._parameters)) for module in changed]
    numbers = [(modules[path].__dict__, name, modules[path].__dict__[name]) for path, name in edit.numbers]
    with ExitStack() as stack:
        for path in (*edit.absent, *edit.entries):
            stack.enter_context(running(modules[path], _refuse))
        try:
            edit.apply(modules)
            yield
        finally:
            for module, children, parameters in held:
                module._modules.clear()
                module._modules.update(children)
                module._parameters.clear()
                module._parameters.update(parameters)
            for attributes, name, value in numbers:
                attributes[name] = value


@contextmanager
def running(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module run ``forward`` instead of its own, until the end of the block."""
    attributes = dict(module.__dict__)
    module.__dict__[_FORWARD] = forward
    try:
        yield
    finally:
        module.__dict__.clear()
        module.__dict__.update(attributes)


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("it is called although it is not there")
