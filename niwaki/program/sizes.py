"""Find and replace the numbers of a graph that a cut may change: sizes, and floats such as the epsilon of a norm."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# Whole numbers that must follow a cut although the schema does not declare them as symbolic sizes.
_SIZES_BY_NAME = {aten.group_norm.default: "num_groups", aten.native_group_norm.default: "group"}
# Python's operators, except the one that reads an item of a result.
_OPERATORS = frozenset(
    function
    for function in vars(operator).values()
    if isinstance(function, BuiltinFunctionType) and function is not operator.getitem
)
_FAR = 2**31  # bounds that mean "to the end"


def spelled_out(node: fx.Node) -> tuple[Callable[..., Any], Arguments]:
    """Target and arguments of a call, with the defaults of torch spelled out: the scale of an attention (torch would
    compute another one from fewer positions), the sizes of the parts of a split (each may lose another number), the
    epsilon of an RMSNorm (a cut rescales it)."""
    assert callable(node.target)
    args, kwargs = tuple(node.args), dict(node.kwargs)
    if node.target is aten.scaled_dot_product_attention.default and kwargs.get("scale") is None:
        size = _value(node.args[0]).shape[-1]
        if isinstance(size, int) and size:
            kwargs["scale"] = 1 / math.sqrt(size)
    if node.target is aten.rms_norm.default and _by_name(node).get("eps") is None:
        given = _by_name(node)
        args = (given["input"], given["normalized_shape"], given.get("weight"))
        kwargs = {"eps": torch.finfo(_value(given["input"]).dtype).eps}
    if node.target in (aten.chunk.default, aten.split.Tensor):
        given = _by_name(node)
        dim = given.get("dim", 0)
        sizes = [part.shape[dim] for part in node.meta["val"]]
        if all(isinstance(size, int) for size in sizes):
            return aten.split_with_sizes.default, ((given["self"], sizes, dim), {})
    return node.target, (args, kwargs)


def _value(argument: Any) -> Any:
    return argument.meta["val"]


def _by_name(node: fx.Node) -> dict[str, Any]:
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def with_numbers(
    target: Any, arguments: Arguments, size: Callable[[int], Any], real: Callable[[float], Any]
) -> Arguments:
    """The arguments with ``size(number)`` in the place of every size and ``real(number)`` in that of every float,
    always in the same order."""
    args, kwargs = arguments
    if isinstance(target, torch._ops.OpOverload):
        schema = target._schema.arguments
        sizes = {argument.name for argument in schema if _is_size(target, argument)}
        names = [argument.name for argument in schema]
    else:
        names = [str(position) for position in range(len(args))]
        sizes = {*names, *kwargs} if _on_numbers(target) else set()

    def visited(name: str, given: Any) -> Any:
        if type(given) is float:
            return real(given)
        return _visited(given, size) if name in sizes else given

    return (
        tuple(visited(name, given) for name, given in zip(names, args, strict=False)),
        {name: visited(name, given) for name, given in kwargs.items()},
    )


def _on_numbers(target: Any) -> bool:
    """Whether ``target`` is one of Python's operators, which an exported program applies to sizes."""
    return target in _OPERATORS


def _is_size(target: torch._ops.OpOverload, argument: Any) -> bool:
    kind = argument.real_type
    while kind.kind() in ("ListType", "OptionalType"):
        kind = kind.getElementType()
    return bool(kind.kind() == "SymIntType" or _SIZES_BY_NAME.get(target) == argument.name)


def _visited(given: Any, visit: Callable[[int], Any]) -> Any:
    if isinstance(given, (list, tuple)):
        return [_visited(item, visit) for item in given]
    if isinstance(given, int) and not isinstance(given, bool) and given != 0 and abs(given) < _FAR:
        return visit(given)
    return given


@dataclass(frozen=True, slots=True)
class CallNumbers:
    """The sizes and floats of one call, in order."""

    sizes: tuple[int, ...]
    floats: tuple[float, ...]


def replaced(node: fx.Node, numbers: CallNumbers) -> tuple[Callable[..., Any], Arguments]:
    """Target and arguments of a call with new numbers."""
    target, arguments = spelled_out(node)
    sizes, floats = iter(numbers.sizes), iter(numbers.floats)
    return target, with_numbers(target, arguments, lambda _: next(sizes), lambda _: next(floats))
