"""Give new tensors (zeros, full, arange, eye) their axes, which shrink where their sizes can follow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from niwaki.rules.axis import Axis
from niwaki.rules.call import Call, Refused
from niwaki.rules.label import Label
from niwaki.rules.registry import mutant, nonnegative, rule, sample

aten = torch.ops.aten


_DROPPING = (torch.feature_dropout, torch.feature_dropout_, torch.feature_alpha_dropout, torch.feature_alpha_dropout_)
_RESULTS = (torch._VF._pad_packed_sequence, torch.sparse.mm)


def _room(call: Call) -> list[Axis] | None:
    """The axes of a tensor whose size torch itself computes before it fills the tensor; None where Python gives the
    size."""
    padded = call.arguments.get("self")
    if call.python.function is torch._C._nn.pad and padded is not None:  # around the image
        call.derived_by_torch("size")
        sizes = zip(padded.axes, call["size"], strict=True)
        return [axis if axis.size == size else call.fixed(size) for axis, size in sizes]
    if call.python.function in _RESULTS:
        call.derived_by_torch("size")
        return [call.fresh(size) for size in call["size"]]
    if call.python.function in _DROPPING:  # an empty tensor [samples, channels]
        call.derived_by_torch("size")
        return [*call["self"].axes[:2], *(call.fixed(size) for size in call["size"][2:])]
    return None


def _sized(call: Call, zero: bool) -> Label:
    """A constant tensor: any position may be removed if the given size can follow."""
    given = call["size"]
    room = _room(call)
    if room is not None:
        return call.label(room, [zero] * len(room))
    axes = []
    for expression, size in zip(call.size_exprs(given), given, strict=True):
        axis = call.fixed(size) if size < 2 else call.fresh(size)
        if expression is None and axis.free:
            call.pin(axis, "niwaki cannot see where this size comes from")
        call.size_is(expression, axis, "the size of a new tensor")
        axes.append(axis)
    return call.label(axes, [zero] * len(axes))


@nonnegative()
@rule(aten.zeros.default, aten.new_zeros.default)
def zeros(call: Call) -> Label:
    """Zeros of a given size."""
    return _sized(call, zero=True)


@rule(
    aten.ones.default,
    aten.empty.memory_format,
    aten.full.default,
    aten.new_ones.default,
    aten.new_empty.default,
    aten.new_full.default,
)
def constant(call: Call) -> Label:
    """Ones or other constants, of a given size."""
    return _sized(call, zero=call.arguments.get("fill_value") == 0)


@nonnegative()
@rule(aten.zeros_like.default, aten.zero_.default)
def zeros_like(call: Call) -> Label:
    """Zeros in the shape of another tensor."""
    axes = call["self"].axes
    return call.label(axes, [True] * len(axes))


@rule(
    aten.ones_like.default,
    aten.empty_like.default,
    aten.full_like.default,
    aten.fill_.Scalar,
    aten.fill_.Tensor,
)
def constant_like(call: Call) -> Label:
    """A constant in the shape of another tensor."""
    return call.label(call["self"].axes)


@rule(aten.new_empty_strided.default)
def strided_like(call: Call) -> Label:
    """A new tensor in the shape of another one with other strides (flexible attention makes its results so)."""
    x: Label = call["self"]
    if call["size"] != x.shape:
        raise Refused("a tensor is made with strides of its own")
    for expression, axis in zip(call.size_exprs(call["size"]), x.axes, strict=True):
        call.size_is(expression, axis, "the size of a new tensor")
    call.size_exprs(call["stride"], behind=len(x.axes))
    return call.label(x.axes)


@rule(
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.linspace.default,
    aten.scalar_tensor.default,
    aten.tril_indices.default,
    aten.triu_indices.default,
)
def counted(call: Call) -> Label:
    """Numbers that count the positions (arange, linspace): each entry is another."""
    return call.opaque(0, "it meets a tensor that is computed anew in every call")


@rule(aten.eye.default, aten.eye.m)
def identity_matrix(call: Call) -> Label:
    """Ones on the diagonal: row i and column i are removed together."""
    size, columns = call.shapes[0]
    if columns != size or size < 2:
        return counted(call)
    axis = call.fresh(size)
    for expression in call.size_exprs([size] if call.operator is aten.eye.default else [size, columns]):
        if expression is None:
            call.pin(axis, "niwaki cannot see where this size comes from")
        call.size_is(expression, axis, "the size of a new tensor")
    return call.label((axis, axis))


class _Made(nn.Module):
    """A tensor made to the size of an attribute meets a parameter [4, 6]."""

    def __init__(self, make: Callable[[int], torch.Tensor], alone: bool = False) -> None:
        super().__init__()
        self.n, self.a, self.make, self.alone = 6, nn.Parameter(torch.randn(4, 6)), make, alone

    def forward(self) -> torch.Tensor:
        made = self.make(self.n)
        return made if self.alone else self.a.sigmoid() * made + made


class _Like(nn.Module):
    """A tensor made like a computed one [4, 6] meets a parameter [6]."""

    def __init__(self, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.make = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6)), make

    def forward(self) -> torch.Tensor:
        return self.make(self.a * 2) + self.b


class _Restrided(nn.Module):
    """A parameter [4, 6] in other strides, of a size that is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.a = 6, nn.Parameter(torch.randn(4, 6))

    def forward(self) -> torch.Tensor:
        return self.a.new_empty_strided((4, self.n), (1, 4)).copy_(self.a)


