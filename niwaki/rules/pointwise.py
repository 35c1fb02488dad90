"""Follow axes through element-wise operators, recognised by PyTorch's own ``torch.Tag.pointwise``.

Operands are broadcast; equal positions of equal dimensions are removed together. Whether a removed (zero) entry is
still zero is not looked up but tried (`niwaki.rules.trying`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from niwaki.rules.axis import Axis
from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import mutant, rule, sample
from niwaki.rules.trying import zeros_stay
from niwaki.rules.zeros import lift, product, quotient

aten = torch.ops.aten


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
    """Entry by entry, with a buffer for the backward pass: of the same size on some devices, empty on others."""
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
    outcome = zeros_stay(call, operands, known)
    if outcome is None:
        call.pin(axis, f"{call.operator} turns removed entries into infinities or undefined numbers")
    return outcome is True


# Element-wise, but not tagged so (yet).
rule(
    aten._prelu_kernel.default,
    aten._to_copy.default,
    aten.abs_.default,
    aten.eq_.Scalar,
    aten.eq_.Tensor,
    aten.floor_divide.Scalar,
    aten.floor_divide.default,
    aten.floor_divide_.Scalar,
    aten.floor_divide_.Tensor,
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

product("self", "other", of=(aten.mul.Tensor, aten.mul_.Tensor))(pointwise)
quotient("other", of=(aten.div.Tensor, aten.div_.Tensor, aten.div.Tensor_mode, aten.div_.Tensor_mode))(pointwise)
quotient("self", of=(aten.reciprocal.default, aten.reciprocal_.default, aten.rsqrt.default, aten.rsqrt_.default))(
    pointwise
)
quotient("self", of=(aten.log.default, aten.log_.default, aten.log2.default, aten.log10.default))(pointwise)
quotient("self", negative="exponent", of=(aten.pow.Tensor_Scalar, aten.pow_.Scalar))(pointwise)
lift(of=(aten.exp.default, aten.sigmoid.default))(pointwise)
lift("min", of=(aten.clamp_min.default, aten.clamp.default))(pointwise)
lift("other", of=(aten.add.Tensor, aten.add_.Tensor))(pointwise)


class _Of(nn.Module):
    """A function of parameters [4, 6], [6], [4, 1] and [4, 6]."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.row, self.column = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 6), (6,), (4, 1)))
        self.b, self.function = nn.Parameter(torch.randn(4, 6)), function

    def forward(self) -> Tensor:
        return self.function(self.a, self.row, self.column, self.b)


def _arranged(a: Tensor, row: Tensor, column: Tensor, b: Tensor) -> Tensor:
    """A copy in a memory format that only four dimensions have."""
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
