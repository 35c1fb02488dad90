"""Follow axes through norms: BatchNorm works channel by channel, the others average over the normalised dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from niwaki.rules.axis import Axis
from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import mutant, rule, sample
from niwaki.rules.zeros import product

aten = torch.ops.aten


@product("weight", plus="bias")
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
    if call.trains or call.arguments.get("training", False):
        for axis in (x.axes[0], *x.axes[2:]):
            call.inexact(axis, "a norm averages over this dimension")
    affine = [call[name] for name in ("weight", "bias")]
    zero = all(given is not None and given.zero[0] for given in affine)
    axes = list(x.axes)
    if not axes[1].free and affine[0] is not None:
        axes[1] = affine[0].axes[0]
    first = call.label(axes, [dim == 1 and zero for dim in range(len(axes))])
    return [first, *_statistics(call, (axes[1],))]


@product("weight", plus="bias")
@rule(aten.native_layer_norm.default)
def layer_norm(call: Call) -> list[Label]:
    """The normalised dimensions are averaged over."""
    x: Label = call["input"]
    count = len(call["normalized_shape"])
    weight, bias = call["weight"], call["bias"]
    for given in (weight, bias):
        if given is not None:
            for ours, theirs in zip(x.axes[-count:], given.axes, strict=True):
                call.equate(ours, theirs)
    for axis, expression in zip(x.axes[-count:], call.size_exprs(call["normalized_shape"]), strict=True):
        call.inexact(axis, "a norm averages over this dimension")
        call.size_is(expression, axis, "normalized_shape")
    zero = [False] * len(x.axes)
    for dim in range(-count, 0):
        zero[dim] = weight is not None and weight.zero[dim] and (bias is None or bias.zero[dim])
    return [call.label(x.axes, zero), *_statistics(call, (*x.axes[:-count], *(call.fixed(1) for _ in range(count))))]


@product("weight", plus="bias")
@rule(aten.native_group_norm.default)
def group_norm(call: Call) -> list[Label]:
    """Whole groups are exact; inside a group one averages."""
    x, weight, bias, groups = call["input"], call["weight"], call["bias"], call["group"]
    outer, inner = call.split(x.axes[1], (groups, x.axes[1].size // groups))
    call.derived_by_torch("N", "C", "HxW")
    for axis in (inner, *x.axes[2:]):
        call.inexact(axis, "a norm averages over this dimension")
    call.size_is(call.int_expr(groups), outer, "the number of groups")
    for given in (weight, bias):
        if given is not None:
            call.equate(x.axes[1], given.axes[0])
    zero = weight is not None and weight.zero[0] and (bias is None or bias.zero[0])
    first = call.label(x.axes, [dim == 1 and zero for dim in range(len(x.axes))])
    return [first, *_statistics(call, (x.axes[0], outer))]


def _statistics(call: Call, axes: Sequence[Axis]) -> list[Label]:
    """The labels of what a norm returns beside its result: means and the like, one per entry of ``axes``."""
    given = [tuple(axis.size for axis in axes) == shape for shape in call.shapes]
    return [call.label(axes, output=i) if given[i] else call.opaque(i) for i in range(1, len(call.shapes))]


class _Batch(nn.Module):
    """With running statistics, or with those of the batch; the next operator shows whether removed channels are
    zero."""

    def __init__(self, training: bool, affine: bool = True) -> None:
        super().__init__()
        self.x, self.norm = nn.Parameter(torch.randn(4, 6, 3)), nn.BatchNorm1d(6, affine=affine)
        self.by_batch = training
        if affine:
            nn.init.normal_(self.norm.weight), nn.init.normal_(self.norm.bias)
        self.norm.running_mean, self.norm.running_var = torch.randn(6), torch.rand(6) + 0.5

    def forward(self) -> Tensor:
        norm = self.norm
        return nn.functional.batch_norm(
            self.x.sigmoid(), norm.running_mean, norm.running_var, norm.weight, norm.bias, self.by_batch
        )


class _Layer(nn.Module):
    """Over the last dimension; the others meet a bias at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.norm = nn.Parameter(torch.randn(4, 6)), nn.LayerNorm(6)
        nn.init.normal_(self.norm.weight), nn.init.normal_(self.norm.bias)

    def forward(self) -> Tensor:
        result: Tensor = self.norm(self.x)
        return result


