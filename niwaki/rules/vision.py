"""Follow axes through torchvision's own operators: regions of feature maps, convolutions with learnt offsets.

They are registered by name, since the extension that defines them may not be loaded. The samples call stand-ins of the
same signatures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import mutant, named, sample

_WINDOW = "regions are cut out of this dimension"
_FOUND = "boxes are chosen by value"


@named("torchvision::nms", "niwaki::nms")
def nms(call: Call) -> Label:
    """The indices of the boxes that are kept."""
    for axis in (*call["dets"].axes, *call["scores"].axes):
        call.pin(axis, _FOUND)
    return call.opaque(0, _FOUND)


@named("torchvision::roi_align", "torchvision::roi_pool", "niwaki::roi_align")
def regions(call: Call) -> list[Label]:
    """Features [N, C, H, W] and boxes [K, 5] give [K, C, h, w]: channel by channel."""
    x, boxes = call["input"], call["rois"]
    for axis in (x.axes[0], *x.axes[2:], boxes.axes[1]):
        call.pin(axis, _WINDOW)
    made = []
    for output, shape in enumerate(call.shapes):
        window = [call.fixed(size, _WINDOW) for size in shape[2:]]
        zero = (False, output == 0 and x.zero[1], False, False)
        made.append(call.label((boxes.axes[0], x.axes[1], *window), zero, output=output))
    return made


@named("torchvision::ps_roi_align", "torchvision::ps_roi_pool", "niwaki::ps_roi_align")
def sensitive_regions(call: Call) -> list[Label]:
    """As `regions`, with separate channels for every position of the window: (channel, row, column)."""
    x, boxes, (_, channels, height, width) = call["input"], call["rois"], call.shapes[0]
    own, places = call.split(x.axes[1], (channels, height * width))
    for axis in (x.axes[0], places, *x.axes[2:], boxes.axes[1]):
        call.pin(axis, _WINDOW)
    window = [call.fixed(size, _WINDOW) for size in (height, width)]
    first = call.label((boxes.axes[0], own, *window), (False, x.zero[1], False, False))
    return [first, *(call.label(first.axes, output=output) for output in range(1, len(call.shapes)))]


@named("torchvision::deform_conv2d", "niwaki::deform_conv2d")
def deformable(call: Call) -> Label:
    """A convolution that reads at the positions in ``offset``. With groups its channels are pinned."""
    x, weight, offset, mask, bias = (call[name] for name in ("input", "weight", "offset", "mask", "bias"))
    for axis in (*x.axes[2:], *weight.axes[2:], *offset.axes[1:], *mask.axes[1:]):
        call.pin(axis, "a convolution slides over this dimension")
    for other in (offset, mask):
        if other.shape[0] == x.shape[0]:  # a mask that is not used has no samples
            call.equate(x.axes[0], other.axes[0])
    call.equate(weight.axes[0], bias.axes[0])
    if call["groups"] == call["offset_groups"] == 1:
        call.contract(x, 1, weight, 1)
    else:
        for axis in (x.axes[1], weight.axes[0], weight.axes[1]):
            call.pin(axis, "the groups of a deformable convolution are not followed")
    spatial = [call.fixed(size, _WINDOW) for size in call.shapes[0][2:]]
    call.macs(spatial[0].size * spatial[1].size, x.axes[0], *weight.axes)
    zero = weight.zero[0] and bias.zero[0]
    return call.label((x.axes[0], weight.axes[0], *spatial), (False, zero, False, False))


# ------------------------------------------------------------------------- stand-ins, as simple as the rules allow


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return (scores * boxes.sum(1)).argsort(descending=True)[:2]


def _roi_align(
    x: Tensor, rois: Tensor, scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Every position holds the entry in the middle of the box, times the size of the box."""
    picked = x[rois[:, 0].long(), :, rois[:, 1].long(), rois[:, 2].long()] * rois[:, 3:4]
    return picked[:, :, None, None].expand(-1, -1, height, width).clone()


