"""Element-wise operators, recognised by PyTorch's own ``torch.Tag.pointwise``.

Operands are broadcast; equal positions of equal dimensions live and die together. Whether a removed (zero) entry stays
zero is not looked up but tried: the operator is run on a few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from niwaki.rules.axis import Axis
from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten
_TRIES = 32


def pointwise(call: Call) -> Label:
    """Any operator that works entry by entry."""
    operands = [argument for argument in call.arguments.values() if isinstance(argument, Label)]
    if not operands:  # of numbers alone
        return call.opaque(0)
    axes = broadcast(call, operands)
    zero = [axis.free and _stays_zero(call, operands, axis, dim - len(axes)) for dim, axis in enumerate(axes)]
    return call.label(
        axes, zero, weight=bool(operands) and all(operand.weight or not operand.axes for operand in operands)
    )


@rule(aten.log_sigmoid_forward.default)
def log_sigmoid(call: Call) -> list[Label]:
    """Entry by entry, and something for the backward pass: as large on some devices, empty on others."""
    x: Label = call["self"]
    first, buffer = call.shapes
    return [call.label(x.axes), call.label(x.axes, output=1) if buffer == first else call.opaque(1)]


def broadcast(call: Call, operands: Sequence[Label]) -> list[Axis]:
    """The axes of the broadcast of ``operands``, which are equated."""
    rank = max((len(operand.axes) for operand in operands), default=0)  # two plain numbers can be divided, too
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
            made[number] = _as(dtype, values)
    result = _run(operator, arguments, made)
    if not result.dtype.is_floating_point:
        return bool((result == 0).all())
    masking = any(isinstance(given, _Operand) and given[1] is torch.bool for _, given in arguments)
    finite = result.isfinite() | ((result == -torch.inf) if masking else torch.zeros_like(result, dtype=torch.bool))
    if not bool(finite.all()):
        return None
    return bool((result == 0).all())


def degree(
    call: Call, operands: Sequence[Label], powers: Sequence[float], scalars: Mapping[float, float]
) -> float | None:
    """The power of t by which the result changes when operand i is multiplied by t ** powers[i], and each float
    argument s by t ** scalars[s]; None if it does not change by a power of t. Tried on numbers from 1e-30 to
    1e2, so that no constant is too small to be noticed."""
    arguments = tuple(
        (name, (_Operand(operands.index(given), given.dtype) if isinstance(given, Label) else _hashable(given)))
        for name, given in call.arguments.items()
    )
    return _degree(call.operator, arguments, tuple(powers), tuple(scalars.items()))


@lru_cache(maxsize=4096)
def _degree(
    operator: OpOverload,
    arguments: tuple[tuple[str, Any], ...],
    powers: tuple[float, ...],
    scalars: tuple[tuple[float, float], ...],
) -> float | None:
    generator = torch.Generator().manual_seed(0)
    magnitude = 10 ** (32 * torch.rand(len(powers), _TRIES, generator=generator, dtype=torch.float64) - 30)
    sign = torch.rand(len(powers), _TRIES, generator=generator, dtype=torch.float64).sub(0.3).sign()
    dtypes = dict(given for _, given in arguments if isinstance(given, _Operand))
    times = dict(scalars)
    results = []
    for t in (1.0, 2.0, 3.0):
        made = {i: _as(dtype, magnitude[i] * sign[i] * t ** powers[i]) for i, dtype in dtypes.items()}
        given = tuple(
            (name, value * t ** times[value] if isinstance(value, float) and value in times else value)
            for name, value in arguments
        )
        results.append(_run(operator, given, made))
    base, double, triple = (result.double() for result in results)
    if not torch.equal(base.isfinite(), double.isfinite()) or not torch.equal(base.isfinite(), triple.isfinite()):
        return None
    if not torch.equal(base == 0, double == 0) or not torch.equal(base == 0, triple == 0):
        return None
    counted = base.isfinite() & (base != 0)
    if not bool(counted.any()):
        return None
    found = torch.cat([(double / base)[counted].log2(), (triple / base)[counted].log() / math.log(3)])
    power = round(float(found[0]) * 4) / 4
    return power if bool((found - power).abs().max() < 1e-12) else None


_PLACEMENT = {"device", "memory_format"}  # where and how entries lie says nothing about them


def _as(dtype: torch.dtype, values: torch.Tensor) -> torch.Tensor:
    """Random numbers as an operand of type ``dtype``, in the precision of float64."""
    if dtype is torch.bool:
        return values > 0.5
    return values if dtype.is_floating_point else (values.abs() * 3).round().to(dtype)


def _run(
    operator: OpOverload, arguments: tuple[tuple[str, Any], ...], made: Mapping[int, torch.Tensor]
) -> torch.Tensor:
    """``operator`` on the numbers made for its operands; on one after the other where it takes no more at once."""
    try:
        return _called(operator, arguments, made)
    except RuntimeError:  # `masked_fill` fills in one number
        each = [{i: values[k] for i, values in made.items()} for k in range(_TRIES)]
        return torch.stack([_called(operator, arguments, numbers) for numbers in each])


def _called(
    operator: OpOverload, arguments: tuple[tuple[str, Any], ...], made: Mapping[int, torch.Tensor]
) -> torch.Tensor:
    filled = {name: made[given[0]] if isinstance(given, _Operand) else given for name, given in arguments}
    filled |= dict.fromkeys(_PLACEMENT & filled.keys())
    filled = {"self" if name == "input" and "self" in filled else name: given for name, given in filled.items()}
    positional = [filled[argument.name] for argument in operator._schema.arguments if not argument.kwarg_only]
    named = {a.name: filled[a.name] for a in operator._schema.arguments if a.kwarg_only}
    with torch.no_grad():
        result: torch.Tensor = operator(*positional, **named)
    return result


# Element-wise, but not tagged so (yet).
rule(
    aten._prelu_kernel.default,
    aten._to_copy.default,
    aten.abs_.default,
    aten.copy.default,
    aten.eq_.Scalar,
    aten.eq_.Tensor,
    aten.floor_divide.Scalar,
    aten.floor_divide_.Scalar,
    aten.gelu_.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.ge_.Scalar,
    aten.ge_.Tensor,
    aten.gt_.Scalar,
    aten.gt_.Tensor,
    aten.le_.Scalar,
    aten.le_.Tensor,
    aten.lt_.Scalar,
    aten.lt_.Tensor,
    aten.masked_fill.Tensor,
    aten.masked_fill_.Scalar,
    aten.masked_fill_.Tensor,
    aten.mish_.default,
    aten.ne_.Scalar,
    aten.ne_.Tensor,
    aten.rrelu_with_noise.default,
    aten.rsub.Tensor,
    aten.where.Scalar,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
)(pointwise)


class _Of(nn.Module):
    """A function of parameters [4, 6], [6], [4, 1] and [4, 6]."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.row, self.column = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 6), (6,), (4, 1)))
        self.b, self.function = nn.Parameter(torch.randn(4, 6)), function

    def forward(self) -> Tensor:
        return self.function(self.a, self.row, self.column, self.b)


