"""Save the tensors of a network, and load them into a network that has just been cut.

Tied tensors are saved once; buffers outside of the ``state_dict`` are saved too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.core.names import named_buffers, named_modules, named_parameters, state_of_model
from niwaki.errors import FileFormatError
from niwaki.surgery.cut import duplicate
from niwaki.surgery.history import plan_of, remember
from niwaki.trace.inventory import Inventory
from niwaki.trace.remade import may_be_remade


@dataclass(frozen=True, slots=True)
class State:
    """The saved state of a network. ``tensors``: by name, not copied. ``tied``: names that share the tensor of an
    earlier name. ``buffers``: the names of buffers that are not in the ``state_dict``."""

    tensors: dict[str, Tensor]
    tied: dict[str, str]
    buffers: list[str]


def state_of(named: Mapping[str, Any], buffers: Mapping[str, Tensor]) -> State:
    """The state to save, from a ``state_dict`` and the buffers outside of it.

    Raises:
        FileFormatError: something is not a tensor, is sparse, or is on the meta device.
    """
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise FileFormatError(
                f"Cannot save {name!r}: the module has a {type(value).__qualname__} in its state, and safetensors "
                "files hold tensors only. Keep it as a buffer, or out of the state_dict."
            )
        _check_has_values(name, value)
        if (key := identity(value)) is not None and key in seen:
            tied[name] = seen[key]
            continue
        if key is not None:
            seen[key] = name
        tensors[name] = value.detach()
    for name, value in buffers.items():
        _check_has_values(name, value)
        tensors[name] = value.detach()
    return State(tensors, tied, sorted(buffers))


def outside_state(module: nn.Module) -> dict[str, Tensor]:
    """The non-persistent buffers: they are not in the ``state_dict``, but the network may compute with them."""
    state = state_of_model(module)
    return {name: value for name, value in named_buffers(module, remove_duplicate=False) if name not in state}


def identity(tensor: Tensor) -> tuple[Any, ...] | None:
    """The identity of a tensor, equal for all its names; None for a tensor without elements."""
    if tensor.numel() == 0:
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _check_has_values(name: str, value: Tensor) -> None:
    if value.is_meta:
        raise FileFormatError(f"Cannot save {name!r}: it is on the meta device and has no values.")
    if value.layout != torch.strided:
        raise FileFormatError(f"Cannot save {name!r}: it is sparse, and safetensors files hold dense tensors only.")


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU: safetensors refuses tensors that share a storage or use only a part of it."""
    return {
        name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def fill(small: nn.Module, tensors: Mapping[str, Tensor], about: Mapping[str, Any], path: Path) -> None:
    """Copy the saved tensors into a cut network whose names, shapes and ties must be the saved ones.

    Raises:
        FileFormatError: they differ; the message names the first difference. ``small`` may be partly filled then.
    """
    _regrow(small, tensors)
    state = state_of_model(small, keep_vars=True)
    outside = set(about.get("buffers", ())) & tensors.keys() - state.keys()
    inside = {name: saved for name, saved in tensors.items() if name not in outside}
    fill_state(state, inside, about.get("tied", {}), path)
    for name, value in named_buffers(small, remove_duplicate=False):
        if name in inside and value is not state[name]:
            raise FileFormatError(
                f"The buffer {name!r} could not be filled: the model's state_dict returns a copy of it."
            )
    for name in sorted(outside):
        _fill_buffer(small, name, tensors[name], path)


def fill_state(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], tied: Mapping[str, str], path: Path) -> None:
    """The same for the tensors of a ``state_dict`` alone."""
    for name in (*tensors, *tied):
        if name not in state:
            raise FileFormatError(f"{str(path)!r} holds {name!r}, which this model does not have.")
    for name, value in state.items():
        if name not in tensors and name not in tied:
            raise FileFormatError(f"{str(path)!r} does not hold {name!r}, which this model has.")
        saved = tensors[tied.get(name, name)]
        if value.shape != saved.shape:
            raise FileFormatError(
                f"{str(path)!r} holds {name!r} of shape {list(saved.shape)}, but this model, once cut, has "
                f"{list(value.shape)}."
            )
    _check_ties(state, tied, path)
    for name, saved in tensors.items():
        _copy(state[name], saved)


