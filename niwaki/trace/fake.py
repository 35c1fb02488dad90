"""Run a model whose tensors are on the meta device: they are replaced by fake tensors that claim to be on a real
device.

Results computed from them are fake as well: they have a shape and no values. Results computed from real tensors alone
are real, so that masks and positions that Python code reads have their values.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from niwaki.core.location import Location

_PLAIN = (FakeTensor, int, float, bool, type(None), torch.dtype, torch.device)
_NESTING = (torch.Tensor, list, tuple)
_NEEDS = (DataDependentOutputException, DynamicOutputShapeException)


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no content."""
    return isinstance(tensor, FakeTensor)


class NeedsValue(RuntimeError):
    """Python code read the values of a tensor that has none."""


class FakeTensors:
    """Fake tensors that stand for the meta tensors among ``tensors``, one for each; of ``mode``, or of a new mode."""

    def __init__(self, tensors: Sequence[torch.Tensor], mode: FakeTensorMode | None = None) -> None:
        self.active = any(tensor.is_meta for tensor in tensors)
        self._device = next((tensor.device for tensor in tensors if not tensor.is_meta), torch.device("cpu"))
        self._mode = FakeTensorMode(allow_non_fake_inputs=True) if mode is None else mode
        self._made: dict[Hashable, tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]] = {}
        self._fakes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the meta tensor is kept alive with its fake
        self._metas: dict[int, torch.Tensor] = {}  # by the identity of the fake

    def swap(self, model: torch.nn.Module) -> None:
        """Replace all meta tensors that belong to ``model`` by fakes. The caller has to undo that."""
        if self.active:
            for module in model.modules():
                for name, value in module.__dict__.items():
                    if name != "_modules":
                        module.__dict__[name] = self._replaced(value)

    def run(self, operator: torch._ops.OpOverload, args: Any, kwargs: Any) -> Any:
        """Call an operator. Layers repeat: a shape that was computed for the same arguments is not computed again."""
        shape_of = _SHAPES.get(operator)
        if shape_of is not None and any(isinstance(argument, FakeTensor) for argument in args):
            return shape_of(*args, **kwargs)
        if not self.active or operator._schema.is_mutable:
            return operator(*args, **kwargs)
        key = _key((operator, *args, *kwargs.items()))
        made = self._made.get(key) if key is not None else None
        if made is None:
            result = operator(*args, **kwargs)
            if key is not None and isinstance(result, FakeTensor) and all(result is not given for given in args):
                self._made[key] = tuple(result.shape), result.stride(), result.dtype, result.device
            return result
        shape, stride, dtype, device = made
        return FakeTensor(self._mode, torch.empty_strided(shape, stride, dtype=dtype, device="meta"), device)

    def arguments(self, given: Any) -> Any:
        """The arguments of an operator, with meta tensors replaced by fakes."""
        if type(given) in _PLAIN:
            return given
        if isinstance(given, torch.Tensor):
            return self.stand_in(given)
        if type(given) in (tuple, list):
            return type(given)([self.arguments(item) if isinstance(item, _NESTING) else item for item in given])
        if isinstance(given, dict):
            return {name: self.arguments(item) for name, item in given.items()}
        return given

    def stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """The fake of a meta tensor; any other tensor itself."""
        if not self.active or isinstance(tensor, FakeTensor) or not tensor.is_meta:
            return tensor
        if id(tensor) not in self._fakes:
            with self._mode:
                fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self._device)
            if isinstance(tensor, torch.nn.Parameter):
                fake = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
            self._fakes[id(tensor)] = tensor, fake
            self._metas[id(fake)] = tensor
        return self._fakes[id(tensor)][1]

    def original(self, tensor: torch.Tensor) -> torch.Tensor:
        """The meta tensor that a fake stands for; any other tensor itself."""
        return self._metas.get(id(tensor), tensor)

    def _replaced(self, value: Any) -> Any:
        """``value`` with stand-ins, containers that a module may share with others changed in place."""
        if isinstance(value, torch.Tensor):
            return self.stand_in(value)
        if type(value) is tuple:
            items = tuple(self._replaced(item) for item in value)
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        if isinstance(value, list):
            for index, item in enumerate(value):
                value[index] = self._replaced(item)
        elif isinstance(value, dict):
            for key, item in value.items():
                value[key] = self._replaced(item)
        return value


def needs_value(error: Exception, operator: torch._ops.OpOverload, location: Location) -> NeedsValue | None:
    """The sentence for an operator that failed because a tensor has no content."""
    if not isinstance(error, _NEEDS):
        return None
    return NeedsValue(
        f"{location} asks for the values of a tensor ({operator}), which has none: it is computed from parameters "
        "or inputs on the meta device. Give the example inputs as real tensors; if that line depends on parameters, "
        "analyse a model with real weights (a smaller one of the same architecture will do to see its groups), or "
        "write the line so that no shape and no branch depends on values."
    )


def _key(argument: Any) -> Hashable:
    """What the result of an operator depends on; None if it depends on the values of a tensor."""
    if isinstance(argument, FakeTensor):
        return tuple(argument.shape), argument.stride(), argument.dtype
    if isinstance(argument, torch.Tensor):
        return None
    if not isinstance(argument, (list, tuple)):
        return type(argument), argument
    items = tuple(_key(item) for item in argument)
    return None if None in items else items


def _as_strided(tensor: torch.Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> torch.Tensor:
    """The shape of a strided view, without the check of its memory: a fake base has none."""
    return tensor.new_empty_strided(size, stride)


def _grouped_mm(
    left: torch.Tensor,
    right: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The shape of a grouped product. torch's shape function takes bfloat16 only; the kernels take other types too,
    with the same strides."""
    for matrix in (left, right):
        long = matrix.stride(-2) if matrix.stride(-1) == 1 else matrix.stride(-1)
        if long * matrix.element_size() % 16:
            raise RuntimeError("strides should be multiple of 16 bytes")
    shape = [left.shape[-2], right.shape[-1]]
    if left.dim() == right.dim():  # batches, or groups of columns of the one and of rows of the other
        assert left.dim() == 3 or offs is not None
        shape.insert(0, len(left) if left.dim() == 3 or offs is None else len(offs))
    return left.new_empty(shape, dtype=out_dtype)


_SHAPES: dict[Any, Any] = {
    torch.ops.aten._grouped_mm.default: _grouped_mm,
    torch.ops.aten.as_strided.default: _as_strided,
}


@contextmanager
def failures_not_logged() -> Iterator[None]:
    """Keep torch from logging failures on fake tensors as errors: some runs have to fail here."""
    log = logging.getLogger("torch._subclasses.fake_tensor")

    def nothing(_: logging.LogRecord) -> bool:
        return False

    log.addFilter(nothing)
    try:
        yield
    finally:
        log.removeFilter(nothing)
