"""Models of well-known definitions with random weights, small inputs, no downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Entry:
    """A model, its example inputs, the coverage it must reach."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    coverage: float
    train: bool = True


def _image(size: int, batch: int = 2) -> Callable[[], Any]:
    return lambda: torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def _tokens(vocabulary: int = 99, **extra: Any) -> Callable[[], Any]:
    return lambda: {
        "input_ids": torch.randint(0, vocabulary, (2, 9), generator=torch.Generator().manual_seed(1)),
        **{name: make() for name, make in extra.items()},
    }


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from niwaki.networks.torchvision_cpu import load

        return load().models.get_model(name, weights=None, **options)

    return build


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from niwaki.networks.torchvision_cpu import load

        load()
        import timm

        return timm.create_model(name, pretrained=False, **options)

    return build


def _transformers(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from niwaki.networks.torchvision_cpu import load

        load()
        import transformers

        torch.manual_seed(0)
        return getattr(transformers, model)(getattr(transformers, config)(**options))

    return build


_NO_DROPOUT = {"attention_dropout": 0.0}
_DECODER = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

ZOO: dict[str, Entry] = {
    "resnet18": Entry(_torchvision("resnet18"), _image(64), 0.999),
    "resnet50": Entry(_torchvision("resnet50"), _image(64), 0.999),
    "densenet121": Entry(_torchvision("densenet121"), _image(64), 0.999),
    "mobilenet_v2": Entry(_torchvision("mobilenet_v2"), _image(64), 0.999),
    "mobilenet_v3_small": Entry(_torchvision("mobilenet_v3_small"), _image(64), 0.999),
    "efficientnet_b0": Entry(_torchvision("efficientnet_b0"), _image(64), 0.999),
    "regnet_y_400mf": Entry(_torchvision("regnet_y_400mf"), _image(64), 0.999),
    "shufflenet_v2_x1_0": Entry(_torchvision("shufflenet_v2_x1_0"), _image(64), 0.997),
    "googlenet": Entry(_torchvision("googlenet", init_weights=False, aux_logits=True), _image(96), 0.999),
    "vgg16_bn": Entry(_torchvision("vgg16_bn"), _image(32), 0.999),
    "convnext_tiny": Entry(_torchvision("convnext_tiny"), _image(64), 0.9),
    "vit_b_16": Entry(_torchvision("vit_b_16"), _image(224, 1), 0.65, train=False),
    "swin_t": Entry(_torchvision("swin_t"), _image(64), 0.61),
    "timm_vit_base": Entry(_timm("vit_base_patch16_224"), _image(224, 1), 0.98, train=False),
    "timm_vit_tiny": Entry(_timm("vit_tiny_patch16_224"), _image(224, 1), 0.93),
    "timm_swin_tiny": Entry(_timm("swin_tiny_patch4_window7_224"), _image(224, 1), 0.91, train=False),
    "timm_mixer": Entry(_timm("mixer_s32_224"), _image(224, 1), 0.88),
    "bert": Entry(
        _transformers(
            "BertModel",
            "BertConfig",
            vocab_size=99,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        _tokens(),
        0.71,
    ),
    "gpt2": Entry(
        _transformers(
            "GPT2LMHeadModel",
            "GPT2Config",
            vocab_size=99,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        ),
        _tokens(),
        0.81,
    ),
    "llama": Entry(_transformers("LlamaForCausalLM", "LlamaConfig", **_DECODER), _tokens(), 0.7),
    "qwen3": Entry(_transformers("Qwen3ForCausalLM", "Qwen3Config", head_dim=8, **_DECODER), _tokens(), 0.7),
    "t5": Entry(
        _transformers(
            "T5ForConditionalGeneration",
            "T5Config",
            vocab_size=99,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        ),
        _tokens(decoder_input_ids=lambda: torch.randint(0, 99, (2, 5), generator=torch.Generator().manual_seed(2))),
        0.91,
    ),
}
