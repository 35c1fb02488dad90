"""Run a model without its arithmetic: large results are left hollow, zeros in the place of what would be computed.

A trace records which operators run and on what shapes, and most of a forward pass is spent on numbers that nobody looks
at. Tensors stay real, on their device, of the shape, strides and type that the operator gives, so that everything else
runs as ever. What is computed from a hollow tensor is hollow too; code that looks into one gets an error (`Looked`),
and the run is made again with all its arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from niwaki.trace.decisions import looks

_WORTH = 2**14  # entries among the arguments from which on it is worth it

_Form = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]


class Looked(RuntimeError):
    """Code asked for the content of a hollow tensor."""


class Hollow:
    """Which tensors are hollow, by the number of the value whose memory they have, and how operators run on them.

    ``looked``: whether code asked for the content of one. It may have caught the error, and gone another way.
    """

    def __init__(self) -> None:
        self.looked = False
        self._roots: set[int] = set()
        self._forms: dict[Hashable, tuple[_Form, ...]] = {}

    def mark(self, root: int) -> None:
        """What has this memory is hollow from now on."""
        self._roots.add(root)

    def affects(self, operator: torch._ops.OpOverload, args: Sequence[Any], roots: Iterable[int]) -> bool:
        """Whether a call is given hollow tensors; an error if it would look into them."""
        if self._roots.isdisjoint(roots):
            return False
        if looks(operator, args) or operator.namespace != "aten":
            self.refuse(str(operator))
        return True

    def check(self, operator: torch._ops.OpOverload, result: Any) -> None:
        """An error if what an operator made of hollow tensors is arranged by their content, as sparse tensors are."""
        made = result if isinstance(result, (tuple, list)) else (result,)
        if any(isinstance(item, torch.Tensor) and item.layout is not torch.strided for item in made):
            self.refuse(str(operator))

    def refuse(self, what: str) -> NoReturn:
        """The error for code that looks into a hollow tensor."""
        self.looked = True
        raise Looked(f"{what} looks into a tensor that was not computed")

    def refuse_reading(self, function: Any, root: int) -> None:
        """An error if a torch function that reads memory behind the operators' back is given a hollow tensor."""
        if root in self._roots:
            self.refuse(str(function))

    def result(
        self, operator: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any], affected: bool
    ) -> Any:
        """A hollow result; None if the operator has to run, which is always right."""
        if sum(_entries(argument) for argument in args) < _WORTH:
            return None
        if operator in _POINTWISE:
            return _pointwise(operator, args, kwargs) if affected else None
        shaped = _SHAPED.get(operator)
        if shaped is not None:
            return shaped(*args, **kwargs)
        return self._by_shapes(operator, args, kwargs) if operator in _BY_SHAPES else None

    def _by_shapes(self, operator: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What torch itself says of the result for tensors without memory. It is wrong about the arrangement of images
        that are not in the usual one."""
        if operator in _IMAGES and not all(_contiguous(argument) for argument in args):
            return None
        key = (operator, *map(_key, args), *((name, _key(given)) for name, given in kwargs.items()))
        forms = self._forms.get(key)
        if forms is None:
            device = next(argument.device for argument in args if isinstance(argument, torch.Tensor))
            told = operator(*map(_bare, args), **{name: _bare(given) for name, given in kwargs.items()})
            told = told if isinstance(told, (tuple, list)) else (told,)
            if not all(isinstance(tensor, torch.Tensor) for tensor in told):
                return None
            forms = tuple((tuple(tensor.shape), tensor.stride(), tensor.dtype, device) for tensor in told)
            self._forms[key] = forms
        made = tuple(_zeros(*form) for form in forms)
        return made if len(made) > 1 else made[0]


def _pointwise(operator: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of an operator on tensors that are arranged alike, of which it keeps the type."""
    first = args[0]
    same = not kwargs and isinstance(first, torch.Tensor) and first.is_floating_point()
    if not same or not all(_like(argument, first) for argument in args[1:]):
        return None
    if operator._schema.is_mutable:
        return first
    return _zeros_like(first) if _dense(first) else None


def _like(argument: Any, first: torch.Tensor) -> bool:
    if not isinstance(argument, torch.Tensor):
        return not isinstance(argument, (complex, list, tuple))
    return argument.shape == first.shape and argument.stride() == first.stride() and argument.dtype == first.dtype


def _batch_norm(x: torch.Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *_: Any) -> Any:
    if not x.is_contiguous() or x.device.type != "cpu":
        return None
    kept = (x.shape[1] if training else 0,)
    return _zeros_like(x), x.new_zeros(kept), x.new_zeros(kept)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *given: Any) -> Any:
    """torch's own says that there are weights where there are none."""
    needs_weights = given[7] if len(given) > 7 else True
    return None if needs_weights else (_zeros_like(query.contiguous()), None)


def _dense(tensor: torch.Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense.default(tensor))


def _zeros_like(tensor: torch.Tensor) -> torch.Tensor:
    return _zeros(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def _zeros(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    entries = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if math.prod(shape) else 0
    if device.type == "cpu":
        memory = torch.from_numpy(np.zeros(entries * dtype.itemsize, np.uint8)).view(dtype)
    else:
        memory = torch.zeros(entries, dtype=dtype, device=device)
    return memory.as_strided(shape, stride)


def _contiguous(argument: Any) -> bool:
    return not isinstance(argument, torch.Tensor) or argument.is_contiguous()


def _entries(argument: Any) -> int:
    return argument.numel() if isinstance(argument, torch.Tensor) else 0


def _key(argument: Any) -> Hashable:
    if isinstance(argument, torch.Tensor):
        return tuple(argument.shape), argument.stride(), argument.dtype, argument.device
    return tuple(argument) if isinstance(argument, list) else argument


def _bare(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return torch.empty_strided(argument.shape, argument.stride(), dtype=argument.dtype, device="meta")
    return argument


_aten = torch.ops.aten
_IMAGES = frozenset({_aten.convolution.default, _aten.max_pool2d_with_indices.default})
_BY_SHAPES = _IMAGES | frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
_POINTWISE = frozenset(  # of one type of tensors, which they keep; those in place write their first argument
    {
        _aten.add.Tensor,
        _aten.add_.Tensor,
        _aten.mul.Tensor,
        _aten.mul_.Tensor,
        _aten.gelu.default,
        _aten.hardsigmoid.default,
        _aten.hardsigmoid_.default,
        _aten.hardswish.default,
        _aten.hardswish_.default,
        _aten.hardtanh.default,
        _aten.hardtanh_.default,
        _aten.leaky_relu.default,
        _aten.leaky_relu_.default,
        _aten.relu.default,
        _aten.relu_.default,
        _aten.sigmoid.default,
        _aten.sigmoid_.default,
        _aten.silu.default,
        _aten.silu_.default,
        _aten.tanh.default,
    }
)
_SHAPED: dict[Any, Callable[..., Any]] = {
    _aten.native_batch_norm.default: _batch_norm,
    _aten._native_multi_head_attention.default: _attention,
}
OPERATORS = _BY_SHAPES | _POINTWISE | frozenset(_SHAPED)  # whose results may be left hollow
