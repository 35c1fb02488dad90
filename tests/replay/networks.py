"""The reference networks of the replay: from small modules, from those that other tests build, and from libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

import networks
import torch
from networks import Image, Tokens
from torch import Tensor, nn
from zoo import _DECODER, ZOO, _timm, _torchvision, _transformers

from niwaki.networks.torchvision_cpu import load
from replay import modules

_CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


@dataclass(frozen=True)
class Reference:
    """A model with example inputs, options of the analysis, and the libraries that what is found depends on."""

    build: Callable[[], tuple[Any, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    libraries: tuple[str, ...] = ("torch",)

    def missing(self) -> str | None:
        """Why the network cannot be compared here: a library has not the version that is stored."""
        pinned = dict(line.split("==") for line in _CONSTRAINTS.read_text().splitlines() if "==" in line)
        for library in self.libraries:
            there = metadata.version(library).partition("+")[0] if util.find_spec(library) else "none"
            if there != pinned[library]:
                return f"the record is that of {library} {pinned[library]}, and here is {there}"
        return None


def _own(build: Callable[[], nn.Module], inputs: Callable[[], Any], **options: Any) -> Reference:
    return Reference(lambda: (build(), inputs()), options)


def _generated(spec: Image | Tokens, **options: Any) -> Reference:
    return Reference(lambda: networks.build(spec), options)


def _library(library: str, build: Callable[[], nn.Module], inputs: Callable[[], Any], **options: Any) -> Reference:
    return Reference(lambda: (build(), inputs()), options, ("torch", library))


def _rows() -> Tensor:
    return torch.randn(7, 5)


def _tokens() -> Tensor:
    return torch.arange(10).view(2, 5)


def _image(side: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, 3, side, side)


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def _exported(build: Callable[[], nn.Module], inputs: Callable[[], Any]) -> Reference:
    return Reference(lambda: (torch.export.export(build().eval(), (inputs(),)), None))


def _sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=4),
        nn.Flatten(),
        nn.Linear(48, 4),
    )


def _resnet() -> nn.Module:
    resnet = load().models.resnet
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)


_LLAMA = _transformers("LlamaForCausalLM", "LlamaConfig", **_DECODER)
_PACKED = ("packed", "layer", "post")
_ATTENTION = ("attention", "rms", "pre", 4, 2, 3, "separate", "size", "einsum", "inner")

REFERENCES: dict[str, Reference] = {
    "sequential": _own(_sequential, _image(4 + 2)),
    "weight_norm": _own(modules.Temporal, lambda: torch.randn(2, 3, 9)),
    "complex": _own(modules.Complex, _rows),
    "grouped_queries": _own(modules.GroupedQueries, _tokens),
    "grouped_queries_inner": _own(modules.GroupedQueries, _tokens, inner=True),
    "sizes": _own(modules.Sized, _rows),
    "sizes_as_graph": _own(modules.Sized, _rows, as_graph=True),
    "repairs": _own(modules.Repaired, _tokens),
    "inexact": _own(modules.Normed, _rows, allow_inexact=True),
    "ignored": _own(modules.Repaired, _tokens, ignored=["up.b*"]),
    "experts": _own(modules.Experts, _rows),
    "experts_stacked": _own(modules.Stacked, _rows),
    "recurrent": _own(modules.Sequences, _tokens),
    "pinned": _own(modules.Pinned, lambda: torch.randn(2, 6)),
    "exported": _exported(modules.GroupedQueries, _tokens),
    "exported_recurrent": _exported(lambda: nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)), _rows),
    "meta": Reference(lambda: (_on_meta(modules.GroupedQueries), _tokens())),
    "image_residual": _generated(
        Image(8, (("residual", ("conv", 12, 3, True, "batch", "relu"), "add"), ("gate", 6, "chunk")), "view")
    ),
    "image_concat": _generated(
        Image(6, (("concat", ("conv", 8, 1, False, "group", "silu"), "after"), ("squeeze", 2, "conv")), "mean")
    ),
    "image_shuffle": _generated(
        Image(6, (("shuffle", "computed"), ("grouped", 2, True, "batch", "relu"), ("pixels", 4, True)), "channels_last")
    ),
    "image_deformed": _generated(Image(6, (("regions", "deform"), ("standardised", 8, "standard")), "adaptive")),
    "tokens_attention": _generated(Tokens(8, "parameter", (_ATTENTION,), "tied")),
    "tokens_packed": _generated(
        Tokens(8, "token", (("packed", "layer", "post"), ("mixer", "layer", "pre", 3)), "first")
    ),
    "tokens_recurrent": _generated(Tokens(6, "bag", (("recurrent", "layer", "pre", 4, "lstm", 2, True),), "own")),
    "tokens_routed": _generated(Tokens(6, "none", (("routed", "layer", "pre", 6, "written"),), "loss")),
    "torchvision_resnet": _library("torchvision", _resnet, _image(32)),
    "torchvision_mobilenet": _library("torchvision", _torchvision("mobilenet_v2", width_mult=0.25), _image(32)),
    "timm_vit": _library(
        "timm",
        _timm("vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=3, img_size=32, patch_size=8),
        _image(32),
    ),
    "timm_swin": _library(
        "timm",
        _timm(
            "swin_tiny_patch4_window7_224", embed_dim=12, depths=(1, 2), num_heads=(2, 3), img_size=32, window_size=4
        ),
        _image(32),
    ),
    "timm_convnext": _library("timm", _timm("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 12, 16, 20)), _image(32)),
    "llama": _library("transformers", _LLAMA, ZOO["llama"].inputs),
    "llama_uniform": _library("transformers", _LLAMA, ZOO["llama"].inputs, layout="uniform"),
    "mixtral_meta": _library(
        "transformers",
        lambda: _on_meta(_transformers("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, **_DECODER)),
        ZOO["llama"].inputs,
    ),
    **{name: _library("transformers", ZOO[name].build, ZOO[name].inputs) for name in ("bert", "gpt2", "t5")},
}
