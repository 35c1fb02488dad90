"""Convolutions: grouped, depthwise and transposed are one formula, since axes are products."""

from __future__ import annotations

import math

import torch
from torch import nn

from niwaki.rules.axis import merge
from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten
_WINDOW = "a convolution slides over this dimension"


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
        call.size_is(call.number(groups), own[0], "the number of groups")
        if call["transposed"]:
            call.equate(given[1], own[1])
            call.reads(weight, 0, x.zero[1])
            out, zero = merge((own[0], far)), weight.zero[1]
        else:
            call.equate(given[1], far)
            call.reads(weight, 1, x.zero[1])
            out, zero = near, weight.zero[0]
    if bias is not None:
        call.equate(out, bias.axes[0])
    spatial = x.shape[2:] if call["transposed"] else call.shapes[0][2:]
    call.macs(math.prod(spatial), x.axes[0], *weight.axes)
    zeros = (False, zero and (bias is None or bias.zero[0]), *(False for _ in call.shapes[0][2:]))
    return call.label((x.axes[0], out, *(call.fixed(size, _WINDOW) for size in call.shapes[0][2:])), zeros)


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(2, 4, 5, 5))
        self.first, self.second = nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 3, 2, bias=False)

    def forward(self) -> torch.Tensor:
        return self.second(torch.sigmoid(self.first(self.x)))


class _Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(2, 8, 6))
        self.first, self.second = nn.Conv1d(8, 12, 3, groups=4), nn.Conv1d(12, 12, 1, groups=12)

    def forward(self) -> torch.Tensor:
        return self.second(self.first(self.x))


class _GroupedTransposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(2, 6, 4))
        self.first = nn.ConvTranspose1d(6, 9, 2, groups=3)

    def forward(self) -> torch.Tensor:
        return self.first(self.x)


for _sample in (_Plain, _Grouped, _GroupedTransposed):
    sample(convolution)(_sample)


@mutant(convolution)
def _ignores_groups(call: Call) -> Label:
    x, weight = call["input"], call["weight"]
    made = 1 if call["transposed"] else 0
    axis = weight.axes[made]
    out = axis if axis.size == call.shapes[0][1] else call.fresh(call.shapes[0][1])
    return call.label((x.axes[0], out, *(call.fixed(size) for size in call.shapes[0][2:])))


@mutant(convolution)
def _ignores_bias(call: Call) -> Label:
    right = convolution(call)
    if call["bias"] is None:
        return right
    return call.label((right.axes[0], call.fresh(right.axes[1].size), *right.axes[2:]), right.zero)
