"""torchvision's own operators in plain PyTorch, for machines where its extension cannot be loaded.

A CPU-only torch cannot load the extension of torchvision's ordinary wheel, and detection does not run without it. The
operators are registered under their own names, so a trace shows `torchvision::nms` and `torchvision::roi_align` as it
would with the extension; only what happens inside is written here.
"""

from __future__ import annotations

from typing import Any

import torch

from niwaki.networks import torchvision_cpu

_ROI_ALIGN = (
    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor"
)
_libraries: list[torch.library.Library] = []


def prepare() -> None:
    """Import torchvision and give it the operators it lacks. Does nothing where the extension is there."""
    torchvision = torchvision_cpu.load()
    from torchvision import extension
    from torchvision.ops import boxes, roi_align

    if extension._has_ops() or _libraries:
        return
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    fragment.define(_ROI_ALIGN)
    implemented = torch.library.Library("torchvision", "IMPL", "CPU")
    implemented.impl("nms", _nms)
    implemented.impl("roi_align", _roi_align)
    differentiable = torch.library.Library("torchvision", "IMPL", "Autograd")
    differentiable.impl("roi_align", _DifferentiableRoiAlign.apply)
    _libraries.extend((fragment, implemented, differentiable))
    roi = __import__("sys").modules["torchvision.ops.roi_align"]
    for module in (extension, boxes, roi):
        module._assert_has_ops = lambda: None
        module._has_ops = lambda: True
    del torchvision, roi_align


def _nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    order = scores.argsort(descending=True, stable=True)
    x1, y1, x2, y2 = boxes[order].unbind(1)
    areas = (x2 - x1) * (y2 - y1)
    alive = torch.ones(len(order), dtype=torch.bool)
    for index in range(len(order)):
        if alive[index]:
            rest = slice(index + 1, None)
            width = (torch.minimum(x2[rest], x2[index]) - torch.maximum(x1[rest], x1[index])).clamp(min=0)
            height = (torch.minimum(y2[rest], y2[index]) - torch.maximum(y1[rest], y1[index])).clamp(min=0)
            overlap = width * height
            alive[rest] &= overlap / (areas[rest] + areas[index] - overlap) <= iou_threshold
    return order[alive]


def _roi_align(
    features: torch.Tensor, rois: torch.Tensor, scale: float, height: int, width: int, ratio: int, aligned: bool
) -> torch.Tensor:
    """Bilinear samples of each region on a regular grid, averaged over bins. Rows and columns are sampled
    independently, so two small matrices per region do it: torchvision's own version in Python gathers every sample of
    every channel, which takes many times as long."""
    boxes = rois[:, 1:] * scale - (0.5 if aligned else 0.0)
    extent = boxes[:, 2:] - boxes[:, :2]
    extent = extent if aligned else extent.clamp(min=1)
    rows = _sampled(boxes[:, 1], extent[:, 1], height, features.shape[2], ratio)
    columns = _sampled(boxes[:, 0], extent[:, 0], width, features.shape[3], ratio)
    return torch.einsum("kph,kchw,kqw->kcpq", rows, features[rois[:, 0].long()], columns)


def _sampled(start: torch.Tensor, extent: torch.Tensor, bins: int, length: int, ratio: int) -> torch.Tensor:
    """How much each of ``length`` positions counts in each bin of each region: [regions, bins, length]."""
    size = (extent / bins)[:, None, None]
    counts = torch.full_like(size, ratio) if ratio > 0 else size.ceil().clamp(min=1)
    sample = torch.arange(int(counts.max()) if len(counts) else 1, dtype=size.dtype)
    at = start[:, None, None] + (torch.arange(bins, dtype=size.dtype)[:, None] + (sample + 0.5) / counts) * size
    weight = ((sample < counts) & (at >= -1) & (at <= length)).to(size.dtype) / counts
    at = at.clamp(0, length - 1)
    low = at.floor()
    high, rest = (low + 1).clamp(max=length - 1), at - low
    found = size.new_zeros(len(start), bins, length)
    found.scatter_add_(2, low.long(), weight * (1 - rest))
    return found.scatter_add_(2, high.long(), weight * rest)


class _DifferentiableRoiAlign(torch.autograd.Function):
    """One operator forward, the gradient of its definition backward."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, rois: torch.Tensor, *options: Any) -> torch.Tensor:
        ctx.save_for_backward(features, rois)
        ctx.options = options
        with torch._C._AutoDispatchBelowAutograd():
            result: torch.Tensor = torch.ops.torchvision.roi_align(features, rois, *options)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        features, rois = ctx.saved_tensors
        with torch.enable_grad():
            leaf = features.detach().requires_grad_()
            out = _roi_align(leaf, rois, *ctx.options)
        (upstream,) = torch.autograd.grad(out, leaf, gradient)
        return upstream, None, *(None for _ in ctx.options)
