"""Follow axes through operators that pass a tensor on, copy it into another one, or give its value to Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.pointwise import broadcast, pointwise
from niwaki.rules.registry import homogeneous, mutant, nonnegative, rule, sample

aten = torch.ops.aten


@homogeneous("self", whole=True)
@rule(
    aten._conj.default,
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
    aten.contiguous.default,
    aten.positive.default,
)
def same(call: Call) -> Label:
    """The same entries."""
    x: Label = call["self"]
    return replace(call.label(x.axes, x.zero, x.weight), uniform=x.uniform)


rule(aten.copy.default)(pointwise)  # a new tensor, of the shape of ``self``


@nonnegative("src")
@rule(aten.copy_.default)
def copy(call: Call) -> Label:
    """``self`` takes the entries of ``src``, broadcast."""
    target, source = call["self"], call["src"]
    broadcast(call, [target, source])
    lead = len(target.axes) - len(source.axes)
    zero = [
        dim >= lead and source.axes[dim - lead].size == axis.size and source.zero[dim - lead]
        for dim, axis in enumerate(target.axes)
    ]
    return call.label(target.axes, zero, source.weight)


@rule(
    aten._assert_async.default,
    aten._assert_async.msg,
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.item.default,
)
def read_out(call: Call) -> None:
    """Python reads a value; the tensor has one entry, so nothing can be removed."""


class Handed(nn.Module):
    """A function between two operators; nothing but the function keeps zeros."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.function = nn.Parameter(torch.randn(4, 6)), function

    def forward(self) -> Tensor:
        return self.function(self.a * 2)


class _CopyIntoPart(nn.Module):
    """Rows from n on are overwritten, and their old values are used as well."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.n, self.function = 4, function
        self.a, self.b = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(3, 5))

    def forward(self) -> Tensor:
        whole = torch.cat([self.a, torch.zeros_like(self.b)])
        whole[self.n :] = self.function(self.b)
        return whole


class _CopyIntoNew(nn.Module):
    """Only the copy ties these two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(4, 5))

    def forward(self) -> Tensor:
        whole = self.a * 2
        whole.copy_(self.b.sigmoid())
        return whole


class _ReadOut(nn.Module):
    """A value decides which branch Python takes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, 6))

    def forward(self) -> torch.Tensor:
        return self.a * 2 if self.a.square().sum().item() >= 0 else self.a


sample(same)(lambda: Handed(torch.Tensor.detach))
sample(same)(lambda: Handed(lambda x: x.sigmoid().detach()))
sample(copy)(lambda: _CopyIntoPart(lambda b: b * 2))
sample(copy)(lambda: _CopyIntoPart(torch.sigmoid))
sample(copy)(_CopyIntoNew)
sample(read_out)(_ReadOut)


@mutant(same)
def _same_reversed(call: Call) -> Label:
    x: Label = call["self"]
    return call.label([axis.take(slice(None, None, -1)) for axis in x.axes])


@mutant(same)
def _same_is_zero(call: Call) -> Label:
    return call.label(call["self"].axes, [True] * len(call["self"].axes))


@mutant(copy)
def _copy_without_tie(call: Call) -> Label:
    return call.label(call["self"].axes)


@mutant(copy)
def _copy_keeps_the_old_zeros(call: Call) -> Label:
    right = copy(call)
    return call.label(right.axes, call["self"].zero)


@mutant(read_out)
def _read_out_as_tensor(call: Call) -> Label:
    return call.label([])
