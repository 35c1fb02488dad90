"""Element-wise operators, recognised by PyTorch's own ``torch.Tag.pointwise``.

Operands are broadcast; equal positions of equal dimensions live and die together. Whether a removed (zero) entry stays
zero is not looked up but tried: the operator is run on a few numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload

from niwaki.rules.axis import Axis
from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten
_TRIES = 32


def pointwise(call: Call) -> Label:
    """Any operator that works entry by entry."""
    operands = [argument for argument in call.arguments.values() if isinstance(argument, Label)]
    axes = broadcast(call, operands)
    zero = [axis.free and _stays_zero(call, operands, axis, dim - len(axes)) for dim, axis in enumerate(axes)]
    return call.label(axes, zero, weight=all(operand.weight or not operand.axes for operand in operands))


def broadcast(call: Call, operands: Sequence[Label]) -> list[Axis]:
    """The axes of the broadcast of ``operands``, which are equated."""
    rank = max(len(operand.axes) for operand in operands)
    axes = []
    for back in range(-rank, 0):
        present = [operand.axes[back] for operand in operands if len(operand.axes) >= -back]
        size = max((axis.size for axis in present), default=1) if all(a.size for a in present) else 0
        full = [axis for axis in present if axis.size == size]
        chosen = next((axis for axis in full if axis.free), full[0])
        for axis in full:
            call.equate(chosen, axis)
        axes.append(chosen)
    return axes


def _stays_zero(call: Call, operands: Sequence[Label], axis: Axis, back: int) -> bool:
    """Whether entries that are removed along dimension ``back`` (counted from the end) come out zero."""
    known = tuple(
        len(operand.axes) >= -back and operand.axes[back].size == axis.size and operand.zero[back]
        for operand in operands
    )
    if not any(known):
        return False
    arguments = tuple(
        (name, (_Operand(operands.index(given), given.dtype) if isinstance(given, Label) else given))
        for name, given in call.arguments.items()
    )
    outcome = _try(call.operator, _hashable(arguments), known)
    if outcome is None:
        call.pin(axis, f"{call.operator} turns removed entries into infinities or undefined numbers")
    return outcome is True


class _Operand(tuple[int, torch.dtype]):
    """Stands for operand number i while trying an operator."""

    def __new__(cls, number: int, dtype: torch.dtype) -> _Operand:
        return super().__new__(cls, (number, dtype))


def _hashable(argument: Any) -> Any:
    if isinstance(argument, list):
        return tuple(argument)
    return argument


@lru_cache(maxsize=4096)
def _try(operator: OpOverload, arguments: tuple[tuple[str, Any], ...], known: tuple[bool, ...]) -> bool | None:
    """True if zeros give zeros, False if not, None if they give infinities or NaN."""
    generator = torch.Generator().manual_seed(0)
    made: dict[int, torch.Tensor] = {}
    for _, given in arguments:
        if isinstance(given, _Operand):
            number, dtype = given
            values = torch.randn(_TRIES, generator=generator, dtype=torch.float64)
            if known[number]:
                values = torch.zeros(_TRIES, dtype=torch.float64)
            elif not dtype.is_floating_point and not dtype.is_complex:
                values = (values.abs() * 3).round()
            target = torch.float64 if dtype.is_floating_point else dtype
            made[number] = values > 0.5 if dtype is torch.bool else values.to(target)
    filled = {name: made[given[0]] if isinstance(given, _Operand) else given for name, given in arguments}
    filled = {"self" if name == "input" and "self" in filled else name: given for name, given in filled.items()}
    positional = [
        filled[argument.name] for argument in operator._schema.arguments if not argument.kwarg_only
    ]
    named = {a.name: filled[a.name] for a in operator._schema.arguments if a.kwarg_only}
    with torch.no_grad():
        result = operator(*positional, **named)
    if not result.dtype.is_floating_point:
        return bool((result == 0).all())
    masking = any(isinstance(given, _Operand) and given[1] is torch.bool for _, given in arguments)
    finite = result.isfinite() | ((result == -torch.inf) if masking else torch.zeros_like(result, dtype=torch.bool))
    if not bool(finite.all()):
        return None
    return bool((result == 0).all())


# Element-wise, but not tagged so (yet).
rule(
    aten._prelu_kernel.default,
    aten._to_copy.default,
    aten.copy.default,
    aten.gelu_.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.masked_fill.Tensor,
    aten.masked_fill_.Scalar,
    aten.masked_fill_.Tensor,
    aten.mish_.default,
    aten.rsub.Tensor,
    aten.where.Scalar,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
)(pointwise)


class _AddMul(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(6))
        self.c = nn.Parameter(torch.randn(3, 1))

    def forward(self) -> torch.Tensor:
        return torch.relu(self.a + self.b) * self.c


class _ToConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4, 6))

    def forward(self) -> torch.Tensor:
        return torch.sigmoid(self.a) * torch.where(self.b > 0, self.b, self.a)


class _InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))

    def forward(self) -> torch.Tensor:
        x = self.a.clone()
        x += self.b
        x.mul_(2.0).masked_fill_(x > 3, 0.0)
        return x


sample(pointwise)(_AddMul)
sample(pointwise)(_ToConstant)
sample(pointwise)(_InPlace)


@mutant(pointwise)
def _forgets_to_equate(call: Call) -> Label:
    operands = [argument for argument in call.arguments.values() if isinstance(argument, Label)]
    widest = max(operands, key=lambda operand: len(operand.axes))
    return call.label([a if a.size == s else call.fresh(s) for a, s in zip(widest.axes, call.shapes[0], strict=True)])


@mutant(pointwise)
def _believes_everything_stays_zero(call: Call) -> Label:
    right = pointwise(call)
    return call.label(right.axes, [True] * len(right.axes))
