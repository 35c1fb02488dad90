"""Inputs of single architectures of transformers that trying does not find, or not all of what the model takes."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.zoo.entries import generator, image


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
    size = 3 * _first(vision, "temporal_patch_size", "patch_temporal", default=1) * vision.patch_size**2
    return _with_patches(config, image(16, size))


def _squares(config: Any) -> dict[str, Any]:
    """As `_patches`, each of them a small image."""
    size = config.vision_config.patch_size
    return _with_patches(config, image(16, 3, size, size))


def _with_patches(config: Any, patches: torch.Tensor) -> dict[str, Any]:
    merged = _first(config.vision_config, "spatial_merge_size", "merge_size", default=2) ** 2
    words = torch.randint(8, 80, (1, 6), generator=generator())
    start, end = (getattr(config, f"vision_{side}_token_id", None) for side in ("start", "end"))
    around = [torch.tensor([[token]]) for token in (start, end) if token is not None]
    token = _first(config, "image_token_id", "image_token_index")
    text = torch.cat([words[:, :3], *around[:1], torch.full((1, 16 // merged), token), *around[1:], words[:, 3:]], 1)
    return {
        "input_ids": text,
        "pixel_values": patches,
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (text == token).long(),
    }


def _first(config: Any, *names: str, default: Any = None) -> Any:
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), default)


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


def _thought(config: Any) -> dict[str, Any]:
    """A text with an image of four tokens and a window of sound: 100 frames, which the code says are 13 tokens."""
    found = _patches(config)
    text = torch.cat([found["input_ids"], torch.full((1, 13), config.audio_token_id), found["input_ids"][:, :1]], 1)
    return found | _sound(config) | {"input_ids": text, "feature_attention_mask": torch.ones(1, 100, dtype=torch.long)}


def _heard(config: Any) -> dict[str, Any]:
    """A text with a window of sound."""
    text = _with_placeholders(config.audio_token_id, 13)[:1]
    return _sound(config) | {"input_ids": text, "input_features_mask": torch.ones(1, 100, dtype=torch.long)}


def _sound(config: Any) -> dict[str, Any]:
    return {"input_features": image(1, config.audio_config.num_mel_bins, 100)}


def _two_resolutions(config: Any) -> dict[str, Any]:
    """A text with one image each, of 4 by 4 patches for either tower."""
    return {
        "input_ids": _with_placeholders(config.image_token_id, 16),
        "pixel_values": image(2, 3, 32, 32),
        "high_res_pixel_values": image(2, 3, 32, 32),
    }


def _packed(config: Any) -> dict[str, Any]:
    """A text with one image each: 4 by 4 patches, two by two of them a token."""
    return {
        "input_ids": _with_placeholders(config.image_token_id, 4),
        "pixel_values": image(2, 16, 3 * config.vision_config.patch_size**2),
        "spatial_shapes": torch.full((2, 2), 4),
        "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
    }


def _two_tiles(config: Any) -> dict[str, Any]:
    """A text that looks at one image, which is two tiles side by side."""
    text = torch.randint(8, 80, (1, 6), generator=generator())
    return {
        "input_ids": text,
        "pixel_values": image(1, 1, 2, 3, 32, 32),
        "aspect_ratio_ids": torch.tensor([[2]]),
        "aspect_ratio_mask": torch.ones(1, 1, 2, dtype=torch.long),
        "cross_attention_mask": torch.ones(1, 6, 1, 2, dtype=torch.long),
    }


def _whole_and_crop(config: Any) -> dict[str, Any]:
    """A text with an image, once whole and once as its only crop, of 2 by 2 tokens, a newline each row and a separator;
    and with 32 frames of sound, which are four tokens."""
    text = torch.cat([_with_placeholders(90, 13)[:1], torch.full((1, 4), 92)], 1)
    return {
        "input_ids": text,
        "image_pixel_values": image(1, 2, 3, 32, 32),
        "image_sizes": torch.tensor([[32, 32]]),
        "image_attention_mask": torch.ones(1, 2, 4, 4, dtype=torch.long),
        "audio_input_features": image(1, 32, config.audio_config.input_size),
        "audio_embed_sizes": torch.tensor([4]),
        "audio_attention_mask": torch.ones(1, 32, dtype=torch.bool),
    }


def _page(config: Any) -> dict[str, Any]:
    """A text with one image of 2 by 2 tokens, a newline each row and a separator."""
    return {"input_ids": _with_placeholders(config.image_token_id, 7)[:1], "pixel_values": image(1, 3, 64, 64)}


def _clip(config: Any) -> dict[str, Any]:
    """Four frames, all of which are seen and predicted."""
    return {"pixel_values_videos": image(1, config.frames_per_clip, 3, config.crop_size, config.crop_size)}


def _with_placeholders(token: int, number: int) -> torch.Tensor:
    text = torch.randint(8, 80, (2, 6), generator=generator())
    return torch.cat([text[:, :3], torch.full((2, number), token), text[:, 3:]], 1)


def _pointed(config: Any) -> dict[str, Any]:
    """An image with two points, one of them on the object, and a first mask."""
    return {
        "pixel_values": image(1, 3, 64, 64),
        "input_points": torch.tensor([[[[10.0, 20.0], [40.0, 50.0]]]]),
        "input_labels": torch.tensor([[[1, 0]]]),
        "input_masks": image(1, 1, 16, 16),
    }


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
    "deepseek_vl_hybrid": _two_resolutions,
    "kimi_k25": _squares,
    "lfm2_vl": _packed,
    "mllama": _two_tiles,
    "phi4_multimodal": _whole_and_crop,
    "sam2": _pointed,
    "qwen3_asr": _heard,
    "qwen3_omni_moe_thinker": _thought,
    "unlimited_ocr": _page,
    "vjepa2": _clip,
    "blip_2_qformer": _queries,
    "instructblip": _two_texts,
    "levit": lambda config: {"pixel_values": image(2, 3, 64, 64)},
    "lxmert": _objects,
    **dict.fromkeys(
        (
            *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
            *("glm4v", "glm4v_moe", "glm_ocr", "glm46v", "video_llama_3", "paddleocr_vl"),
            *("cosmos3_edge", "cosmos3_omni", "minimax_m3_vl", "muse_glimmer"),
        ),
        _patches,
    ),
}
