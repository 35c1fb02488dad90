"""Operators that hand a tensor on as it is, and those that draw random numbers for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from niwaki.rules.pointwise import broadcast
from niwaki.rules.registry import Call, Label, homogeneous, mutant, nonnegative, rule, sample

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


@nonnegative("input")
@homogeneous("input")
@rule(aten.native_dropout.default)
def dropout(call: Call) -> list[Label]:
    """Output and mask."""
    x: Label = call["input"]
    return [call.label(x.axes, x.zero), call.label(x.axes, output=1)]


_COINS = (aten.bernoulli.default, aten.bernoulli.p, aten.bernoulli_.float)


@nonnegative(of=_COINS)
@rule(
    *_COINS,
    aten.cauchy_.default,
    aten.exponential_.default,
    aten.geometric_.default,
    aten.log_normal_.default,
    aten.normal_.default,
    aten.poisson.default,
    aten.random_.default,
    aten.random_.to,
    aten.uniform_.default,
)
def redrawn(call: Call) -> Label:
    """Random numbers in its place."""
    return call.label(call["self"].axes)


class _Handed(nn.Module):
    """A function between two operators that do not keep zeros apart from what it says itself."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.function = nn.Parameter(torch.randn(4, 6)), function

    def forward(self) -> Tensor:
        return self.function(self.a * 2)


class _CopyIntoPart(nn.Module):
    """Rows from n on are overwritten, and what they were before is used as well."""

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


def _drawn(x: Tensor) -> Tensor:
    return x * torch.empty_like(x).bernoulli_(1.0)


def _drawn_over(x: Tensor) -> Tensor:
    return x.clone().bernoulli_(1.0)


sample(same)(lambda: _Handed(torch.Tensor.detach))
sample(same)(lambda: _Handed(lambda x: x.sigmoid().detach()))
sample(copy)(lambda: _CopyIntoPart(lambda b: b * 2))
sample(copy)(lambda: _CopyIntoPart(torch.sigmoid))
sample(copy)(_CopyIntoNew)
sample(dropout)(lambda: _Handed(lambda x: torch.native_dropout(x, 0.0, True)[0]))
sample(dropout)(lambda: _Handed(lambda x: torch.native_dropout(x.sigmoid(), 0.0, True)[0]))
sample(redrawn)(lambda: _Handed(_drawn))
sample(redrawn)(lambda: _Handed(_drawn_over))


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


@mutant(dropout)
def _dropout_of_something_else(call: Call) -> list[Label]:
    x: Label = call["input"]
    axes = [call.fresh(axis.size) for axis in x.axes]
    return [call.label(axes), call.label(axes, output=1)]


@mutant(dropout)
def _dropout_makes_zeros(call: Call) -> list[Label]:
    x: Label = call["input"]
    return [call.label(x.axes, [True] * len(x.axes)), call.label(x.axes, output=1)]


@mutant(redrawn)
def _drawn_zeros(call: Call) -> Label:
    return call.label(call["self"].axes, [True] * len(call["self"].axes))
