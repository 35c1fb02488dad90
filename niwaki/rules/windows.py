"""Pooling and resizing: channel by channel, over fixed spatial dimensions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch._ops import OpOverload

from niwaki.rules.registry import Call, Label, mutant, rule, sample

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
    aten.reflection_pad1d.default: 1,
    aten.reflection_pad2d.default: 2,
    aten.replication_pad1d.default: 1,
    aten.replication_pad2d.default: 2,
}


@rule(*_SPATIAL)
def window(call: Call) -> list[Label]:
    """The last dimensions are fixed, the others go on; zeros give zeros."""
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


class _Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 3, 8, 8)), nn.Parameter(torch.randn(3, 1, 1))

    def forward(self) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.a, 2) * self.b
        x = nn.functional.interpolate(nn.functional.avg_pool2d(x, 2), scale_factor=2)
        return nn.functional.adaptive_avg_pool2d(x, 2)


sample(window)(_Pools)


@mutant(window)
def _windows_are_free(call: Call) -> list[Label]:
    return [call.label([call.fresh(size) for size in shape], output=i) for i, shape in enumerate(call.shapes)]
