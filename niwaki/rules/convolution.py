"""Follow axes through convolutions: grouped, depthwise and transposed are one formula, since axes are products."""

from __future__ import annotations

import math

import torch
from torch import nn

from niwaki.rules.axis import Axis, merge
from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import homogeneous, mutant, nonnegative, rule, sample
from niwaki.rules.zeros import product

aten = torch.ops.aten
_WINDOW = "a convolution slides over this dimension"


@nonnegative("input", "weight", "bias")
@homogeneous("input", "weight", plus="bias")
@product("input", "weight", plus="bias")
@rule(aten.convolution.default)
def convolution(call: Call) -> Label:
    """Channels are (group, channel within the group) on both sides; the weight's is [out, in / groups, *kernel], or
    [in, out / groups, *kernel] when transposed."""
    x, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"]
    for axis in (*x.axes[2:], *weight.axes[2:]):
        call.pin(axis, _WINDOW)
    near, far = weight.axes[0], weight.axes[1]
    if groups == 1:
        read, made = (0, 1) if call["transposed"] else (1, 0)
        call.contract(x, 1, weight, read)
        out, zero = weight.axes[made], weight.zero[made]
    else:
        given = call.split(x.axes[1], (groups, x.axes[1].size // groups))
        own = call.split(near, (groups, near.size // groups))
        call.equate(given[0], own[0])
        call.size_is(call.int_expr(groups), own[0], "the number of groups")
        if not (x.zero[1] or weight.zero[0 if call["transposed"] else 1]):
            call.inexact(given[1], "it is summed over, and its removed entries are not zero")
        if call["transposed"]:
            call.equate(given[1], own[1])
            call.consumes(weight, 0, x.zero[1])
            out, zero = merge((own[0], far)), weight.zero[1]
        else:
            call.equate(given[1], far)
            call.consumes(weight, 1, x.zero[1])
            out, zero = near, weight.zero[0]
    if bias is not None:
        call.equate(out, bias.axes[0])
    spatial = x.shape[2:] if call["transposed"] else call.shapes[0][2:]
    call.macs(math.prod(spatial), x.axes[0], *weight.axes)
    zeros = (False, zero and (bias is None or bias.zero[0]), *(False for _ in call.shapes[0][2:]))
    return call.label((x.axes[0], out, *(call.fixed(size, _WINDOW) for size in call.shapes[0][2:])), zeros)


class _Plain(nn.Module):
    """A convolution and a transposed one, with an operator between that does not keep zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(2, 4, 5, 5))
        self.first, self.second = nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 3, 2)

    def forward(self) -> torch.Tensor:
        result: torch.Tensor = self.second(torch.sigmoid(self.first(self.x)))
        return result


class _Grouped(nn.Module):
    """Four groups, then depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(2, 8, 6))
        self.first, self.second = nn.Conv1d(8, 12, 3, groups=4), nn.Conv1d(12, 12, 1, groups=12)

    def forward(self) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(self.x))
        return result


class _Multiplied(nn.Module):
    """Depthwise with two outputs per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.first = nn.Parameter(torch.randn(2, 5, 6)), nn.Conv1d(5, 10, 3, groups=5)

    def forward(self) -> torch.Tensor:
        result: torch.Tensor = self.first(self.x)
        return result


class _GroupedTransposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(2, 6, 4))
        self.first = nn.ConvTranspose1d(6, 9, 2, groups=3)

    def forward(self) -> torch.Tensor:
        result: torch.Tensor = self.first(self.x)
        return result


class _NothingIsZero(nn.Module):
    """Neither the input nor the computed weight is zero where channels within a group are removed."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.x, self.groups = nn.Parameter(torch.randn(2, 6, 5)), 2
        self.weight = nn.Parameter(torch.randn(6, 4, 3) if transposed else torch.randn(4, 3, 3))
        self.convolve = nn.functional.conv_transpose1d if transposed else nn.functional.conv1d

    def forward(self) -> torch.Tensor:
        result: torch.Tensor = self.convolve(self.x.sigmoid(), self.weight.sigmoid(), groups=self.groups)
        return result


for _sample in (_Plain, _Grouped, _Multiplied, _GroupedTransposed):
    sample(convolution)(_sample)
sample(convolution)(lambda: _NothingIsZero(transposed=False))
sample(convolution)(lambda: _NothingIsZero(transposed=True))


@mutant(convolution)
def _ignores_groups(call: Call) -> Label:
    x, weight = call["input"], call["weight"]
    made = 1 if call["transposed"] else 0
    axis = weight.axes[made]
    out = axis if axis.size == call.shapes[0][1] else call.fresh(call.shapes[0][1])
    return call.label((x.axes[0], out, *(call.fixed(size) for size in call.shapes[0][2:])))


@mutant(convolution)
def _output_goes_its_own_way(call: Call) -> Label:
    right = convolution(call)
    return call.label((right.axes[0], call.fresh(right.axes[1].size), *right.axes[2:]), right.zero)


@mutant(convolution)
def _inner_before_outer(call: Call) -> Label:
    right, groups = convolution(call), call["groups"]
    turned = Axis(
        right.axes[1]
        .ids.reshape(groups, -1, right.axes[1].ids.shape[1])
        .swapaxes(0, 1)
        .reshape(right.axes[1].ids.shape)
    )
    return call.label((right.axes[0], turned, *right.axes[2:]), right.zero)


@mutant(convolution)
def _reads_and_makes_exchanged(call: Call) -> Label:
    right, made = convolution(call), 0 if call["transposed"] else 1
    axis = call["weight"].axes[made]
    out = axis if axis.size == call.shapes[0][1] else right.axes[1].take(slice(None, None, -1))
    return call.label((right.axes[0], out, *right.axes[2:]), right.zero)


@mutant(convolution)
def _samples_without_channels_are_zero(call: Call) -> Label:
    right = convolution(call)
    return call.label(right.axes, (True, *right.zero[1:]))
