"""Operators that hand a tensor on as it is, and those that draw random numbers for it."""

from __future__ import annotations

import torch
from torch import nn

from niwaki.rules.pointwise import broadcast
from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten


@rule(
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
    return call.label(x.axes, x.zero, x.weight)


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


@rule(aten.native_dropout.default)
def dropout(call: Call) -> list[Label]:
    """Output and mask."""
    x: Label = call["input"]
    return [call.label(x.axes, x.zero), call.label(x.axes, output=1)]


@rule(aten.bernoulli_.float, aten.uniform_.default, aten.normal_.default, aten.exponential_.default)
def redrawn(call: Call) -> Label:
    """Random numbers in place."""
    return call.label(call["self"].axes)


class _Alias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(3, 5))

    def forward(self) -> torch.Tensor:
        return self.a.detach() * 2


class _CopyIntoPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(3, 5)), 4

    def forward(self) -> torch.Tensor:
        whole = torch.cat([self.a, self.b])
        whole[self.n :] = self.b + 1
        return whole


class _Dropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(3, 5))

    def forward(self) -> torch.Tensor:
        return torch.native_dropout(self.a, 0.0, True)[0]


class _Redrawn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(3, 5))

    def forward(self) -> torch.Tensor:
        return self.a * torch.empty_like(self.a).bernoulli_(1.0)


sample(same)(_Alias)
sample(copy)(_CopyIntoPart)
sample(dropout)(_Dropout)
sample(redrawn)(_Redrawn)


@mutant(same)
def _same_reversed(call: Call) -> Label:
    x: Label = call["self"]
    return call.label([axis.take(slice(None, None, -1)) for axis in x.axes], x.zero)


@mutant(copy)
def _copy_without_tie(call: Call) -> Label:
    return call.label(call["self"].axes)


@mutant(dropout)
def _dropout_of_something_else(call: Call) -> list[Label]:
    x: Label = call["input"]
    axes = [call.fresh(axis.size) for axis in x.axes]
    return [call.label(axes), call.label(axes, output=1)]


@mutant(redrawn)
def _random_zeros(call: Call) -> Label:
    return call.label([axis.take(slice(None, None, -1)) for axis in call["self"].axes])