sample(zeros)(lambda: _Made(lambda n: torch.zeros(4, n)))
sample(zeros)(lambda: _Made(lambda n: torch.zeros(n, dtype=torch.float64)))
sample(constant)(lambda: _Made(lambda n: torch.ones(4, n)))
sample(constant)(lambda: _Made(lambda n: torch.full((n,), 2.0)))
sample(constant)(lambda: _Like(lambda x: torch.feature_dropout(x[..., None] + 1, 1e-12, True)[..., 0]))
sample(zeros_like)(lambda: _Like(torch.zeros_like))
sample(zeros_like)(lambda: _Like(lambda x: x.clone().zero_()))
sample(constant_like)(lambda: _Like(torch.ones_like))
sample(constant_like)(lambda: _Like(lambda x: x.clone().fill_(2.0)))
sample(strided_like)(_Restrided)
sample(strided_like)(lambda: _Like(lambda x: x.new_empty_strided(x.shape, (1, 4)).copy_(x + 1)))
sample(counted)(lambda: _Made(lambda n: torch.arange(n) * 0.5))


@mutant(zeros)
@mutant(constant)
def _any_size(call: Call) -> Label:
    call.size_exprs(call["size"])
    return call.label([call.fresh(size) for size in call["size"]])


@mutant(zeros)
@mutant(constant)
@mutant(zeros_like)
@mutant(constant_like)
def _another_size(call: Call) -> Label:
    return call.label([call.fresh(size) for size in call.shapes[0]])


@mutant(constant)
def _ones_are_zeros(call: Call) -> Label:
    return call.label(_sized(call, zero=True).axes, [True] * len(call["size"]))


@mutant(strided_like)
def _strided_by_itself(call: Call) -> Label:
    for name in ("size", "stride"):
        call.size_exprs(call[name])
    return call.label([call.fresh(size) for size in call["size"]])


@mutant(constant_like)
def _ones_like_are_zeros(call: Call) -> Label:
    return zeros_like(call)


class _Diagonal(nn.Module):
    """A parameter [6, 6] plus ones on the diagonal."""

    def __init__(self, alone: bool = False) -> None:
        super().__init__()
        self.n, self.a, self.alone = 6, nn.Parameter(torch.randn(6, 6)), alone

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = self.a.dtype
        made = torch.eye(self.n, self.n, dtype=dtype) if self.alone else torch.eye(self.n, dtype=dtype)
        return (made, made @ self.a) if self.alone else (self.a + made, self.a @ made)


sample(identity_matrix)(_Diagonal)
sample(identity_matrix)(lambda: _Diagonal(alone=True))


@mutant(identity_matrix)
def _rows_leave_alone(call: Call) -> Label:
    return call.label([call.fresh(size) for size in call.shapes[0]])


@mutant(identity_matrix)
def _turned(call: Call) -> Label:
    axis = identity_matrix(call).axes[0]
    return call.label((axis, axis.take(slice(None, None, -1))))


@mutant(identity_matrix)
def _identity_is_zero(call: Call) -> Label:
    return call.label(identity_matrix(call).axes, (True, True))


@mutant(counted)
def _numbers_can_go(call: Call) -> Label:
    axis = call.fresh(call.shapes[0][0])
    call.size_is(call.int_expr(call["end"]), axis, "the end of a range")
    return call.label([axis])
