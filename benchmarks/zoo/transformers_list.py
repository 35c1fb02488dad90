"""The architectures of transformers that are looked at, by kind, and what some of them want said."""

from __future__ import annotations

KINDS: dict[str, str] = {
    "encoder": """
        bros deberta electra embedding_gemma2_text fastspeech2_conformer_with_hifigan fnet glm_ocr_text gte
        higgs_audio_v2 jina_embeddings_v3 lilt markuplm albert bert big_bird camembert canine clip_text_model
        convbert data2vec-text deberta-v2 distilbert dpr embedding_gemma2 ernie esm eurobert
        fastspeech2_conformer funnel gradium_phonon_tts granite_docling_text ibert imagegpt layoutlm longformer
    """,
    "decoder": """
        apertus bert-generation cohere cpmant ctrl cwm diffllama ernie4_5 gemma2 gemma3_text glm gpt2
        gpt_neox_japanese gptj granite hrm_text hunyuan_v1_dense internlm3 jais2 arcee biogpt bitnet bloom
        codegen cohere2 exaone4 falcon gemma gemma4_unified_text glm4 gpt-sw3 gpt_bigcode gpt_neox granite_swa
        helium hyperclovax iquestcoder llama
    """,
    "mixture of experts": """
        afmoe cohere2_moe doge dots1 exaone_moe flint granitemoe hy_v4 inkling2_text kolibri1 laguna mellum
        aria_text bailing_hybrid beam deepseek_v4 flex_olmo gemma4_text glm4_moe gpt_oss granitemoe_swa
        granitemoeshared hunyuan_v1_moe hy_v3 inkling_text jetmoe llama4_text
    """,
    "state-space": """
        bamba granitemoehybrid lfm2 falcon_mamba jamba kimi_linear lfm3 mamba
    """,
    "encoder-decoder": """
        bart bigbird_pegasus blenderbot fsmt led longt5 m2m_100 mbart blenderbot-small marian
    """,
    "vision": """
        aimv2_vision_model beit bit chinese_clip_vision_model clip clip_vision_model convnext data2vec-vision
        deit dinov2_with_registers dinov3_vit efficientloftr granite_docling_vision hgnet_v2 ijepa
        internvl_vision lightglue mgp-str convnextv2 cvt dinov2 dinov3_convnext donut-swin focalnet glpn hiera
        idefics3_vision levit
    """,
    "detection": """
        conditional_detr dab-detr deformable_detr detr d_fine deimv2
    """,
    "audio": """
        audio-spectrogram-transformer data2vec-audio encodec gemma4_audio granite_speech5_ctc lasr_encoder dac
        glmasr_encoder granite_speech5_encoder hubert lasr_ctc
    """,
    "multimodal": """
        blip evolla flava gemma4_unified granite_docling inkling_mm_model kosmos-2.5 llama4 aimv2 altclip
        chinese_clip clipseg gemma4 git groupvit inkling2 layoutlmv3
    """,
}
