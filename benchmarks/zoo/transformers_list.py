"""The architectures of transformers that are looked at, by kind, and what some of them want said."""

from __future__ import annotations

KINDS: dict[str, str] = {
    "encoder": """
        blip_2_qformer bros deberta decision_transformer electra embedding_gemma2_text
        fastspeech2_conformer_with_hifigan fnet glm_ocr_text gte higgs_audio_v2 jina_embeddings_v3 lilt markuplm
        albert audioflamingo3 bert big_bird camembert canine clip_text_model convbert cosmos3_edge_text
        data2vec-text deberta-v2 distilbert dpr embedding_gemma2 ernie esm eurobert fastspeech2_conformer
        flaubert funnel glm4v_text glm_image_text gradium_phonon_tts granite_docling_text ibert imagegpt
        layoutlm longformer megatron-bert mobilebert modernbert molmo2_text mpnet mra muse_glimmer_text
        musicflamingo neomme nomic_bert nystromformer pocket_tts qwen3_vl_text reformer rembert roberta
        roberta-prelayernorm roc_bert roformer sam3_lite_text_text_model splinter squeezebert tapas
        tipsv2_text_model ultrabert visual_bert vits xlm xlm-roberta xlm-roberta-xl yoso
        esmc luke
    """,
    "decoder": """
        apertus bert-generation cohere cpmant ctrl cwm diffllama ernie4_5 gemma2 gemma3_text glm gpt2
        gpt_neox_japanese gptj granite hrm_text hunyuan_v1_dense internlm3 jais2 arcee biogpt bitnet bloom
        codegen cohere2 exaone4 falcon gemma gemma3n_text gemma4_unified_text glm4 gpt-sw3 gpt_bigcode gpt_neox
        granite_swa helium hyperclovax iquestcoder llama minicpm3 ministral ministral3 mistral
        modernbert-decoder moshi mpt nanochat nemotron olmo olmo2 olmo3 openai-gpt opt persimmon phi phi3 qwen2
        qwen3 seed_oss smollm3 stablelm starcoder2 vaultgemma xglm xlnet youtu
        gpt_neo
    """,
    "mixture of experts": """
        afmoe axk1 cohere2_moe deepseek_v2 deepseek_v32 doge dots1 dots3_note_text exaone_moe flint
        glm4_moe_lite glm_moe_dsa granitemoe hy_v4 inkling2_text kolibri1 laguna mellum aria_text axk2
        bailing_hybrid beam deepseek_v3 deepseek_v4 ernie4_5_moe flex_olmo gemma4_text glm4_moe glm4v_moe_text
        gpt_oss granitemoe_swa granitemoeshared hunyuan_v1_moe hy_v3 inkling_text jetmoe llama4_text
        mimo_v2_flash minimax minimax_m2 minimax_m3_vl_text mistral_large4_text mixtral muse_spark_text olmoe
        openai_privacy_filter phimoe qwen2_moe qwen3_moe qwen3_vl_moe_text solar_open
        longcat_flash
    """,
    "state-space": """
        bamba granitemoehybrid lfm2 falcon_mamba jamba kimi_linear lfm2_moe lfm3 mamba nemotron_h olmo_hybrid
        qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp_text recurrent_gemma rwkv xlstm
        falcon_h1 mamba2
    """,
    "encoder-decoder": """
        bart bigbird_pegasus blenderbot fsmt led longt5 m2m_100 mbart blenderbot-small marian mt5 mvp nllb-moe
        pegasus pegasus_x plbart prophetnet seamless_m4t seamless_m4t_v2 switch_transformers t5 t5gemma umt5
    """,
    "vision": """
        aimv2_vision_model beit bit chinese_clip_vision_model clip clip_vision_model convnext data2vec-vision
        deit dinov2_with_registers dinov3_vit dpt efficientloftr granite_docling_vision hgnet_v2 ijepa
        internvl_vision lightglue maskformer mgp-str convnextv2 cvt dinov2 dinov3_convnext donut-swin focalnet
        glpn hiera idefics3_vision levit maskformer-swin metaclip_2 mlcd mlcd_vision_model mobilenet_v1
        mobilenet_v2 mobilevit mobilevitv2 pixio pixtral poolformer pp_ocrv5_mobile_rec pp_ocrv5_server_rec
        pp_ocrv6_small_rec pp_ocrv6_tiny_rec pvt pvt_v2 qianfan_ocr_vision radio regnet resnet sam sam2
        sam2_hiera_det_model sam2_vision_model sam3 sam3_lite_text sam3_tracker sam3_vision_model sam3_vit_model
        sam_hq sam_hq_vision_model sam_vision_model segformer siglip siglip_vision_model smolvlm_vision
        swiftformer swin swin2sr swinv2 textnet timesformer timm_wrapper tipsv2_vision_model videomae videoprism
        videoprism_vision_model vit vit_mae vit_msn vitdet vivit vjepa2
    """,
    "detection": """
        conditional_detr dab-detr deformable_detr detr grounding-dino d_fine deimv2 mm-grounding-dino owlv2
        owlvit rf_detr table-transformer yolos
        rt_detr rt_detr_v2
    """,
    "audio": """
        audio-spectrogram-transformer canary cohere_asr data2vec-audio encodec gemma4_audio granite_speech5_ctc
        lasr_encoder clap dac glmasr_encoder granite_speech5_encoder hubert lasr_ctc mimi mimi_encoder moonshine
        moss_transcribe_diarize_audio nemotron3_5_asr nemotron3_5_transcribe_asr_audio
        nemotron3_5_transcribe_audio nemotron3_diarization nemotron3_diarization_audio nemotron_asr_streaming
        nemotron_asr_streaming_encoder parakeet_ctc parakeet_encoder parakeet_rnnt parakeet_tdt pe_audio
        pe_audio_encoder pocket_tts_audio_tokenizer pocket_tts_audio_tokenizer_encoder qwen2_audio_encoder sew
        sew-d speech_to_text speecht5 unispeech unispeech-sat univnet voxtral_encoder voxtral_realtime_encoder
        wav2vec2 wav2vec2-conformer wavlm whisper xcodec
    """,
    "multimodal": """
        aria aya_vision blip cosmos3_edge deepseek_vl evolla exaone4_5 flava fuyu gemma4_unified glm4v_moe
        glmasr got_ocr2 granite_docling granite_speech_plus hyperclovax_vision_v2 idefics3 inkling_mm_model
        kosmos-2.5 lfm2_vl llama4 llava llava_next_video aimv2 altclip blip-2 chinese_clip clipseg
        cohere2_vision cosmos3_omni deepseek_vl_hybrid florence2 gemma3 gemma4 git glm4v glm_ocr granite_speech
        groupvit idefics2 inkling2 internvl kimi_k25 layoutlmv3 lighton_ocr llava_next llava_onevision
        minimax_m3_vl mistral3 mistral4 mistral_large4 mllama modernvbert moss_transcribe_diarize muse_glimmer
        ovis2 paligemma phi4_multimodal qianfan_ocr qwen2_audio qwen3_asr qwen3_omni_moe_thinker qwen3_vl
        qwen3_vl_moe smolvlm t5gemma2 tipsv2 udop ultravbert unlimited_ocr video_llava vilt vipllava
        vision-text-dual-encoder voxtral xclip
        glm46v instructblip lxmert
    """,
    "time series": """
        informer autoformer patchtsmixer patchtst time_series_transformer timesfm timesfm2_5
    """,
}
