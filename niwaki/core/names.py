"""The modules, parameters and buffers of a model by their names without `torch.compile`.

``torch.compile(module)`` wraps a module in another one, which holds it as ``_orig_mod``. Search spaces, plans and files
use the names inside of it, so that they fit the network compiled or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

_COMPILED = "_orig_mod"


def plain_name(name: str) -> str:
    """A dotted name without the wrappers of `torch.compile`.

    >>> plain_name("layers.0._orig_mod.weight")
    'layers.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != _COMPILED) if _COMPILED in name else name


def is_of_graph(name: str) -> bool:
    """Whether an attribute of this name holds numbers of an exported program: no attribute in Python has a dot."""
    return "." in name


def plain_json(data: Any) -> Any:
    """JSON data with plain names: older files of compiled networks have the names of torch's wrappers."""
    if isinstance(data, dict):
        return {plain_name(key): plain_json(value) for key, value in data.items()}
    if isinstance(data, list):
        return [value if type(value) is int else plain_json(value) for value in data]
    return plain_name(data) if isinstance(data, str) else data


def named_modules(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """`nn.Module.named_modules` by plain names; of a compiled module the one inside, which has its attributes."""
    for name, module in model.named_modules(remove_duplicate=remove_duplicate):
        if _COMPILED not in module._modules:
            yield plain_name(name), module


def named_parameters(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """`nn.Module.named_parameters` by plain names."""
    for name, parameter in model.named_parameters(remove_duplicate=remove_duplicate):
        yield plain_name(name), parameter


def named_buffers(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
    """`nn.Module.named_buffers` by plain names."""
    for name, buffer in model.named_buffers(remove_duplicate=remove_duplicate):
        yield plain_name(name), buffer


def state_of_model(model: nn.Module, *, keep_vars: bool = False) -> dict[str, Any]:
    """`nn.Module.state_dict` by plain names."""
    return {plain_name(name): value for name, value in model.state_dict(keep_vars=keep_vars).items()}


def module_at(model: nn.Module, path: str) -> nn.Module:
    """`nn.Module.get_submodule` by a plain name; raises `AttributeError` if no module has it."""
    module = _uncompiled(model)
    for part in path.split(".") if path else ():
        module = _uncompiled(module.get_submodule(part))
    return module


def _uncompiled(module: nn.Module) -> nn.Module:
    children = module._modules  # the modules of a scripted module have no `get`
    inside = children[_COMPILED] if _COMPILED in children else None
    return module if inside is None else _uncompiled(inside)