def _arranged(a: Tensor, row: Tensor, column: Tensor, b: Tensor) -> Tensor:
    """Written anew in an order that only four dimensions have."""
    return (a * b)[None, None].contiguous(memory_format=torch.channels_last)[0, 0]


class _InPlace(nn.Module):
    """What is written through a view is no longer zero in the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.a, self.b = 2, nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))

    def forward(self) -> Tensor:
        x = self.a * 2
        x += self.b
        x[: self.n].add_(3)
        return x.mul_(2.0).masked_fill_(x > 3, 0.0)


sample(pointwise)(lambda: _Of(lambda a, row, column, b: torch.relu(a + row) * column))
sample(pointwise)(lambda: _Of(lambda a, row, column, b: a.sigmoid() * torch.where(b > 0, b, a + 1)))
sample(pointwise)(lambda: _Of(lambda a, row, column, b: a.tanh() + row.exp()))
sample(pointwise)(lambda: _Of(lambda a, row, column, b: torch.addcmul(a, b, row, value=0.5).clamp(min=0.1)))
sample(pointwise)(lambda: _Of(lambda a, row, column, b: (a * b) / row))
sample(pointwise)(lambda: _Of(lambda a, row, column, b: torch.lerp(a, b, 0.3).masked_fill(b.abs() < 0.1, 0.0)))
sample(pointwise)(lambda: _Of(lambda a, row, column, b: (a * b).masked_fill(row > 0, torch.tensor(0.0)) * 2))
sample(pointwise)(lambda: _Of(lambda a, row, column, b: (a * b).masked_fill(row < 9, torch.tensor(0.5)) * column))
sample(pointwise)(lambda: _Of(lambda a, row, column, b: (a // 0.1) * b))
sample(pointwise)(_InPlace)
sample(pointwise)(lambda: _Of(_arranged))
sample(log_sigmoid)(lambda: _Of(lambda a, row, column, b: nn.functional.logsigmoid(a * 2)))


@mutant(log_sigmoid)
def _zero_at_zero(call: Call) -> list[Label]:
    first, *rest = log_sigmoid(call)
    return [call.label(first.axes, (True, True)), *rest]


def _untied(call: Call) -> list[Axis]:
    operands = [argument for argument in call.arguments.values() if isinstance(argument, Label)]
    widest = max(operands, key=lambda operand: len(operand.axes))
    return [a if a.size == size else call.fresh(size) for a, size in zip(widest.axes, call.shapes[0], strict=True)]


@mutant(pointwise)
def _forgets_to_equate(call: Call) -> Label:
    return call.label(_untied(call))


@mutant(pointwise)
def _believes_everything_stays_zero(call: Call) -> Label:
    right = pointwise(call)
    return call.label(right.axes, [True] * len(right.axes))


@mutant(pointwise)
def _believes_any_zero_operand(call: Call) -> Label:
    operands = [argument for argument in call.arguments.values() if isinstance(argument, Label)]
    axes = broadcast(call, operands)
    back = range(-len(axes), 0)
    return call.label(axes, [any(len(x.axes) >= -d and x.zero[d] for x in operands) for d in back])