class _Group(nn.Module):
    """Four groups of three channels."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.x, self.norm = nn.Parameter(torch.randn(5, 12, 3)), nn.GroupNorm(4, 12, affine=affine)
        for parameter in self.norm.parameters():
            nn.init.normal_(parameter)

    def forward(self) -> Tensor:
        result: Tensor = self.norm(self.x.sigmoid() * torch.linspace(1, 2, 3))
        return result


sample(batch_norm)(lambda: _Batch(training=False))
sample(batch_norm)(lambda: _Batch(training=True))
sample(batch_norm)(lambda: _Batch(training=False, affine=False))
sample(layer_norm)(_Layer)
sample(group_norm)(lambda: _Group())
sample(group_norm)(lambda: _Group(affine=False))


def _channel_by_channel(call: Call, *names: str, zero: bool | None = None) -> list[Label]:
    """A norm over no other dimension than that of the channels, tied to some of its arguments."""
    x: Label = call["input"]
    for name in names:
        if call.arguments.get(name) is not None:
            call.equate(x.axes[1], call[name].axes[0])
    flags = [dim == 1 and bool(zero) for dim in range(len(x.axes))]
    return [call.label(x.axes, flags), *(call.opaque(i) for i in range(1, len(call.shapes)))]


_STATISTICS = ("running_mean", "running_var")


@mutant(batch_norm)
def _forgets_statistics(call: Call) -> list[Label]:
    return _channel_by_channel(call, "weight", "bias")


@mutant(batch_norm)
def _forgets_the_bias(call: Call) -> list[Label]:
    return _channel_by_channel(call, "weight", *_STATISTICS)


@mutant(batch_norm)
def _averages_over_free_samples(call: Call) -> list[Label]:
    return _channel_by_channel(call, "weight", "bias", *_STATISTICS)


@mutant(batch_norm)
def _statistics_turn_zero_too(call: Call) -> list[Label]:
    right = batch_norm(call)
    return [call.label(right[0].axes, (False, True, False)), *right[1:]]


@mutant(layer_norm)
def _normalises_each_by_itself(call: Call) -> list[Label]:
    x: Label = call["input"]
    for name in ("weight", "bias"):
        if call.arguments.get(name) is not None:
            call.equate(x.axes[-1], call[name].axes[0])
    call.size_is(call.size_exprs(call["normalized_shape"])[0], x.axes[-1], "normalized_shape")
    return [call.label(x.axes), *(call.opaque(i) for i in range(1, len(call.shapes)))]


@mutant(layer_norm)
def _norm_of_zeros_is_zero(call: Call) -> list[Label]:
    right = layer_norm(call)
    return [call.label(right[0].axes, (True, False)), *right[1:]]


@mutant(group_norm)
def _group_inside_free(call: Call) -> list[Label]:
    x: Label = call["input"]
    outer, inner = call.split(x.axes[1], (call["group"], x.axes[1].size // call["group"]))
    call.size_is(call.int_expr(call["group"]), outer, "the number of groups")
    return _channel_by_channel(call, "weight", "bias")


@mutant(group_norm)
def _groups_are_interleaved(call: Call) -> list[Label]:
    x: Label = call["input"]
    inner, outer = call.split(x.axes[1], (x.axes[1].size // call["group"], call["group"]))
    for axis in (inner, x.axes[2]):
        call.pin(axis, "")
    call.size_is(call.int_expr(call["group"]), outer, "the number of groups")
    return _channel_by_channel(call, "weight", "bias")


@mutant(group_norm)
def _groups_turn_zero(call: Call) -> list[Label]:
    right = group_norm(call)
    return [call.label(right[0].axes, (False, True, False)), *right[1:]]
