"""What single architectures of transformers want said beyond the general tables: settings, and inputs."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.zoo.entries import generator, image

_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
_SERIES = {"prediction_length": 4, "context_length": 16, "num_time_features": 1, "lags_sequence": [1, 2]}
_WORDS = {"n_words": 99, "emb_dim": 32}

_HGNET = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 12],
    "stage_in_channels": [12, 16, 24, 32],
    "stage_mid_channels": [8, 8, 12, 12],
    "stage_out_channels": [16, 24, 32, 40],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "hidden_sizes": [16, 24, 32, 40],
    "out_features": ["stage2", "stage3", "stage4"],
}
_RESNET = {
    "model_type": "rt_detr_resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 24, 32, 40],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}
_DEEP = {"deepstack_visual_indexes": [0, 1], "use_fine_route": False, "scale_factor": 2}
_DETR = {"encoder_in_channels": [24, 32, 40], "decoder_in_channels": [32, 32, 32], "num_denoising": 0}

SETTINGS: dict[str, dict[str, Any]] = {
    "d_fine": _DETR | {"backbone_config": _HGNET},
    "deimv2": _DETR | {"backbone_config": _HGNET},
    "rt_detr": _DETR | {"backbone_config": _RESNET},
    "rt_detr_v2": _DETR | {"backbone_config": _RESNET},
    "pp_doclayout_v3": _DETR | {"backbone_config": _HGNET},
    "pp_doclayout_v4": _DETR | {"backbone_config": _HGNET},
    "markuplm": {
        "max_xpath_tag_unit_embeddings": 32,
        "max_xpath_subs_unit_embeddings": 32,
        "tag_pad_id": 31,
        "subs_pad_id": 31,
        "max_depth": 4,
        "xpath_unit_hidden_size": 8,
    },
    "sam_vision_model": {"output_channels": 32},
    "sam_hq_vision_model": {"output_channels": 32},
    "radio": {"max_img_size": 64},
    "prophetnet": {"max_position_embeddings": 32},
    "tapas": {"type_vocab_sizes": [3, 16, 16, 2, 16, 16, 10]},
    "autoformer": _SERIES | {"moving_average": 3},
    "informer": _SERIES,
    "time_series_transformer": _SERIES,
    "ernie4_5_moe": {"moe_k": 2},
    "flaubert": _WORDS,
    "xlm": _WORDS,
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "dpt": {
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
    },
    "efficientnet": {"width_coefficient": 0.3, "depth_coefficient": 0.3, "hidden_dim": 64, "image_size": 64},
    "glm4v": {"text_config": {"rope_parameters": _SECTIONS}},
    "glm4v_text": {"rope_parameters": _SECTIONS},
    "glm4v_moe": {"text_config": {"rope_parameters": _SECTIONS}},
    "glm4v_moe_text": {"rope_parameters": _SECTIONS},
    "glm_image_text": {"rope_parameters": _SECTIONS},
    "glm_ocr": {"text_config": {"rope_parameters": _SECTIONS}},
    "cosmos3_edge": {"text_config": {"rope_parameters": _SECTIONS}},
    "cosmos3_edge_text": {"rope_parameters": _SECTIONS},
    "qwen2_vl": {"text_config": {"rope_parameters": _SECTIONS}},
    "qwen2_5_vl": {"text_config": {"rope_parameters": _SECTIONS}},
    "qwen2_vl_text": {"rope_parameters": _SECTIONS},
    "qwen2_5_vl_text": {"rope_parameters": _SECTIONS},
    "glm46v": {"text_config": {"rope_parameters": _SECTIONS}},
    "gemma3": {"mm_tokens_per_image": 4},
    "lw_detr": {"image_size": 64},
    "mamba2": {"hidden_size": 32, "num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "esmc": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "llama4": {
        "text_config": {"intermediate_size_mlp": 48},
        "vision_config": {
            "intermediate_size": 128,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
        },
    },
    "granite_docling": {"vision_config": _DEEP},
    "granite_docling_vision": _DEEP,
    "gemma4_unified": {
        "text_config": {"per_layer_config": {"1": {"head_dim": 16}}},
        "vision_config": {
            "pooling_kernel_size": 1,
            "mm_embed_dim": 32,
            "mm_posemb_size": 8,
            "output_proj_dims": 32,
        },
        "audio_config": {"audio_embed_dim": 32},
    },
    "led": {"attention_window": 8},
    "longformer": {"attention_window": 8},
    "evolla": {"resampler_dim_head": 8, "resampler_heads": 4, "resampler_depth": 2, "resampler_num_latents": 4},
    "mask2former": {"num_attention_heads": 4, "hidden_dim": 32},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 16},
    "longcat_flash": {"ffn_hidden_size": 48, "expert_ffn_size": 24, "zero_expert_num": 2},
    "blip-2": {"qformer_config": {"vocab_size": 99, "encoder_hidden_size": 32}, "num_query_tokens": 4},
    "instructblip": {"qformer_config": {"vocab_size": 99, "encoder_hidden_size": 32}, "num_query_tokens": 4},
}


def _series(config: Any) -> dict[str, Any]:
    past, future = config.context_length + max(config.lags_sequence), config.prediction_length
    return {
        "past_values": image(2, past),
        "past_time_features": image(2, past, 1),
        "past_observed_mask": torch.ones(2, past),
        "future_values": image(2, future),
        "future_time_features": image(2, future, 1),
    }


def _decisions(config: Any) -> dict[str, Any]:
    return {
        "states": image(2, 5, config.state_dim),
        "actions": image(2, 5, config.act_dim),
        "rewards": image(2, 5, 1),
        "returns_to_go": image(2, 5, 1),
        "timesteps": torch.arange(5).expand(2, 5),
        "attention_mask": torch.ones(2, 5),
    }


def _patches(config: Any) -> dict[str, Any]:
    """A text with one image, given as its patches: 4 by 4 of them, merged two by two into 4 tokens."""
    vision = config.vision_config
    merged = 16 // vision.spatial_merge_size**2
    channels = getattr(vision, "in_channels", 3)
    size = channels * getattr(vision, "temporal_patch_size", 1) * vision.patch_size**2
    words = torch.randint(8, 80, (1, 6), generator=generator())
    start, end = (getattr(config, f"vision_{side}_token_id", None) for side in ("start", "end"))
    around = [torch.tensor([[token]]) for token in (start, end) if token is not None]
    tokens = torch.full((1, merged), config.image_token_id)
    text = torch.cat([words[:, :3], *around[:1], tokens, *around[1:], words[:, 3:]], 1)
    return {
        "input_ids": text,
        "pixel_values": image(16, size),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (text == config.image_token_id).long(),
    }


def _sound_and_text(config: Any) -> dict[str, Any]:
    return {"input_ids": torch.randint(8, 80, (2, 9), generator=generator()), "input_features": image(2, 1, 1001, 64)}


def _two_texts(config: Any) -> dict[str, Any]:
    text = torch.randint(8, 80, (2, 9), generator=generator())
    tokens = torch.cat([torch.full((2, config.num_query_tokens), config.image_token_id), text], 1)
    return {"pixel_values": image(2, 3, 32, 32), "qformer_input_ids": text, "input_ids": tokens}


def _objects(config: Any) -> dict[str, Any]:
    return {
        "input_ids": torch.randint(8, 80, (2, 9), generator=generator()),
        "visual_feats": image(2, 4, config.visual_feat_dim),
        "visual_pos": image(2, 4, config.visual_pos_dim),
    }


def _queries(config: Any) -> dict[str, Any]:
    return {
        "query_embeds": image(2, 4, config.hidden_size),
        "encoder_hidden_states": image(2, 5, config.encoder_hidden_size),
    }


def _proteins(config: Any) -> dict[str, Any]:
    return {
        "input_ids": torch.randint(8, 80, (2, 9), generator=generator()),
        "protein_input_ids": torch.randint(8, 80, (2, 7), generator=generator(2)),
        "protein_attention_mask": torch.ones(2, 7, dtype=torch.long),
    }


def _tiles(config: Any) -> dict[str, Any]:
    """A text with one image each, which is one tile."""
    vision = config.vision_config
    number = (vision.image_size // vision.patch_size // vision.scale_factor) ** 2
    return {
        "input_ids": _with_placeholders(config.image_token_id, number),
        "pixel_values": image(2, 1, 3, vision.image_size, vision.image_size),
        "pixel_attention_mask": torch.ones(2, 1, dtype=torch.bool),
    }


def _everything(config: Any) -> dict[str, Any]:
    """A text with an image of four patches and four steps of sound."""
    vision, sound = config.vision_config, config.audio_config
    corners = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]]).expand(2, 4, 2)
    text = torch.cat([_with_placeholders(config.image_token_id, 4), torch.full((2, 4), config.audio_token_id)], 1)
    return {
        "input_ids": text,
        "pixel_values": image(2, 4, 3 * vision.model_patch_size**2),
        "image_position_ids": corners,
        "input_features": image(2, 4, sound.audio_embed_dim),
        "input_features_mask": torch.ones(2, 4, dtype=torch.bool),
        "mm_token_type_ids": (text == config.image_token_id).long() + 3 * (text == config.audio_token_id).long(),
    }


def _with_placeholders(token: int, number: int) -> torch.Tensor:
    text = torch.randint(8, 80, (2, 6), generator=generator())
    return torch.cat([text[:, :3], torch.full((2, number), token), text[:, 3:]], 1)


def _picture(config: Any) -> dict[str, Any]:
    """Large enough that the norms behind the last stride of 32 average over more than a value or two."""
    return {"pixel_values": image(2, 3, 96, 96)}


def _globally(config: Any) -> dict[str, Any]:
    """The first token sees everything, the others their neighbours."""
    seen = torch.zeros(2, 9, dtype=torch.long)
    seen[:, 0] = 1
    return {
        "input_ids": torch.randint(8, 80, (2, 9), generator=generator()),
        "decoder_input_ids": torch.randint(8, 80, (2, 5), generator=generator(2)),
        "global_attention_mask": seen,
    }


INPUTS: dict[str, Any] = {
    "evolla": _proteins,
    "gemma4_unified": _everything,
    "granite_docling": _tiles,
    "led": _globally,
    "longformer": _globally,
    **dict.fromkeys(("d_fine", "deimv2", "rt_detr", "rt_detr_v2"), _picture),
    "autoformer": _series,
    "informer": _series,
    "time_series_transformer": _series,
    "decision_transformer": _decisions,
    "clap": _sound_and_text,
    "blip_2_qformer": _queries,
    "instructblip": _two_texts,
    "lxmert": _objects,
    **dict.fromkeys(
        (
            *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
            *("glm4v", "glm4v_moe", "glm_ocr", "glm46v", "video_llama_3", "paddleocr_vl"),
        ),
        _patches,
    ),
}
