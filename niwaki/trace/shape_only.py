"""Shape-only execution: operators return tensors of the right shapes and skip the arithmetic.

A run whose control flow does not depend on values is the same with zeros, and far cheaper. Zeros share one block of
memory. Where values are needed after all, the run stops with `ValueNeeded` and is made again with real numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from niwaki.trace.replay import looks

_WORTH = 2**14  # the number of entries among the arguments from which on it pays


_Form = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]


Forms = dict[Hashable, tuple[_Form, ...]]  # shape, strides, type and device of results, by the arguments of an operator


class ValueNeeded(RuntimeError):
    """Code asked for the values of a hollow tensor."""


class Hollow:
    """The hollow tensors of a run, by the number of the value whose memory they share, and how operators run on them.

    ``looked``: whether code asked for the values of one. It may have caught the error and taken another branch.
    """

    def __init__(self, forms: Forms | None = None) -> None:
        """``forms``: shapes, strides, types and devices of results that other runs have found."""
        self.looked = False
        self._roots: set[int] = set()
        self._derived: set[int] = set()
        self._forms: Forms = {} if forms is None else forms
        self._zeros = ZeroPages()

    def mark(self, root: int) -> None:
        """Count tensors with this memory as hollow from now on."""
        self._roots.add(root)

    def holds(self, root: int) -> bool:
        """Whether tensors with this memory are hollow."""
        return root in self._roots

    def derive(self, root: int) -> None:
        """Count tensors with this memory as derived from weights or inputs from now on. Others (a table of positions)
        are computed: a cache outside of the modules may keep them for any network that asks with the same numbers."""
        self._derived.add(root)

    def derives(self, roots: Iterable[int]) -> bool:
        """Whether results of these values derive from weights or inputs."""
        return not self._derived.isdisjoint(roots)

    def affects(self, operator: torch._ops.OpOverload, args: Sequence[Any], roots: Iterable[int]) -> bool:
        """Whether a call has hollow arguments; raises `ValueNeeded` if it would read their values."""
        if self._roots.isdisjoint(roots):
            return False
        if looks(operator, args) or operator.namespace != "aten":
            self.refuse(str(operator))
        return True

    def check(self, operator: torch._ops.OpOverload, result: Any) -> None:
        """Raise `ValueNeeded` if the layout of a result depends on the values of hollow tensors, as of sparse
        tensors."""
        made = result if isinstance(result, (tuple, list)) else (result,)
        if any(isinstance(item, torch.Tensor) and item.layout is not torch.strided for item in made):
            self.refuse(str(operator))

    def refuse(self, what: str) -> NoReturn:
        """The error for code that reads the values of a hollow tensor."""
        self.looked = True
        raise ValueNeeded(f"{what} looks into a tensor that was not computed")

    def refuse_reading(self, function: Any, root: int) -> None:
        """Raise `ValueNeeded` if a torch function that reads memory without an operator gets a hollow tensor."""
        if root in self._roots:
            self.refuse(str(function))

    def result(
        self, operator: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any], affected: bool
    ) -> Any:
        """A hollow result; None if the operator has to run, which is right for every operator."""
        make = _MAKES.get(operator)
        if make is None or sum([given.numel() for given in args if isinstance(given, torch.Tensor)]) < _WORTH:
            return None
        return make(self, operator, args, kwargs, affected)

    def by_shapes(self, operator: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any], _: bool) -> Any:
        """The result that torch itself predicts for tensors without memory. Its strides are wrong for images in other
        memory formats than the usual one."""
        tensors = [given for given in args if isinstance(given, torch.Tensor)]
        if operator in _IMAGES and not all(map(_usual, tensors)):
            return None
        key = (operator, *map(_key, args), *((name, _key(given)) for name, given in kwargs.items()))
        forms = self._forms.get(key)
        if forms is None:
            told = operator(*map(_bare, args), **{name: _bare(given) for name, given in kwargs.items()})
            told = told if isinstance(told, (tuple, list)) else (told,)
            if not all(isinstance(tensor, torch.Tensor) for tensor in told):
                return None
            device = tensors[0].device
            forms = tuple((tuple(tensor.shape), tensor.stride(), tensor.dtype, device) for tensor in told)
            self._forms[key] = forms
        made = tuple(self._zeros.tensor(*form) for form in forms)
        return made if len(made) > 1 else made[0]

    def pointwise(
        self, operator: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any], affected: bool
    ) -> Any:
        """The result of an element-wise operator on tensors of equal strides, in the type of its first argument."""
        first = args[0]
        same = affected and not kwargs and isinstance(first, torch.Tensor) and first.is_floating_point()
        if not same or not all(_like(argument, first) for argument in args[1:]):
            return None
        if operator._schema.is_mutable:
            return first
        return self._like(first) if _dense(first) else None

    def batch_norm(self, _: Any, args: Sequence[Any], __: Any, ___: bool) -> Any:
        """The normalised input, and in training the statistics for the backward pass."""
        x, training = args[0], args[5]
        if not _usual(x) or x.device.type != "cpu":
            return None
        kept = (x.shape[1] if training else 0,)
        return self._like(x), x.new_zeros(kept), x.new_zeros(kept)

    def attention(self, _: Any, args: Sequence[Any], __: Any, ___: bool) -> Any:
        """Multi-head attention without weights, for which torch's own shape function returns weights all the same."""
        needs_weights = args[10] if len(args) > 10 else True
        return None if needs_weights else (self._like(args[0].contiguous()), None)

    def _like(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._zeros.tensor(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def _like(argument: Any, first: torch.Tensor) -> bool:
    if not isinstance(argument, torch.Tensor):
        return not isinstance(argument, (complex, list, tuple))
    return argument.shape == first.shape and argument.stride() == first.stride() and argument.dtype == first.dtype


def _usual(tensor: torch.Tensor) -> bool:
    """Whether a tensor is stored row by row and cannot be taken for channels-last images: with a single channel it is
    contiguous in both formats, and torch decides by its strides."""
    step, strides = 1, []
    for size in reversed(tensor.shape):
        strides.append(step)
        step *= max(size, 1)
    return tensor.stride() == tuple(reversed(strides))


def _dense(tensor: torch.Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense.default(tensor))


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


_POINTWISE = frozenset(  # they keep the type of their arguments; those in place write the first
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


_MAKES: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    **dict.fromkeys(_BY_SHAPES, Hollow.by_shapes),
    **dict.fromkeys(_POINTWISE, Hollow.pointwise),
    _aten.native_batch_norm.default: Hollow.batch_norm,
    _aten._native_multi_head_attention.default: Hollow.attention,
}


OPERATORS = frozenset(_MAKES)  # whose results may be left hollow


_PIECE = 2**26  # bytes; below half of it, the C library clears memory that it already has, which takes time


_ALIGNED = 64


_NUMPY: dict[torch.dtype, type[np.generic]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.int64: np.int64,
}


class ZeroPages:
    """Hands out tensors of zeros that have no memory in common. A block lives as long as any tensor in it."""

    def __init__(self) -> None:
        self._piece: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._used = 0

    def tensor(
        self, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Zeros of this shape and these strides."""
        if device.type != "cpu" or 0 in shape:
            return torch.zeros(_span(shape, stride), dtype=dtype, device=device).as_strided(shape, stride)
        wide = dtype.itemsize
        size = _span(shape, stride) * wide
        start = self._start(size)
        kind = _NUMPY.get(dtype)
        if kind is None:  # numpy has no such numbers
            plain = torch.from_numpy(np.ndarray(size, np.uint8, self._piece, start))
            return plain.view(dtype).as_strided(shape, stride)
        return torch.from_numpy(np.ndarray(shape, kind, self._piece, start, [step * wide for step in stride]))

    def _start(self, size: int) -> int:
        """The start of ``size`` unused bytes in the current block, or in a new one if they do not fit."""
        start = -self._used // _ALIGNED * -_ALIGNED
        if start + size > len(self._piece):
            self._piece, start = np.zeros(max(size, _PIECE), np.uint8), 0
        self._used = start + size
        return start


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """The number of entries between the first and the last one, both included."""
    return 0 if 0 in shape else 1 + sum([(size - 1) * step for size, step in zip(shape, stride, strict=True)])
