"""New tensors: of given sizes, or like another one."""

from __future__ import annotations

import torch
from torch import nn

from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten


def _sized(call: Call, zero: bool) -> Label:
    """A constant tensor: any of its positions may go, if the size it was given can follow."""
    given = call["size"]
    axes = []
    for expression, size in zip(call.sizes(given), given, strict=True):
        axis = call.fixed(size) if size < 2 else call.fresh(size)
        if expression is None and axis.free:
            call.pin(axis, "niwaki cannot see where this size comes from")
        call.size_is(expression, axis, "the size of a new tensor")
        axes.append(axis)
    return call.label(axes, [zero] * len(axes))


@rule(aten.zeros.default, aten.new_zeros.default)
def zeros(call: Call) -> Label:
    """Zeros of a given size."""
    return _sized(call, zero=True)


@rule(
    aten.ones.default,
    aten.empty.memory_format,
    aten.full.default,
    aten.rand.default,
    aten.randn.default,
    aten.new_ones.default,
    aten.new_empty.default,
    aten.new_full.default,
)
def constant(call: Call) -> Label:
    """Ones, or anything, of a given size."""
    return _sized(call, zero=False)


@rule(aten.zeros_like.default, aten.zero_.default)
def zeros_like(call: Call) -> Label:
    """Zeros in the shape of another tensor."""
    axes = call["self"].axes
    return call.label(axes, [True] * len(axes))


@rule(
    aten.ones_like.default,
    aten.empty_like.default,
    aten.full_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.fill_.Scalar,
    aten.fill_.Tensor,
)
def constant_like(call: Call) -> Label:
    """Anything in the shape of another tensor."""
    return call.label(call["self"].axes)


@rule(
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.linspace.default,
    aten.eye.default,
    aten.eye.m,
    aten.scalar_tensor.default,
    aten.randint.default,
    aten.randint.low,
    aten.randperm.default,
    aten.tril_indices.default,
    aten.triu_indices.default,
)
def counted(call: Call) -> Label:
    """Entries that differ from position to position."""
    return call.opaque(0, "it meets a tensor that is made anew in every call")


@rule(aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default)
def read_out(call: Call) -> None:
    """A value goes to Python; it has one entry, so there is nothing to remove."""


class _Made(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Parameter(torch.randn(4, 5)), 5

    def forward(self) -> torch.Tensor:
        base = torch.zeros(4, self.n)
        base[:] = self.a
        return base + torch.ones(4, self.n) + self.a.new_full((self.n,), 2.0)


class _Like(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5))

    def forward(self) -> torch.Tensor:
        made = torch.zeros_like(self.a) + self.b
        return made * torch.full_like(self.a, 2.0)


class _Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, 5))

    def forward(self) -> torch.Tensor:
        return self.a * torch.arange(5.0) if self.a.abs().sum().item() > 0 else self.a


sample(zeros)(_Made)
sample(constant)(_Made)
sample(zeros_like)(_Like)
sample(constant_like)(_Like)
sample(counted)(_Counted)
sample(read_out)(_Counted)


@mutant(zeros)
@mutant(constant)
def _any_size(call: Call) -> Label:
    call.sizes(call["size"])
    return call.label([call.fresh(size) for size in call["size"]])


@mutant(zeros_like)
@mutant(constant_like)
@mutant(counted)
def _another_shape(call: Call) -> Label:
    return call.label([call.fresh(size) for size in call.shapes[0]], [True] * len(call.shapes[0]))


@mutant(read_out)
def _read_out_as_tensor(call: Call) -> Label:
    return call.label([])
