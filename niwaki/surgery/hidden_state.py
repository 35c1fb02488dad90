"""Tensors that an optimizer keeps elsewhere than in the state of a parameter: in others, in groups, in attributes."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from niwaki.core.objects import attributes_of
from niwaki.errors import ShrinkError

_ELSEWHERE = (nn.Module, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)  # not an optimizer's own
_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_OWN = frozenset({"state", "param_groups"})  # what every optimizer has


def nested_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """``optimizer`` and those inside it, each once: a wrapper's (Lookahead, SAM), or two that share the work."""
    found = [optimizer]
    for one in found:
        inside = [value for _, value in _inside(_attributes(one), set()) if isinstance(value, Optimizer)]
        found += [value for value in inside if not any(value is other for other in found)]
    return found


def tensors_inside(value: object) -> Iterator[Tensor]:
    """The tensors in containers and in the attributes of objects, however deep."""
    return (inner for _, inner in _inside({"": value}, set()) if isinstance(inner, Tensor))


class Related:
    """Tells whether a tensor may belong to parameters that get smaller, where nothing but its shape speaks of it."""

    def __init__(self, parameters: Collection[Tensor], dims: Mapping[Tensor, Collection[int]]) -> None:
        self._parameters = {id(parameter) for parameter in parameters}
        self._shapes = {parameter.shape for parameter in dims}
        self._sizes = {parameter.shape[dim] for parameter, changed in dims.items() for dim in changed}
        self._largest = max((parameter.numel() for parameter in dims), default=0)

    def __call__(self, tensor: Tensor) -> bool:
        """It has the shape of one, a dimension of a size that changes, or room for the largest of them. Numbers, short
        tables, and the parameters themselves are something else."""
        if id(tensor) in self._parameters or tensor.numel() <= 1 or not self._shapes:
            return False
        matrix = tensor.ndim > 1 and not self._sizes.isdisjoint(tensor.shape)
        return tensor.shape in self._shapes or matrix or tensor.numel() >= self._largest


def check_hidden(optimizer: Optimizer, related: Related) -> None:
    """Raise `ShrinkError` if ``optimizer`` keeps tensors of parameters that get smaller in its param groups, in its
    attributes, or in its state under anything but a parameter."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    named = {key: value for key, value in optimizer.state.items() if not isinstance(key, Tensor)}
    places: list[tuple[str, Mapping[Any, Any]]] = [("state", named), *(("param groups", group) for group in groups)]
    for what, held in (*places, ("attributes", _attributes(optimizer))):
        for name, value in _inside(held, set()):
            if isinstance(value, Tensor) and related(value):
                raise ShrinkError(
                    f"{type(optimizer).__qualname__} keeps a tensor of shape {list(value.shape)} in its {what}, "
                    f"as {name!r}, which may belong to parameters that get smaller, and niwaki cannot tell how it "
                    "follows. Cut at the end of training instead (niwaki.cut), or keep such tensors in "
                    "optimizer.state[parameter]."
                )


def _attributes(optimizer: Optimizer) -> dict[str, Any]:
    own, slots = attributes_of(optimizer)
    return {name: value for name, value in {**own, **slots}.items() if name not in _OWN}


def _inside(held: Mapping[Any, Any], seen: set[int]) -> Iterator[tuple[Any, object]]:
    """Tensors and optimizers in containers and objects, with the name in ``held`` under which they are reached. What is
    inside these optimizers, modules and functions is left out."""
    for name, value in held.items():
        if isinstance(value, Tensor | Optimizer):
            yield name, value
        elif not isinstance(value, (*_ELSEWHERE, *_PLAIN)) and id(value) not in seen:
            seen.add(id(value))
            yield from ((name, inner) for _, inner in _inside(dict(enumerate(_parts(value))), seen))


def _parts(value: object) -> Sequence[object]:
    own, slots = attributes_of(value)
    parts = [*own.values(), *slots.values()]
    if isinstance(value, Mapping):
        parts += value.values()
    elif isinstance(value, list | tuple | deque | Set):
        parts += value
    return parts
