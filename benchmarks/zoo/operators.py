"""torchvision's own operators in plain PyTorch, for machines where its extension cannot be loaded.

A CPU-only torch cannot load the extension of torchvision's ordinary wheel, and detection does not run without it. The
operators are registered under their own names, so a trace shows `torchvision::nms` and `torchvision::roi_align` as it
would with the extension; only what happens inside is written here.
"""

from __future__ import annotations

from typing import Any

import torch

from niwaki.train import torchvision_cpu

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
    """Bilinear samples of each region on a regular grid, averaged over bins; torchvision's own Python version."""
    module = __import__("sys").modules["torchvision.ops.roi_align"]
    plain: Any = module._roi_align
    while hasattr(plain, "__wrapped__"):  # without torch.compile
        plain = plain.__wrapped__
    result: torch.Tensor = plain(features, rois, scale, height, width, ratio, aligned)
    return result


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
