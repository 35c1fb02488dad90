"""Families of Hugging Face transformers: small models, their inputs, and what their configurations can say."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

import niwaki
from niwaki.networks.torchvision_cpu import load

load()
transformers = pytest.importorskip("transformers")

_DECODER = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "rms_norm_eps": 0.01,  # large enough to show
}

_ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def tokens(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(1, 99, (rows, length), generator=torch.Generator().manual_seed(1))


def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


# Class, configuration, inputs, the Auto class that loads it, what it cannot say, what must be less than before.
FAMILIES: dict[str, tuple[str, dict[str, Any], Callable[[], dict[str, Any]], str, tuple[str, ...], set[str]]] = {
    "Llama": (
        "LlamaForCausalLM",
        _DECODER,
        lambda: {"input_ids": tokens()},
        "AutoModelForCausalLM",
        (),
        {"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"},
    ),
    "Qwen3": (
        "Qwen3ForCausalLM",
        {**_DECODER, "head_dim": 8},
        lambda: {"input_ids": tokens()},
        "AutoModelForCausalLM",
        (),
        {"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"},
    ),
    "Qwen2": (
        "Qwen2ForCausalLM",
        _DECODER,
        lambda: {"input_ids": tokens()},
        "AutoModelForCausalLM",
        (),
        {"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"},
    ),
    "Mistral": (
        "MistralForCausalLM",
        {**_DECODER, "tie_word_embeddings": False},
        lambda: {"input_ids": tokens()},
        "AutoModelForCausalLM",
        (),
        {"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"},
    ),
    "T5": (
        "T5ForConditionalGeneration",
        {
            **{"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
            "decoder_start_token_id": 0,
        },
        lambda: {"input_ids": tokens(), "decoder_input_ids": tokens(2, 5)},
        "AutoModelForSeq2SeqLM",
        (),
        {"d_ff", "num_heads"},
    ),
    "MT5": (
        "MT5ForConditionalGeneration",
        {
            **{"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
            "decoder_start_token_id": 0,
        },
        lambda: {"input_ids": tokens(), "decoder_input_ids": tokens(2, 5)},
        "AutoModelForSeq2SeqLM",
        (),
        {"d_ff", "num_heads"},
    ),
    "ViT": (
        "ViTForImageClassification",
        {**_ENCODER, "image_size": 16, "patch_size": 8, "num_labels": 5},
        lambda: {"pixel_values": images()},
        "AutoModelForImageClassification",
        (),
        {"intermediate_size", "num_attention_heads"},
    ),
    "GPT2": (
        "GPT2LMHeadModel",
        {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        lambda: {"input_ids": tokens()},
        "AutoModelForCausalLM",
        ("*.attn.*",),
        {"n_inner"},
    ),
    "Bert": (
        "BertForMaskedLM",
        {**_ENCODER, "vocab_size": 99, "max_position_embeddings": 32},
        lambda: {"input_ids": tokens()},
        "AutoModelForMaskedLM",
        ("*.attention.*",),
        {"intermediate_size"},
    ),
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    kind = getattr(transformers, FAMILIES[name][0])
    model = kind(kind.config_class(**FAMILIES[name][1])).eval()
    with torch.no_grad():  # norm weights of one and biases of zero would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@cache
def uniform(name: str, ignored: tuple[str, ...] = ()) -> niwaki.SearchSpace:
    """The space of a family's model, which nobody may change, with a layout that a configuration can say."""
    return niwaki.search_space(build(name), FAMILIES[name][2](), layout="uniform", ignored=list(ignored))
