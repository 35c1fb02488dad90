"""Small configurations of any architecture of transformers, from the names of its settings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

from benchmarks.zoo.transformers_settings import SETTINGS

Settings = dict[str, Any]

# How many, how deep.
COUNTS: Settings = {
    "vocab_size": 99,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "depth": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_layers": 2,
    "decoder_num_hidden_layers": 2,
    "encoder_num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_queries": 5,
    "num_labels": 7,
    "memory_attention_num_layers": 2,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "type_vocab_size": 2,
    "num_codebooks": 2,
    # tables that would be most of a tiny model
    "max_2d_position_embeddings": 128,
    "max_encoder_position_embeddings": 128,
    "max_decoder_position_embeddings": 128,
    "max_ep_len": 64,
    "num_hash_buckets": 64,
    "src_vocab_size": 99,
    "tgt_vocab_size": 99,
    "num_bpe_labels": 99,
    "num_wordpiece_labels": 99,
    "pronunciation_vocab_size": 99,
    "shape_vocab_size": 99,
}
# How wide.
WIDTHS: Settings = {
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "hidden_dim": 32,
    "embed_dim": 32,
    "embedding_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "d_ff": 48,
    "d_inner": 48,
    "n_inner": 48,
    "mlp_dim": 48,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_intermediate_size": 48,
    "decoder_hidden_size": 32,
    "encoder_hidden_size": 32,
    "dim_feedforward": 48,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "d_kv": 8,
    "d_head": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "projection_dim": 32,
    "out_hidden_size": 32,
    "text_hidden_size": 32,
    "rotary_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "state_size": 8,
    "query_pre_attn_scalar": 8,
    "fusion_hidden_size": 32,
    "fpn_hidden_size": 32,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 99,
    "encoder_hidden_dim": 32,
    "lru_width": 32,
    "attention_hidden_size": 32,
    "input_embedding_size": 24,
    "output_embedding_size": 40,
    "pronunciation_embed_dim": 16,
    "shape_embed_dim": 16,
    "conv_pos_kernel_size": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 4,
}
# How large what goes in is.
INPUTS: Settings = {
    "image_size": 32,
    "patch_size": 8,
    "num_mel_bins": 16,
    "num_frames": 4,
    "window_size": 4,
    "depths": (1, 1, 1, 1),
    "hidden_sizes": (16, 24, 32, 40),
    "conv_dim": (16, 16, 16, 16, 16, 16, 16),
}
_TOKENS = {"pad": 0, "bos": 1, "eos": 2, "decoder_start": 1}
SPECIAL = {"image": 90, "video": 91, "audio": 92, "vision_start": 93, "vision_end": 94}


def tiny_configs(name: str) -> Iterator[Any]:
    """Configurations from the smallest to the default one; one that cannot be made comes as its error."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    own = SETTINGS.get(name, {})
    for tables in ((COUNTS, WIDTHS, INPUTS), (COUNTS, WIDTHS), (COUNTS, INPUTS), (COUNTS,), ()):
        known = {setting: value for table in tables for setting, value in table.items()}
        try:
            config = kind(**merged(settings_of(kind, known), own))
            config.use_cache = False  # or keys and values are outputs of the model, and may not get smaller
            yield config
        except Exception as cause:  # noqa: BLE001 - reported with the others if none works
            yield cause


def settings_of(kind: Any, known: Settings) -> Settings:
    """The known settings that a configuration class has, in the shape of their defaults; nested ones included."""
    found: Settings = {}
    parts = getattr(kind, "sub_configs", {}) or {}
    for name, default in defaults(kind):
        if name in parts:
            continue
        value = known.get(name, _token(name, default) if known else None)
        if value is not None and not isinstance(default, bool):
            found[name] = _like(default, value)
    for name, part in parts.items():
        if not dataclasses.is_dataclass(part):
            part = type(getattr(_default(kind), name, None))
        if dataclasses.is_dataclass(part):
            kind_of_part = getattr(part, "model_type", "")
            found[name] = settings_of(part, known) | ({"model_type": kind_of_part} if kind_of_part else {})
            if kind_of_part == "timm_backbone":  # a network of its own, whose name is its size
                found[name] |= {"backbone": "resnet18", "out_indices": _default(kind).to_dict()[name]["out_indices"]}
    if "kv_lora_rank" in found and "num_key_value_heads" in found:
        found["num_key_value_heads"] = found.get("num_attention_heads")
    rope = getattr(_default(kind), "rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in rope and "head_dim" in known:
        found["rope_parameters"] = rope | {"mrope_section": _sections(rope, known["head_dim"])}
    return {name: value for name, value in found.items() if value is not None}


def _sections(rope: Settings, head_dim: int) -> list[int]:
    """Half of the rotated part of a head, in three."""
    half = int(head_dim * rope.get("partial_rotary_factor", 1.0)) // 2
    return [half - 2 * (half // 3), half // 3, half // 3]


@cache
def _default(kind: Any) -> Any:
    """The configuration with nothing said, where there is one."""
    try:
        return kind()
    except Exception:  # noqa: BLE001 - some want something said
        return None


def defaults(kind: Any) -> list[tuple[str, Any]]:
    """Names and defaults of the settings of a configuration class."""
    if dataclasses.is_dataclass(kind):
        return [(field.name, field.default) for field in dataclasses.fields(kind) if field.init]
    return [(name, parameter.default) for name, parameter in inspect.signature(kind.__init__).parameters.items()]


def _token(name: str, default: Any) -> int | None:
    """Special tokens must lie in the small vocabulary."""
    if not name.endswith(("_token_id", "_token_index")) or not (default is None or isinstance(default, int)):
        return None
    stem = name.removesuffix("_id").removesuffix("_index").removesuffix("_token")
    known = {**_TOKENS, **SPECIAL}.get(stem)
    if known is not None:
        return known
    return None if default is None else 3 + sum(map(ord, stem)) % 5


def _like(default: Any, value: Any) -> Any:
    """As many values as the default has."""
    if isinstance(default, (tuple, list)):
        if isinstance(value, tuple):
            return type(default)(value[min(i, len(value) - 1)] for i in range(len(default)))
        return None
    return None if isinstance(value, tuple) else value


def merged(settings: Settings, own: Settings) -> Settings:
    """Settings with those of ``own`` over them, key by key in nested ones; None takes a setting away."""
    result = dict(settings)
    for name, value in own.items():
        if isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = merged(result[name], value)
        elif value is ...:
            result.pop(name, None)
        else:
            result[name] = value
    return result