def _ps_roi_align(
    x: Tensor, rois: Tensor, scale: float, height: int, width: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    made = _roi_align(x, rois, scale, 1, 1, sampling_ratio, False).view(len(rois), -1, height, width)
    return made, torch.zeros_like(made, dtype=torch.int32)


def _deform_conv2d(x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    """Reads every pixel at its own position."""
    seen = torch.nn.functional.conv2d(x, weight, bias, groups=rest[6])
    if rest[8]:
        seen = seen * mask.sum(1, keepdim=True)
    return seen * offset.sum(1, keepdim=True)


_SCHEMAS: dict[str, tuple[str, Callable[..., Any]]] = {
    "nms": ("(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", _nms),
    "roi_align": (
        "(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, int sampling_ratio, "
        "bool aligned) -> Tensor",
        _roi_align,
    ),
    "ps_roi_align": (
        "(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, int sampling_ratio) "
        "-> (Tensor, Tensor)",
        _ps_roi_align,
    ),
    "deform_conv2d": (
        "(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, int stride_h, int stride_w, int pad_h, "
        "int pad_w, int dilation_h, int dilation_w, int groups, int offset_groups, bool use_mask) -> Tensor",
        _deform_conv2d,
    ),
}
_defined: list[torch.library.Library] = []  # a Library takes its operators with it when it is collected


@cache
def stand_in(name: str) -> OpOverload:
    """An operator of the same signature as torchvision's ``name``, without its extension (and without gradients)."""
    schema, implementation = _SCHEMAS[name]
    library = torch.library.Library("niwaki", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(name + schema)  # type: ignore[no-untyped-call]
    library.impl(name, implementation, "CPU")  # type: ignore[no-untyped-call]
    _defined.append(library)
    operator: OpOverload = getattr(torch.ops.niwaki, name).default
    return operator


class _Regions(nn.Module):
    """Three regions of two samples of eight channels of 4 by 4, with computed boxes."""

    def __init__(self, name: str, bent: bool = False) -> None:
        super().__init__()
        self.x, self.boxes = nn.Parameter(torch.randn(2, 8, 4, 4)), nn.Parameter(torch.rand(3, 5))
        self.c, self.d = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5, 3))
        self.operator, self.bent = stand_in(name), bent
        self.options = (1.0, 2, 2, 0, False) if name == "roi_align" else (1.0, 2, 2, 0)

    def forward(self) -> tuple[Tensor, Tensor]:
        x = self.x.sigmoid() if self.bent else self.x
        made = self.operator(x, self.boxes.sigmoid() * 1.9, *self.options)
        return (made[0] if isinstance(made, tuple) else made), self.c @ self.d


class _Boxes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.scores = nn.Parameter(torch.rand(4, 4)), nn.Parameter(torch.rand(4))
        self.c, self.d = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5, 3))

    def forward(self) -> tuple[Tensor, Tensor]:
        kept = stand_in("nms")(self.boxes.cos(), self.scores.cos(), 0.5)
        return kept * 1.0, self.c @ self.d


class _Deformed(nn.Module):
    """Four channels to six, twice, with an operator between that does not keep zeros."""

    def __init__(self, groups: int = 1, masked: bool = True, bent: str = "") -> None:
        super().__init__()
        self.x, self.offset = nn.Parameter(torch.randn(2, 4, 3, 3)), nn.Parameter(torch.randn(2, 2, 3, 3))
        self.mask, self.w = nn.Parameter(torch.randn(2, 1, 3, 3)), nn.Parameter(torch.randn(6, 4 // groups, 1, 1))
        self.b, self.groups, self.masked, self.bent = nn.Parameter(torch.randn(6)), groups, masked, bent

    def forward(self) -> Tensor:
        x, w, b = (getattr(self, n).sigmoid() if n in self.bent else getattr(self, n) for n in ("x", "w", "b"))
        mask = self.mask.cos() if self.masked else torch.zeros(0, 1, 1, 1, dtype=x.dtype)
        options = (1, 1, 0, 0, 1, 1, self.groups, 1, self.masked)
        made: Tensor = stand_in("deform_conv2d")(x, w, self.offset.cos(), mask, b, *options)
        return made


sample(nms)(_Boxes)
sample(regions)(lambda: _Regions("roi_align"))
sample(regions)(lambda: _Regions("roi_align", bent=True))
sample(sensitive_regions)(lambda: _Regions("ps_roi_align"))
sample(sensitive_regions)(lambda: _Regions("ps_roi_align", bent=True))
sample(deformable)(lambda: _Deformed())
sample(deformable)(lambda: _Deformed(masked=False, bent="x"))
sample(deformable)(lambda: _Deformed(bent="w"))
sample(deformable)(lambda: _Deformed(bent="b"))
sample(deformable)(lambda: _Deformed(bent="xw"))
sample(deformable)(lambda: _Deformed(groups=2))


@mutant(nms)
def _boxes_may_go(call: Call) -> Label:
    return call.opaque(0)


@mutant(regions)
@mutant(sensitive_regions)
def _windows_are_free(call: Call) -> list[Label]:
    x, boxes = call["input"], call["rois"]
    channels = x.axes[1] if call.shapes[0][1] == x.shape[1] else call.split(x.axes[1], (2, 4))[0]
    axes = (boxes.axes[0], channels, *(call.fixed(size) for size in call.shapes[0][2:]))
    return [call.label(axes, output=output) for output in range(len(call.shapes))]


@mutant(regions)
@mutant(sensitive_regions)
def _always_zero(call: Call) -> list[Label]:
    right = (regions if "aligned" in call.arguments else sensitive_regions)(call)
    return [call.label(x.axes, [True] * 4, output=output) for output, x in enumerate(right)]


@mutant(deformable)
def _sums_over_anything(call: Call) -> Label:
    x, weight = call["input"], call["weight"]
    call.equate(x.axes[1], weight.axes[1])
    right = [call.fixed(size) for size in call.shapes[0][2:]]
    for axis in (*x.axes[2:], *call["offset"].axes[1:], *call["mask"].axes[1:]):
        call.pin(axis, "")
    return call.label((x.axes[0], weight.axes[0], *right))


@mutant(deformable)
def _channels_end_at_zero(call: Call) -> Label:
    return call.label(deformable(call).axes, (False, True, False, False))
