"""Sizes that make an architecture tiny: by the names that configurations use, and where one needs its own."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "emb_dim": 32, "embedding_size": 32,
    "intermediate_size": 64, "ffn_dim": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_ff": 64, "d_kv": 8,
    "hidden_dim": 64, "d_inner": 64, "n_inner": 64, "ffn_hidden_size": 64,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 2, "num_encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_seq_len": 64, "max_source_positions": 64,
    "max_target_positions": 64, "sliding_window": 8,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "image_size": 32, "patch_size": 8, "num_labels": 3,
    "conv_dim": (16, 16), "conv_kernel": (8, 3), "conv_stride": (4, 2), "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2, "num_mel_bins": 16, "classifier_proj_size": 16,
}  # fmt: skip

_LATENT = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 16}
_HEADS = {"d_model": 32, "n_heads": 4, "n_layers": 2}

_STAGES = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}
_RESIDUAL = {"embedding_size": 16, **_STAGES}
_IMAGES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_GEMMA = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_WINDOWS = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 4}

EXTRA: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "xlnet": {"max_position_embeddings": None},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "nemotron": {"num_key_value_heads": 2},
    "mamba2": {"num_heads": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2, "mamba_d_state": 8},
    "zamba2": {
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "hybrid", "mamba"],
        "hybrid_layer_ids": [1],
        "mamba_headdim": 8,
    },
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
    "dbrx": {
        **_HEADS,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v3": {**_LATENT, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "esm": {"vocab_size": 99, "pad_token_id": 1, "mask_token_id": 3},
    "reformer": {
        "axial_pos_embds_dim": (16, 16),
        "axial_pos_shape": (4, 3),
        "attention_head_size": 8,
        "is_decoder": False,
    },
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32},
    "wav2vec2-bert": {"feature_projection_input_dim": 16},
    "speech_to_text": {"input_feat_per_channel": 16, "conv_channels": 16},
    "bit": {"num_groups": 8, "embedding_size": 16, "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 1, 1]},
    "convnext": {**_STAGES, "hidden_sizes": [16] * 4, "image_size": 64, "patch_size": 4},
    "convnextv2": {**_STAGES, "hidden_sizes": [16] * 4, "image_size": 64, "patch_size": 4},
    "efficientnet": {"hidden_dim": 640, "width_coefficient": 0.5, "depth_coefficient": 0.3, "initializer_range": 0.5},
    "hiera": {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    "mobilevitv2": {"patch_size": 2, "image_size": 64},
    "deit": {"architectures": ["DeiTForImageClassification"]},
    "levit": {"architectures": ["LevitForImageClassification"], "image_size": 64, "patch_size": 16},
    "siglip": {"vision_config": _IMAGES, "text_config": {"hidden_size": 32, "num_hidden_layers": 1}},
    "donut-swin": _WINDOWS,
    "focalnet": {"embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "patch_size": 4},
    "poolformer": _STAGES,
    "pvt": {**_STAGES, "num_attention_heads": [1, 2, 2, 4], "image_size": 64, "patch_size": 4},
    "regnet": {**_RESIDUAL, "groups_width": 8},
    "resnet": _RESIDUAL,
    "segformer": _STAGES,
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "longformer": {"attention_window": 4},
    "led": {"attention_window": 4, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
    "prophetnet": {
        "num_hidden_layers": None,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
    },
    "t5gemma": {"encoder": _GEMMA, "decoder": _GEMMA, "vocab_size": 99},
    "funnel": {"num_hidden_layers": None, "block_sizes": [1, 1], "d_head": 8, "d_model": 32},
}
