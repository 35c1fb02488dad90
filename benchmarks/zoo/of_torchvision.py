"""All of torchvision: classification, segmentation, detection, video, optical flow.

Quantized models are left out, since integer weights are not cut.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.zoo.entries import Entry, generator, image

# The side of the input where 64 is too small.
_SIDE = {
    "alexnet": 96,
    "googlenet": 96,
    "inception_v3": 299,
    "maxvit_t": 224,
    "densenet": 64,
    "vit_b_16": 48,
    "vit_b_32": 64,
    "vit_l_16": 48,
    "vit_l_32": 64,
    "vit_h_14": 42,
    "ssd300_vgg16": 300,
    "ssdlite320_mobilenet_v3_large": 320,
    "raft_large": 128,
    "raft_small": 128,
}
_CLIP = (4, 64, 64)
_LARGE = ("vit_h_14", "regnet_y_128gf", "vit_l_16", "vit_l_32")


def entries() -> list[Entry]:
    """One entry per model that the installed torchvision registers."""
    from torchvision.models import list_models

    return [
        Entry("torchvision", name, _kind(name), partial(_build, name), name in _LARGE)
        for name in list_models()
        if not name.startswith("quantized_")
    ]


def _kind(name: str) -> str:
    from torchvision.models import get_model_builder

    parts = get_model_builder(name).__module__.split(".")
    return parts[2] if parts[2] in ("detection", "segmentation", "video", "optical_flow") else "classification"


def _build(name: str) -> tuple[nn.Module, Any]:
    from torchvision.models import get_model

    kind, side = _kind(name), _SIDE.get(name, 64)
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": True}
    if name.startswith("vit_"):
        options["image_size"] = side
    if kind in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if kind == "detection":
        options |= _open_thresholds(name)
    if name.startswith("mvit"):
        return _small_mvit(name), image(1, 3, *_CLIP)
    model = get_model(name, **options)
    return model, _inputs(name, kind, side)


def _small_mvit(name: str) -> nn.Module:
    """For a clip of another size: its builders write 16 frames of 224 by 224 down, which takes ten seconds a run."""
    from torchvision.models.video import mvit

    small = {"temporal_size": _CLIP[0], "spatial_size": _CLIP[1:]}
    with patch.object(mvit, "_mvit", lambda build=mvit._mvit, **options: build(**options | small)):
        return mvit.__dict__[name](weights=None)  # type: ignore[no-any-return]


def _open_thresholds(name: str) -> dict[str, Any]:
    """Random weights are sure of nothing: without a threshold of zero there would be no detection to compare. Few
    candidates are enough."""
    small = {} if name.startswith("ssd") else {"min_size": 128, "max_size": 128}
    if "rcnn" not in name:
        return {"score_thresh": 0.0, "detections_per_img": 5, "topk_candidates": 20} | small
    few = {f"rpn_{when}_nms_top_n_{mode}": 16 for when in ("pre", "post") for mode in ("train", "test")}
    return {"box_score_thresh": 0.0, "box_detections_per_img": 5} | small | few


def _inputs(name: str, kind: str, side: int) -> Any:
    if kind == "video":
        frames, side = (14, 224) if name == "s3d" else (4, 64)
        return image(1, 3, frames, side, side)
    if kind == "optical_flow":
        return (image(1, 3, side, side), image(1, 3, side, side) * 0.5)
    if kind == "detection":
        return _detection(name, side if name.startswith("ssd") else 128)
    return image(2 if side <= 100 or name == "inception_v3" else 1, 3, side, side)


def _detection(name: str, side: int) -> Any:
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 70.0, 60.0], [30.0, 40.0, 100.0, 110.0]]),
        "labels": torch.tensor([1, 1 if "keypoint" in name else 2]),
    }
    if name.startswith("maskrcnn"):
        target["masks"] = (torch.rand(2, side, side, generator=generator()) > 0.5).to(torch.uint8)
    if name.startswith("keypointrcnn"):
        target["keypoints"] = torch.cat(
            [torch.rand(2, 17, 2, generator=generator()) * 40 + 30, torch.ones(2, 17, 1)], 2
        )
    return ([image(3, side, side).sigmoid()], [target])
