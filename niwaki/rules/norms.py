"""Normalisations. BatchNorm works channel by channel; the others average over what they normalise."""

from __future__ import annotations


import torch
from torch import nn

from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten


@rule(
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_no_training.default,
    aten.cudnn_batch_norm.default,
)
def batch_norm(call: Call) -> list[Label]:
    """Every channel by itself. A removed channel ends at its bias, which is removed with it."""
    x: Label = call["input"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        given = call.arguments.get(name)
        if given is not None:
            call.equate(x.axes[1], given.axes[0])
    affine = [call[name] for name in ("weight", "bias")]
    zero = all(given is not None and given.zero[0] for given in affine)
    axes = list(x.axes)
    if not axes[1].free and affine[0] is not None:
        axes[1] = affine[0].axes[0]
    first = call.label(axes, [dim == 1 and zero for dim in range(len(axes))])
    return [first, *(call.opaque(i) for i in range(1, len(call.shapes)))]


@rule(aten.native_layer_norm.default, aten._fused_rms_norm.default)
def layer_norm(call: Call) -> list[Label]:
    """The normalised dimensions are averaged over."""
    x: Label = call["input"]
    count = len(call["normalized_shape"])
    for name in ("weight", "bias"):
        given = call.arguments.get(name)
        if given is not None:
            for ours, theirs in zip(x.axes[-count:], given.axes, strict=True):
                call.equate(ours, theirs)
    for axis, expression in zip(x.axes[-count:], call.sizes(call["normalized_shape"]), strict=True):
        call.pin(axis, "a norm averages over this dimension")
        call.size_is(expression, call.fixed(axis.size, "a norm averages over this dimension"), "normalized_shape")
    return [call.label(x.axes), *(call.opaque(i) for i in range(1, len(call.shapes)))]


@rule(aten.native_group_norm.default)
def group_norm(call: Call) -> list[Label]:
    """Whole groups are exact; inside a group one averages."""
    x, weight, bias, groups = call["input"], call["weight"], call["bias"], call["group"]
    outer, inner = call.split(x.axes[1], (groups, x.axes[1].size // groups))
    call.pin(inner, "a norm averages over the channels of a group")
    call.size_is(call.number(groups), outer, "the number of groups")
    for given in (weight, bias):
        if given is not None:
            call.equate(x.axes[1], given.axes[0])
    zero = weight is not None and weight.zero[0] and (bias is None or bias.zero[0])
    first = call.label(x.axes, [dim == 1 and zero for dim in range(len(x.axes))])
    return [first, *(call.opaque(i) for i in range(1, len(call.shapes)))]


class _Batch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.norm = nn.Parameter(torch.randn(4, 6, 3)), nn.BatchNorm1d(6)
        nn.init.normal_(self.norm.weight), nn.init.normal_(self.norm.bias)
        self.norm.running_mean.normal_(), self.norm.running_var.uniform_(0.5, 2)

    def forward(self) -> torch.Tensor:
        return self.norm(self.x)


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.norm = nn.Parameter(torch.randn(4, 6)), nn.LayerNorm(6)

    def forward(self) -> torch.Tensor:
        return self.norm(self.x)


class _Group(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.norm = nn.Parameter(torch.randn(2, 12, 3)), nn.GroupNorm(4, 12)

    def forward(self) -> torch.Tensor:
        return self.norm(self.x)


sample(batch_norm)(_Batch)
sample(layer_norm)(_Layer)
sample(group_norm)(_Group)


@mutant(batch_norm)
def _forgets_statistics(call: Call) -> list[Label]:
    x: Label = call["input"]
    call.equate(x.axes[1], call["weight"].axes[0])
    call.equate(x.axes[1], call["bias"].axes[0])
    return [call.label(x.axes), *(call.opaque(i) for i in range(1, len(call.shapes)))]


@mutant(layer_norm)
def _normalises_each_by_itself(call: Call) -> list[Label]:
    x: Label = call["input"]
    for ours, name in ((x.axes[-1], "weight"), (x.axes[-1], "bias")):
        call.equate(ours, call[name].axes[0])
    call.size_is(call.sizes(call["normalized_shape"])[0], x.axes[-1], "normalized_shape")
    return [call.label(x.axes), *(call.opaque(i) for i in range(1, len(call.shapes)))]


@mutant(group_norm)
def _group_inside_free(call: Call) -> list[Label]:
    x: Label = call["input"]
    for name in ("weight", "bias"):
        call.equate(x.axes[1], call[name].axes[0])
    call.number(call["group"])
    return [call.label(x.axes), *(call.opaque(i) for i in range(1, len(call.shapes)))]
