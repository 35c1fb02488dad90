"""Small networks of diffusers, vit-pytorch, x-transformers, MONAI and segmentation-models-pytorch.

Nobody looked at these when the rules were written. They are not part of the default run, as the libraries come with a
good deal of others: ``pip install --no-deps diffusers vit-pytorch x-transformers monai segmentation-models-pytorch``
and what their imports then ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch

from benchmarks.zoo.entries import Entry, generator, image

Inputs = Callable[[], Any]


def entries() -> list[Entry]:
    """One entry per network."""
    return [*_diffusers(), *_vit_pytorch(), *_x_transformers(), *_monai(), *_segmentation()]


def _entry(library: str, name: str, path: str, inputs: Inputs, *args: Any, **options: Any) -> Entry:
    return Entry("libraries", f"{library}: {name}", library, partial(_build, path, inputs, args, options))


def _build(path: str, inputs: Inputs, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[torch.nn.Module, Any]:
    module, _, name = path.partition(":")
    made = {key: value() if callable(value) else value for key, value in options.items()}
    return getattr(import_module(module), name)(*args, **made), inputs()


def _images(count: int = 2, channels: int = 3, *size: int) -> Inputs:
    return lambda: image(count, channels, *(size or (32, 32)))


def _tokens(count: int = 2, length: int = 12) -> Inputs:
    return lambda: torch.randint(0, 32, (count, length), generator=generator())


def _step() -> torch.Tensor:
    return torch.tensor([3])


def _diffusers() -> list[Entry]:
    def of(name: str, inputs: Inputs, **options: Any) -> Entry:
        return _entry("diffusers", name, f"diffusers:{name}", inputs, **options)

    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    coder: dict[str, Any] = {"down_block_types": down, "up_block_types": up, "block_out_channels": (32, 64)}
    latents = {"in_channels": 4, "num_attention_heads": 4, "attention_head_dim": 8}
    text: dict[str, Any] = {"layers_per_block": 1, "cross_attention_dim": 32, "attention_head_dim": 8}
    return [
        of(
            "UNet2DModel",
            lambda: {"sample": image(1, 3, 16, 16), "timestep": _step()},
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
        ),
        of(
            "UNet2DConditionModel",
            lambda: {"sample": image(1, 4, 16, 16), "timestep": _step(), "encoder_hidden_states": image(1, 7, 32)},
            sample_size=16,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            **text,
        ),
        of(
            "ControlNetModel",
            lambda: {
                "sample": image(1, 4, 8, 8),
                "timestep": _step(),
                "encoder_hidden_states": image(1, 7, 32),
                "controlnet_cond": image(1, 3, 16, 16),
            },
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            norm_num_groups=8,
            conditioning_embedding_out_channels=(16, 32),
            **text,
        ),
        of("AutoencoderKL", _images(1, 3, 16, 16), latent_channels=4, norm_num_groups=8, **coder),
        of("VQModel", _images(1, 3, 16, 16), num_vq_embeddings=32, norm_num_groups=8, **coder),
        of(
            "AutoencoderTiny",
            _images(1, 3, 16, 16),
            encoder_block_out_channels=(16, 16),
            decoder_block_out_channels=(16, 16),
            num_encoder_blocks=(1, 2),
            num_decoder_blocks=(2, 1),
        ),
        of(
            "DiTTransformer2DModel",
            lambda: {"hidden_states": image(1, 4, 8, 8), "timestep": _step(), "class_labels": torch.tensor([1])},
            num_layers=2,
            sample_size=8,
            num_embeds_ada_norm=10,
            norm_num_groups=4,
            **latents,
        ),
        of(
            "SD3Transformer2DModel",
            lambda: {
                "hidden_states": image(1, 4, 8, 8),
                "encoder_hidden_states": image(1, 5, 32),
                "pooled_projections": image(1, 32),
                "timestep": _step(),
            },
            sample_size=8,
            num_layers=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            out_channels=4,
            pos_embed_max_size=8,
            **latents,
        ),
        of(
            "FluxTransformer2DModel",
            lambda: {
                "hidden_states": image(1, 16, 4),
                "encoder_hidden_states": image(1, 5, 32),
                "pooled_projections": image(1, 32),
                "timestep": torch.tensor([1.0]),
                "img_ids": torch.zeros(16, 3),
                "txt_ids": torch.zeros(5, 3),
            },
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        ),
    ]


def _vit_pytorch() -> list[Entry]:
    usual = {"image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48}

    def of(module: str, name: str, without: str = "", inputs: Inputs | None = None, **options: Any) -> Entry:
        given = {key: value for key, value in usual.items() if key not in without.split()} | options
        return _entry("vit-pytorch", module, f"vit_pytorch.{module}:{name}", inputs or _images(), **given)

    plain = "vit vit_for_small_dataset learnable_memory_vit vit_with_patch_dropout vit_with_decorr"
    simple = (
        "simple_vit simple_vit_with_qk_norm simple_vit_with_register_tokens simple_vit_with_value_residual simple_uvit"
    )
    names = {"simple_uvit": "SimpleUViT"}
    large = _images(1, 3, 64, 64)
    stages = "image_size patch_size heads mlp_dim depth"
    return [
        *(of(module, "ViT") for module in plain.split()),
        *(of(module, names.get(module, "SimpleViT")) for module in simple.split()),
        of("deepvit", "DeepViT"),
        of("cait", "CaiT", cls_depth=1),
        of("xcit", "XCiT", cls_depth=1),
        of("rvt", "RvT"),
        of("jumbo_vit", "JumboViT"),
        of("normalized_vit", "nViT", dim_head=8),
        of("parallel_vit", "ViT", num_parallel_branches=2),
        of("ats_vit", "ViT", max_tokens_per_depth=(12, 8)),
        of("t2t", "T2TViT", "patch_size", t2t_layers=((3, 2), (3, 2))),
        of("nest", "NesT", "depth mlp_dim", patch_size=4, heads=2, num_hierarchies=2, block_repeats=(1, 1)),
        of(
            "mobile_vit",
            "MobileViT",
            "dim depth heads mlp_dim patch_size image_size",
            large,
            image_size=(64, 64),
            dims=[24, 32, 40],
            channels=[8, 8, 16, 16, 16, 16, 24, 24, 32, 32, 40],
        ),
        of("max_vit", "MaxViT", stages, large, dim_conv_stem=16, dim=16, dim_head=8, depth=(1, 1), window_size=4),
        of(
            "scalable_vit",
            "ScalableViT",
            stages,
            large,
            dim=16,
            heads=(1, 2),
            depth=(1, 1),
            ssa_dim_key=(8, 8),
            reduction_factor=(2, 1),
            window_size=(4, 4),
        ),
        of("pit", "PiT", "depth", large, image_size=64, depth=(1, 1)),
    ]


def _x_transformers() -> list[Entry]:
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "rmsnorm": {"use_rmsnorm": True},
        "simple rmsnorm": {"use_simple_rmsnorm": True},
        "scale norm": {"use_scalenorm": True},
        "gated": {"ff_glu": True, "ff_swish": True},
        "rotary": {"rotary_pos_emb": True},
        "xpos": {"rotary_xpos": True},
        "alibi": {"alibi_pos_bias": True, "alibi_num_heads": 2},
        "T5 bias": {"rel_pos_bias": True},
        "dynamic bias": {"dynamic_pos_bias": True},
        "normalised queries": {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
        "one key": {"attn_one_kv_head": True},
        "grouped queries": {"attn_kv_heads": 2},
        "talking heads": {"attn_pre_talking_heads": True},
        "sandwich norm": {"sandwich_norm": True},
        "gated values": {"attn_gate_values": True},
        "memory": {"attn_num_mem_kv": 4},
        "macaron": {"macaron": True},
        "shifted tokens": {"shift_tokens": 1},
        "flash": {"attn_flash": True},
        "sparse": {"attn_sparse_topk": 3},
        "laser": {"attn_laser": True},
        "hyper-connections": {"num_residual_streams": 2},
        "scaled heads": {"attn_head_scale": True},
        "scaled residual": {"scale_residual": True},
        "soft clamp": {"attn_softclamp_logits": True},
        "post-norm": {"pre_norm": False},
    }

    def decoder(options: dict[str, Any]) -> Any:
        return import_module("x_transformers").Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, **options)

    return [
        _entry(
            "x-transformers",
            name,
            "x_transformers:TransformerWrapper",
            _tokens(),
            num_tokens=32,
            max_seq_len=16,
            attn_layers=partial(decoder, options),
        )
        for name, options in variants.items()
    ]


def _monai() -> list[Entry]:
    def of(name: str, inputs: Inputs, *args: Any, **options: Any) -> Entry:
        return _entry("monai", name, f"monai.networks.nets:{name}", inputs, *args, **options)

    flat = _images(2, 1, 32, 32)
    return [
        of("UNet", _images(2, 1, 16, 16, 16), 3, 1, 2, (8, 16, 32), (2, 2), num_res_units=1),
        of("BasicUNet", flat, 2, 1, 2, features=(8, 8, 16, 16, 32, 8)),
        of("BasicUNetPlusPlus", flat, 2, 1, 2, features=(8, 8, 16, 16, 32, 8)),
        of("AttentionUnet", flat, 2, 1, 2, (8, 16, 32), (2, 2)),
        of("DynUNet", flat, 2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 16, 32]),
        of("SegResNet", flat, 2, 8, 1, 2),
        of("SegResNetDS", flat, 2, 8, 1, 2, blocks_down=(1, 1, 1)),
        of("VNet", flat, 2, 1, 2),
        of(
            "SwinUNETR",
            _images(1, 1, 64, 64),
            1,
            2,
            feature_size=12,
            depths=(1, 1, 1, 1),
            num_heads=(2, 2, 2, 2),
            spatial_dims=2,
        ),
        of("HighResNet", _images(1, 1, 16, 16), 2, 1, 2),
        of("AutoEncoder", flat, 2, 1, 1, (8, 16), (2, 2)),
        of("VarAutoEncoder", flat, 2, (1, 32, 32), 1, 8, (8, 16), (2, 2)),
        of("GlobalNet", _images(1, 2, 32, 32), (32, 32), 2, 2, 8, 2),
        of("DecoderOnlyTransformer", _tokens(1, 8), 32, 16, 32, 2, 4),
    ]


def _segmentation() -> list[Entry]:
    def of(name: str, encoder: str = "resnet18", **options: Any) -> Entry:
        return _entry(
            "segmentation-models",
            " ".join([name, "of", encoder, *options.values()]),
            f"segmentation_models_pytorch:{name}",
            _images(2, 3, 64, 64),
            encoder,
            encoder_weights=None,
            classes=3,
            **options,
        )

    decoders = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus UPerNet Segformer"
    encoders = "mobilenet_v2 efficientnet-b0 densenet121 vgg11_bn mit_b0 xception dpn68 resnext50_32x4d"
    return [
        *(of(name) for name in decoders.split()),
        *(of("Unet", encoder) for encoder in encoders.split()),
        of("Unet", decoder_attention_type="scse"),
    ]
