"""The tensors of a network as they are saved: tied ones once, with those that the ``state_dict`` leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.core.names import named_buffers, state_of_model
from niwaki.errors import FileFormatError


@dataclass(frozen=True, slots=True)
class State:
    """``tensors``: by name, the very ones. ``tied``: names that share the tensor of an earlier name. ``buffers``: which
    of the tensors are buffers that are not in the ``state_dict``."""

    tensors: dict[str, Tensor]
    tied: dict[str, str]
    buffers: list[str]


def state_of(named: Mapping[str, Any], buffers: Mapping[str, Tensor]) -> State:
    """What to save of a ``state_dict``, and of the buffers outside it.

    Raises:
        FileFormatError: something is no tensor, is sparse, or is on the meta device.
    """
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise FileFormatError(
                f"Cannot save {name!r}: the module keeps a {type(value).__qualname__} in its state, and safetensors "
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
    """The non-persistent buffers: no part of the ``state_dict``, yet the network may compute with what they hold."""
    state = state_of_model(module)
    return {name: value for name, value in named_buffers(module, remove_duplicate=False) if name not in state}


def identity(tensor: Tensor) -> tuple[Any, ...] | None:
    """What two names of one tensor have in common; None for a tensor without elements."""
    if tensor.numel() == 0:
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _check_has_values(name: str, value: Tensor) -> None:
    if value.is_meta:
        raise FileFormatError(f"Cannot save {name!r}: it is on the meta device and has no values.")
    if value.layout != torch.strided:
        raise FileFormatError(f"Cannot save {name!r}: it is sparse, and safetensors files hold dense tensors only.")


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU: safetensors refuses tensors that share or only partly use a storage."""
    return {
        name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
