"""What single architectures of transformers want said beyond the general tables of settings."""

from __future__ import annotations

from typing import Any

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
_WINDOWS = {"downsample_hidden_size": 16, "output_dim": 32}
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
    "cosmos3_edge": {"text_config": {"rope_parameters": _SECTIONS}, "projector_hidden_size": 48},
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
    "cosmos3_omni": {
        "text_config": {"rope_parameters": _SECTIONS},
        "vision_config": {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
    },
    "deepseek_vl_hybrid": {"high_res_vision_config": {"output_channels": 8, "global_attn_indexes": [0]}},
    "kimi_k25": {"vision_config": {"pos_emb_height": 8, "pos_emb_width": 8}, "projection_hidden_size": 32},
    "lfm2_vl": {
        "text_config": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
        "vision_config": {"num_patches": 16},
        "projector_hidden_size": 48,
    },
    "minimax_m3_vl": {
        "text_config": {
            "dense_intermediate_size": 48,
            "mlp_layer_types": ["dense", "sparse"],
            "layer_types": ["full_attention", "minimax_m3_sparse"],
            "index_block_size": 4,
            "index_topk_blocks": 2,
        },
        "projector_hidden_size": 48,
    },
    "mllama": {
        "text_config": {"cross_attention_layers": [1]},
        "vision_config": {
            "num_global_layers": 1,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 96,
        },
    },
    "muse_glimmer": {
        "vision_config": {"pos_emb_height": 2, "pos_emb_width": 2},
        "out_hidden_size": 128,
        "projector_hidden_size": 48,
    },
    "phi4_multimodal": {
        "vision_config": {"crop_size": 32},
        "audio_config": {
            "num_blocks": 2,
            "input_size": 16,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 16,
            "bias_max_distance": 8,
        },
    },
    "qwen3_asr": {"audio_config": _WINDOWS},
    "qwen3_omni_moe_thinker": {
        "text_config": {"rope_parameters": _SECTIONS},
        "vision_config": {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
        "audio_config": _WINDOWS,
    },
    "unlimited_ocr": {
        "vision_config": {
            "sam_config": {
                "image_size": 64,
                "output_channels": 16,
                "downsample_channels": [24, 32],
                "global_attn_indexes": [1],
            },
            "encoder_config": {"image_size": 16},
        }
    },
    "vjepa2": {
        "crop_size": 32,
        "frames_per_clip": 4,
        "pred_hidden_size": 48,
        "pred_num_attention_heads": 4,
        "pred_num_hidden_layers": 2,
    },
    "sam2": {
        "vision_config": {
            "backbone_config": {
                "image_size": 64,
                "hidden_size": 8,
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 24, 32],
                "num_attention_heads_per_stage": [1, 2, 2, 4],
                "window_size_per_stage": [8, 4, 4, 2],
                "global_attention_blocks": [3],
            },
            "backbone_channel_list": [32, 24, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        "prompt_encoder_config": {"image_size": 64, "patch_size": 16},
        "mask_decoder_config": {"iou_head_hidden_dim": 32},
    },
    "swin2sr": {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 16},
    "timesfm2_5": {"context_length": 256, "horizon_length": 32, "output_quantile_len": 64},
    "yolos": {"image_size": [32, 48], "num_detection_tokens": 5},
    "reformer": {"axial_pos_shape": [3, 3], "axial_pos_embds_dim": [16, 16]},
}
