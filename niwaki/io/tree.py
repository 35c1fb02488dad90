"""Write nested Python values as JSON, with their tensors beside it: the state of optimizers and runs, without
pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from niwaki.errors import FileFormatError


def encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for ``value``: dictionaries, lists, tuples, numbers, text, None and tensors.

    Tensors are added to ``tensors``, as copies on the CPU, and replaced by their names, which begin with ``name``.

    >>> tensors = {}
    >>> encode({"lr": 0.1, "betas": (0.9, math.inf), 3: torch.ones(2)}, "state", tensors)
    {'dict': [['lr', 0.1], ['betas', {'tuple': [0.9, {'float': 'inf'}]}], [3, {'tensor': 'state.3'}]]}
    >>> decode(_, tensors)
    {'lr': 0.1, 'betas': (0.9, inf), 3: tensor([1., 1.])}

    Raises:
        FileFormatError: ``value`` holds another type; the message says where.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Tensor):
        return {"tensor": _put(value, name, tensors)}
    if isinstance(value, Mapping):
        # As pairs: the keys of an optimizer's state are numbers, which JSON objects do not have.
        pairs = [[encode(k, name, tensors), encode(v, f"{name}.{k}", tensors)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [encode(item, f"{name}.{position}", tensors) for position, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    raise FileFormatError(
        f"Cannot save {name!r}: it is a {type(value).__qualname__}, and niwaki's files hold tensors, numbers, text, "
        "lists and dictionaries only. Convert it to those, or omit it."
    )


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encode` was given.

    Raises:
        ValueError, KeyError or TypeError: this is not what `encode` returned.
    """
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {decode(k, tensors): decode(v, tensors) for k, v in content}
    if kind == "tuple":
        return tuple(decode(item, tensors) for item in content)
    raise ValueError(f"{kind!r} is not a kind of value")


def _put(tensor: Tensor, name: str, tensors: dict[str, Tensor]) -> str:
    """Store a copy under a name that is free: ``a.b`` may be ``b`` in ``a``, or a key with a dot."""
    if tensor.is_meta:
        raise FileFormatError(f"Cannot save {name!r}: it is on the meta device and has no values.")
    if tensor.layout != torch.strided:
        raise FileFormatError(f"Cannot save {name!r}: it is sparse, and safetensors files hold dense tensors only.")
    free = name
    while free in tensors:
        free += "'"
    tensors[free] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return free
