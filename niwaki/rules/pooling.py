"""Follow axes through pooling, resizing and padding of images: channel by channel, spatial dimensions are fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import mutant, nonnegative, rule, sample

aten = torch.ops.aten
_WHY = "a window slides over this dimension"

_SPATIAL: Mapping[OpOverload, int] = {
    aten.max_pool2d_with_indices.default: 2,
    aten.max_pool3d_with_indices.default: 3,
    aten.adaptive_max_pool2d.default: 2,
    aten.avg_pool2d.default: 2,
    aten.avg_pool3d.default: 3,
    aten._adaptive_avg_pool2d.default: 2,
    aten._adaptive_avg_pool3d.default: 3,
    aten.upsample_nearest1d.default: 1,
    aten.upsample_nearest2d.default: 2,
    aten.upsample_nearest3d.default: 3,
    aten._upsample_nearest_exact2d.default: 2,
    aten.upsample_linear1d.default: 1,
    aten.upsample_bilinear2d.default: 2,
    aten.upsample_bicubic2d.default: 2,
    aten._upsample_bilinear2d_aa.default: 2,
    aten._upsample_bicubic2d_aa.default: 2,
    aten._upsample_nearest_exact1d.default: 1,
    aten._upsample_nearest_exact3d.default: 3,
    aten.adaptive_max_pool3d.default: 3,
    aten.reflection_pad3d.default: 3,
    aten.replication_pad3d.default: 3,
    aten.upsample_trilinear3d.default: 3,
    aten.reflection_pad1d.default: 1,
    aten.reflection_pad2d.default: 2,
    aten.replication_pad1d.default: 1,
    aten.replication_pad2d.default: 2,
}


_BICUBIC = {aten.upsample_bicubic2d.default, aten._upsample_bicubic2d_aa.default}  # with weights below zero
_DIVIDING = {aten.avg_pool2d.default, aten.avg_pool3d.default}  # given as any number


@nonnegative("self", "divisor_override", of=_DIVIDING)
@nonnegative("self", of=set(_SPATIAL) - _BICUBIC - _DIVIDING)
@rule(*_SPATIAL)
def window(call: Call) -> list[Label]:
    """The last dimensions are fixed, the others are kept; zeros give zeros."""
    x: Label = call["self"]
    channels = len(x.axes) - _SPATIAL[call.operator]
    for axis in x.axes[channels:]:
        call.pin(axis, _WHY)
    labels = []
    for output, shape in enumerate(call.shapes):
        axes = (*x.axes[:channels], *(call.fixed(size, _WHY) for size in shape[channels:]))
        zero = [output == 0 and dim < channels and x.zero[dim] for dim in range(len(axes))]
        labels.append(call.label(axes, zero, output=output))
    return labels


@rule(aten.max_unpool2d.default, aten.max_unpool3d.default)
def unpool(call: Call) -> Label:
    """Entries return to the positions where they were the largest, channel by channel; all other positions are zero."""
    x, indices = call["self"], call["indices"]
    channels = len(x.axes) - len(call["output_size"])
    for axis in x.axes[channels:]:
        call.pin(axis, _WHY)
    for ours, theirs in zip(x.axes, indices.axes, strict=True):
        call.equate(ours, theirs)
    image = [call.fixed(size, _WHY) for size in call.shapes[0][channels:]]
    return call.label((*x.axes[:channels], *image), (*x.zero[:channels], *(False for _ in image)))


class _Unpooled(nn.Module):
    """A parameter [2, 3, 4, 4], or its sigmoid, is written to positions that are known before."""

    def __init__(self, bent: bool = False) -> None:
        super().__init__()
        self.a, self.bent = nn.Parameter(torch.randn(2, 3, 4, 4)), bent
        self.index_of = nn.Buffer(nn.functional.max_pool2d(torch.randn(2, 3, 8, 8), 2, return_indices=True)[1])

    def forward(self) -> Tensor:
        x = self.a.sigmoid() if self.bent else self.a
        return nn.functional.max_unpool2d(x, self.index_of, [2, 2], output_size=(8, 8))


class _Window(nn.Module):
    """A function of a parameter [2, 3, 8, 8] whose channels are scaled, or bent away from zero."""

    def __init__(self, function: Callable[[Tensor], Tensor], bent: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 3, 8, 8)), nn.Parameter(torch.randn(3, 1, 1))
        self.function, self.bent = function, bent

    def forward(self) -> Tensor:
        x = self.a * self.b
        return self.function(x.sigmoid() if self.bent else x)


sample(window)(lambda: _Window(lambda x: nn.functional.max_pool2d(x, 3, padding=1)))
sample(window)(lambda: _Window(lambda x: nn.functional.avg_pool2d(x, 2)))
sample(window)(lambda: _Window(lambda x: nn.functional.adaptive_avg_pool2d(x, 3), bent=True))
sample(window)(lambda: _Window(lambda x: nn.functional.interpolate(x, scale_factor=2)))
sample(window)(lambda: _Window(lambda x: nn.functional.interpolate(x, size=(5, 5), mode="bilinear"), bent=True))
sample(window)(lambda: _Window(lambda x: nn.functional.pad(x, (1, 1, 2, 2), mode="reflect")))


sample(unpool)(_Unpooled)
sample(unpool)(lambda: _Unpooled(bent=True))


@mutant(unpool)
def _places_are_anybodys(call: Call) -> Label:
    x: Label = call["self"]
    return call.label((*x.axes[:2], *(call.fixed(size) for size in call.shapes[0][2:])))


@mutant(unpool)
def _unpooled_are_zero(call: Call) -> Label:
    return call.label(unpool(call).axes, [True] * 4)


@mutant(window)
def _windows_are_free(call: Call) -> list[Label]:
    axes = call["self"].axes[:2]
    return [call.label((*axes, *map(call.fresh, shape[2:])), output=i) for i, shape in enumerate(call.shapes)]


@mutant(window)
def _channels_reversed(call: Call) -> list[Label]:
    right = window(call)
    axes = [(x.axes[0], x.axes[1].take(slice(None, None, -1)), *x.axes[2:]) for x in right]
    return [call.label(own, output=i) for i, own in enumerate(axes)]


@mutant(window)
def _windows_are_zero(call: Call) -> list[Label]:
    return [call.label(x.axes, [True] * 4, output=i) for i, x in enumerate(window(call))]