def _regrow(small: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give buffers that grow while the network runs their saved shape."""
    plan = plan_of(small)
    if plan is None:
        return
    planned = {one.name: one.shape for one in plan.shapes}
    may_grow = may_be_remade(Inventory.of(small))
    modules = dict(small.named_modules())
    for name, buffer in list(small.named_buffers()):
        saved = tensors.get(name)
        cut = plan.change_of(name).dims
        if saved is None or saved.shape == buffer.shape or (cut and saved.ndim != buffer.ndim):
            continue
        if any(saved.shape[dim] != buffer.shape[dim] for dim in cut):
            continue
        if name in may_grow or buffer.shape != planned.get(name):
            path, _, leaf = name.rpartition(".")
            modules[path]._buffers[leaf] = saved.to(buffer.device, copy=True)


def _copy(value: Tensor, saved: Tensor) -> None:
    """Copy a saved tensor, with its dtype, into an existing one, which keeps its identity and so its ties."""
    value.data = value.data.to(saved.dtype)
    with torch.no_grad():
        value.copy_(saved)


def _fill_buffer(small: nn.Module, name: str, saved: Tensor, path: Path) -> None:
    """Fill a non-persistent buffer; one that had grown, or was created by a forward pass, is replaced."""
    prefix, _, leaf = name.rpartition(".")
    owner = dict(named_modules(small, remove_duplicate=False)).get(prefix)
    if owner is None:
        raise FileFormatError(f"{str(path)!r} holds {name!r}, which this model does not have.")
    here = owner._buffers.get(leaf)
    if here is not None and here.shape == saved.shape:
        _copy(here, saved)
        return
    taken = owner._parameters.get(leaf), owner._modules.get(leaf)
    if not leaf or taken != (None, None) or callable(getattr(type(owner), leaf, None)):
        raise FileFormatError(f"{str(path)!r} holds a buffer {name!r}, but in this model that is something else.")
    home = next((value for value in (here, *small.parameters(), *small.buffers()) if value is not None), saved)
    owner.__dict__.pop(leaf, None)
    owner.register_buffer(leaf, saved.to(home.device), persistent=False)


def materialised(small: nn.Module, filled: frozenset[str], device: torch.device) -> nn.Module:
    """``small`` with empty tensors on ``device`` in place of those on the meta device; tied tensors remain tied.

    ``filled``: the names of the tensors that will get values. All references to a tensor are replaced by references to
    the new one.

    Raises:
        FileFormatError: a tensor on the meta device would get no values.
    """
    new: dict[int, object] = {}
    names: dict[int, list[str]] = {}
    for name, value in (
        *named_parameters(small, remove_duplicate=False),
        *named_buffers(small, remove_duplicate=False),
    ):
        if value.is_meta:
            names.setdefault(id(value), []).append(name)
            empty = torch.empty_like(value, device=device)
            new[id(value)] = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
    if not new:
        return small
    for known in names.values():
        if not filled.intersection(known):
            raise FileFormatError(_no_values(known[0]))
    for path, module in named_modules(small):
        for name, value in module.__dict__.items():
            if isinstance(value, Tensor) and value.is_meta and id(value) not in new:
                raise FileFormatError(_no_values(f"{path}.{name}".lstrip(".")))
    whole = duplicate(small, new)
    if (plan := plan_of(small)) is not None:
        remember(whole, plan)
    return whole


def _no_values(name: str) -> str:
    return (
        f"{name!r} of the model to load into is on the meta device, and the saved files hold no values for it. Build "
        "the model on a real device."
    )


def _check_ties(state: Mapping[str, Tensor], tied: Mapping[str, str], path: Path) -> None:
    """Check that exactly the names that shared a tensor when they were saved share one here."""
    first: dict[tuple[Any, ...], str] = {}
    here: dict[str, str] = {}
    for name, value in state.items():
        if (key := identity(value)) is not None and (earlier := first.setdefault(key, name)) != name:
            here[name] = earlier
    for name in sorted({*here, *tied}):
        if here.get(name) == tied.get(name):
            continue
        if name in tied:
            raise FileFormatError(
                f"In {str(path)!r} {name!r} is tied to {tied[name]!r}, but in this model it is a separate tensor. "
                "Tie them before loading."
            )
        raise FileFormatError(
            f"In this model {name!r} is tied to {here[name]!r}, but {str(path)!r} holds two tensors. "
            "Untie them before loading."
        )
