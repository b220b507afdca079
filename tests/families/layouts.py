"""The families of language models that people merge, as tiny models in the forms in which checkpoints store them.

A layout is a configuration and a stored form. The configurations are of a few thousand parameters, with all parts that
make a family what it is: experts, shared experts, dense layers before them, towers, states in place of attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Form = Literal["hub", "native", "mixed", "no prefix", "no prefix, one source", "untied source", "bfloat16", "sharded"]
"""How a layout's checkpoints store their tensors.

hub: as the publishers do, one tensor an expert, old names (`save_pretrained`).
native: as transformers 5 has them in memory (`save_pretrained(save_original_format=False)`).
mixed: the base as on the hub, the sources native.
no prefix: without the prefix of the inner model, `model.` or `transformer.`.
no prefix, one source: only the second source is stored so.
untied source: the base's head is its embeddings, the second source has one of its own.
bfloat16: hub, in 16 bits.
sharded: hub, in several files.
"""


@dataclass(frozen=True)
class Layout:
    """A family in one stored form.

    Attributes:
        kind: what the family is: dense, mixture of experts, vision-language, hybrid.
        family: the model type, and what else tells it apart from others of its type.
        form: how its tensors are stored.
        config: for `AutoConfig.for_model`.
        vision: whether it is built by `AutoModelForImageTextToText`.
    """

    kind: str
    family: str
    form: Form
    config: dict[str, Any] = field(repr=False)
    vision: bool = False

    @property
    def name(self) -> str:
        return f"{self.family} ({self.form})"


VOCABULARY = 32
TOKENS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
IMAGE, VIDEO, VISION_START, VISION_END = 20, 21, 22, 23
"""Tokens that no text has."""

PLAIN: dict[str, Any] = {
    **TOKENS,
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
GROUPED: dict[str, Any] = {**PLAIN, "num_key_value_heads": 1}
"""Two heads of queries, one of keys and values."""
HEADS: dict[str, Any] = {**GROUPED, "head_dim": 8}
TIED_HEADS: dict[str, Any] = {**HEADS, "tie_word_embeddings": True}
"""The head is the embeddings."""
GPT: dict[str, Any] = {**TOKENS, "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
ROTATED: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}

DENSE: dict[str, dict[str, Any]] = {
    "apertus": GROUPED,
    "arcee": GROUPED,
    "biogpt": PLAIN,
    "bloom": {**TOKENS, "vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "codegen": {**GPT, "rotary_dim": 4, "n_ctx": 128},
    "cohere": {**GROUPED, "tie_word_embeddings": True},
    "cohere2": {**TIED_HEADS, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
    "ernie4_5": HEADS,
    "exaone4": {**GROUPED, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
    "falcon": {**PLAIN, "new_decoder_architecture": True, "num_kv_heads": 1, "alibi": False},
    "gemma": TIED_HEADS,
    "gemma2": {**TIED_HEADS, "sliding_window": 16},
    "gemma3_text": {**TIED_HEADS, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
    "glm": {**HEADS, "partial_rotary_factor": 0.5},
    "glm4": {**HEADS, "partial_rotary_factor": 0.5},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": {
        **TOKENS, "vocab_size": VOCABULARY, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
        "attention_types": [[["global", "local"], 1]], "window_size": 16, "max_position_embeddings": 128,
    },
    "gpt_neox": PLAIN,
    "gptj": {**GPT, "rotary_dim": 4},
    "granite": GROUPED,
    "helium": HEADS,
    "hunyuan_v1_dense": HEADS,
    "llama": GROUPED,
    "mistral": GROUPED,
    "ministral": {**HEADS, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
    "mpt": {**TOKENS, "vocab_size": VOCABULARY, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 128},
    "nemotron": HEADS,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": {**GROUPED, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
    "opt": {**PLAIN, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "persimmon": PLAIN,
    "phi": GROUPED,
    "phi3": GROUPED,
    "qwen2": GROUPED,
    "qwen3": HEADS,
    "seed_oss": HEADS,
    "smollm3": GROUPED,
    "stablelm": GROUPED,
    "starcoder2": GROUPED,
    "xglm": {
        **TOKENS, "vocab_size": VOCABULARY, "d_model": 16, "ffn_dim": 24, "num_layers": 2, "attention_heads": 2,
        "max_position_embeddings": 128,
    },
}  # fmt: skip

SMALL_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 8, "num_experts_per_tok": 2}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
"""Multi-head latent attention."""
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4,
}  # fmt: skip
"""A layer of gated linear attention and one of softmax attention."""

EXPERTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        **PLAIN, **LATENT, **SMALL_EXPERTS, "num_key_value_heads": 2, "n_routed_experts": 4, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "topk_method": "greedy",
    },
    "deepseek_v3": {
        **PLAIN, **LATENT, **SMALL_EXPERTS, "num_key_value_heads": 2, "n_routed_experts": 4, "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "dots1": {
        **HEADS, **SMALL_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1,
    },
    "ernie4_5_moe": {
        **HEADS, **SMALL_EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "flex_olmo": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": {
        **HEADS, **SMALL_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1, "partial_rotary_factor": 0.5,
    },
    "gpt_oss": {
        **HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": ROTATED,
    },
    "granitemoe": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoeshared": {
        **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 8,
    },
    "hunyuan_v1_moe": {**HEADS, "num_experts": 4, "moe_topk": 2},
    "jetmoe": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8},
    "llama4_text": {
        **HEADS, "intermediate_size": 8, "intermediate_size_mlp": 24, "num_local_experts": 4,
        "num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "attention_chunk_size": 64,
    },
    "minimax": {
        **HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "minimax_m2": {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 4},
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **GROUPED, **SMALL_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 12, "mlp_only_layers": [0],
    },
    "qwen3_moe": {**HEADS, **SMALL_EXPERTS, "num_experts": 4},
    "qwen3_next": {
        **HEADS, **SMALL_EXPERTS, **LINEAR, "num_experts": 4, "shared_expert_intermediate_size": 8,
        "partial_rotary_factor": 0.5,
    },
}  # fmt: skip

MAMBA: dict[str, Any] = {
    **TOKENS, "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "conv_kernel": 4,
    "time_step_rank": 2, "expand": 2,
}  # fmt: skip
HYBRID: dict[str, dict[str, Any]] = {
    "bamba": {
        **GROUPED, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1,
        "mamba_d_state": 4, "mamba_expand": 2, "mamba_chunk_size": 8,
    },
    "falcon_h1": {
        **HEADS, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4,
        "mamba_chunk_size": 8,
    },
    "falcon_mamba": MAMBA,
    "granitemoehybrid": {
        **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 8,
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1,
        "mamba_d_state": 4, "mamba_expand": 2, "mamba_chunk_size": 8,
    },
    "jamba": {
        **GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_d_conv": 4, "mamba_expand": 2,
        "mamba_dt_rank": 2, "use_mamba_kernels": False,
    },
    "lfm2": {
        **GROUPED, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False, "conv_L_cache": 3,
    },
    "lfm2_moe": {
        **GROUPED, **SMALL_EXPERTS, "layer_types": ["conv", "full_attention"], "num_experts": 4, "num_dense_layers": 1,
    },
    "mamba": MAMBA,
    "mamba2": {
        **TOKENS, "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4,
        "num_heads": 4, "head_dim": 8, "n_groups": 1, "expand": 2, "chunk_size": 8,
    },
    "nemotron_h": {
        **HEADS, "layers_block_type": ["mamba", "moe", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 8,
        "n_groups": 1, "ssm_state_size": 4, "chunk_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 8, "moe_shared_expert_intermediate_size": 8, "n_group": 1, "topk_group": 1,
    },
    "olmo_hybrid": {**GROUPED, **LINEAR},
    "qwen3_5_text": {**HEADS, **LINEAR},
    "recurrent_gemma": {
        **GROUPED, "num_hidden_layers": 3, "lru_width": 16, "attention_window_size": 16, "conv1d_width": 4,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "rwkv": {
        **TOKENS, "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16,
        "intermediate_size": 24, "context_length": 128,
    },
    "xlstm": {
        **TOKENS, "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_heads": 2,
        "qk_dim_factor": 1.0, "chunk_size": 8,
    },
    "zamba2": {
        **PLAIN, "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"], "num_key_value_heads": 2,
        "mamba_d_state": 4, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_ngroups": 1, "n_mamba_heads": 4,
        "chunk_size": 8, "num_mem_blocks": 1, "hybrid_layer_ids": [1], "use_mem_rope": False,
    },
}  # fmt: skip

CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "projection_dim": 16,
}  # fmt: skip
SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip
HEADLESS: dict[str, Any] = {**SIGLIP, "vision_use_head": False}
PIXTRAL: dict[str, Any] = {
    "model_type": "pixtral", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "head_dim": 12, "image_size": 28, "patch_size": 14,
}  # fmt: skip
QWEN_TOWER: dict[str, Any] = {
    "depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "patch_size": 14, "out_hidden_size": 16,
    "num_position_embeddings": 16,
}  # fmt: skip
QWEN_TOKENS: dict[str, Any] = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}  # fmt: skip
SECTIONS: dict[str, Any] = {**ROTATED, "mrope_section": [1, 1, 2]}
"""Rotations by time, height and width."""

VISION: dict[str, dict[str, Any]] = {
    "aya_vision": {
        "text_config": {**TIED_HEADS, "model_type": "cohere2"}, "vision_config": SIGLIP, "image_token_index": IMAGE,
    },
    "gemma3": {
        "text_config": {
            **TIED_HEADS, "model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": HEADLESS, "mm_tokens_per_image": 4, "image_token_index": IMAGE,
    },
    "gemma3n": {
        "text_config": {
            **TIED_HEADS, "intermediate_size": [24, 24], "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 4, "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2,
            "layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.0, 0.0],
            "sliding_window": 16,
        },
        "vision_config": {"architecture": "test_efficientnet", "hidden_size": 64},
        "audio_config": {
            "hidden_size": 16, "conf_num_hidden_layers": 1, "conf_num_attention_heads": 2,
            "sscp_conv_channel_size": [4, 4],
        },
        "image_token_id": IMAGE,
    },
    "glm4v": {
        "text_config": {**HEADS, "rope_parameters": {**SECTIONS, "partial_rotary_factor": 1.0}},
        "vision_config": {
            "depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "patch_size": 14,
            "out_hidden_size": 16, "image_size": 28,
        },
        **QWEN_TOKENS,
    },
    "idefics3": {
        "text_config": {**GROUPED, "model_type": "llama"}, "image_token_id": IMAGE, "scale_factor": 2,
        "vision_config": {**SIGLIP, "model_type": "idefics3_vision"},
    },
    "internvl": {
        "text_config": {**GROUPED, "model_type": "qwen2"}, "image_token_id": IMAGE,
        "vision_config": {
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": [28, 28], "patch_size": [14, 14],
        },
    },
    "llama4": {
        "text_config": EXPERTS["llama4_text"], "image_token_index": IMAGE,
        "vision_config": {
            "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16,
            "projector_output_dim": 16, "pixel_shuffle_ratio": 0.5,
        },
    },
    "llava": {"text_config": {**GROUPED, "model_type": "llama"}, "vision_config": CLIP, "image_token_index": IMAGE},
    "llava_next": {
        "text_config": {**GROUPED, "model_type": "mistral"}, "vision_config": CLIP, "image_token_index": IMAGE,
        "image_grid_pinpoints": [[28, 56]],
    },
    "llava_onevision": {
        "text_config": {**GROUPED, "model_type": "qwen2"}, "vision_config": SIGLIP, "image_token_index": IMAGE,
        "video_token_index": VIDEO, "image_grid_pinpoints": [[28, 28]],
    },
    "mistral3": {
        "text_config": {**HEADS, "model_type": "mistral"}, "vision_config": PIXTRAL, "image_token_index": IMAGE,
    },
    "mllama": {
        "text_config": {**GROUPED, "cross_attention_layers": [1], "rope_parameters": ROTATED},
        "vision_config": {
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_global_layers": 1,
            "attention_heads": 2, "image_size": 28, "patch_size": 14, "vision_output_dim": 48,
            "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]], "max_num_tiles": 1,
        },
        "image_token_index": IMAGE,
    },
    "paligemma": {
        "text_config": {**TIED_HEADS, "model_type": "gemma"}, "vision_config": HEADLESS, "image_token_index": IMAGE,
        "projection_dim": 16,
    },
    "qwen2_5_vl": {
        "text_config": {**GROUPED, "rope_parameters": SECTIONS}, **QWEN_TOKENS,
        "vision_config": {**QWEN_TOWER, "fullatt_block_indexes": [1], "window_size": 28},
    },
    "qwen2_vl": {
        "text_config": {**GROUPED, "rope_parameters": SECTIONS}, **QWEN_TOKENS,
        "vision_config": {"depth": 2, "embed_dim": 24, "hidden_size": 16, "num_heads": 2, "patch_size": 14},
    },
    "qwen3_5": {"text_config": {**HEADS, **LINEAR}, "vision_config": QWEN_TOWER, **QWEN_TOKENS},
    "qwen3_5_moe": {
        "text_config": {
            **HEADS, **LINEAR, **SMALL_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 8,
        },
        "vision_config": QWEN_TOWER, **QWEN_TOKENS,
    },
    "qwen3_vl": {
        "text_config": {**HEADS, "rope_parameters": SECTIONS}, **QWEN_TOKENS,
        "vision_config": {**QWEN_TOWER, "depth": 3, "deepstack_visual_indexes": [0, 1, 2]},
    },
    "qwen3_vl_moe": {
        "text_config": {**HEADS, **SMALL_EXPERTS, "num_experts": 4, "rope_parameters": SECTIONS}, **QWEN_TOKENS,
        "vision_config": {**QWEN_TOWER, "depth": 3, "deepstack_visual_indexes": [0, 1, 2]},
    },
    "smolvlm": {
        "text_config": {**GROUPED, "model_type": "llama"}, "image_token_id": IMAGE, "scale_factor": 2,
        "vision_config": {**SIGLIP, "model_type": "smolvlm_vision"},
    },
}  # fmt: skip

ONE_FORM = (
    "gemma3n", "glm4v", "gpt_oss", "idefics3", "jetmoe", "llama4", "llama4_text", "qwen3_5", "qwen3_vl", "qwen3_vl_moe",
    "smolvlm",
)  # fmt: skip
"""Mixtures and vision-language models that transformers has in memory as they are published."""

FORMS: dict[str, tuple[Form, ...]] = {
    "bloom": ("no prefix",),
    "gpt2": ("no prefix",),
    "gpt_neox": ("native",),
    "llama": ("no prefix, one source", "bfloat16", "sharded"),
    "mixtral": ("native", "mixed", "bfloat16"),
    "qwen3_moe": ("native", "mixed"),
}
"""The forms of a family besides the hub's; that of every other mixture and vision-language model is `native`, unless
it has but one form."""

RENAMED_HYBRIDS = ("granitemoehybrid", "jamba", "lfm2_moe", "nemotron_h", "olmo_hybrid")
"""Hybrids whose tensors have other names in memory than on the hub."""

TOWERS = ("aya_vision", "gemma3", "llava", "llava_next", "llava_onevision", "paligemma")
"""Vision-language models whose published checkpoints, unlike those that `save_pretrained` writes today, have
`vision_tower.vision_model` in the names of the tower."""

TIED: tuple[str, ...] = ("llama", "qwen2", "qwen3_moe", "qwen2_5_vl")
"""Families in which the head is often the embeddings."""


def _tied(config: dict[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    inner = {} if text is None else {"text_config": {**text, "tie_word_embeddings": True}}
    return {**config, **inner, "tie_word_embeddings": True}


def layouts() -> list[Layout]:
    """The whole table, by kind and family."""
    found: list[Layout] = []
    groups = (
        ("dense", DENSE, ()),
        ("mixture of experts", EXPERTS, ("native",)),
        ("hybrid", HYBRID, ()),
        ("vision-language", VISION, ("native",)),
    )
    for kind, families, usual in groups:
        for family, config in families.items():
            vision = kind == "vision-language"
            forms: tuple[Form, ...] = ("hub", *FORMS.get(family, usual))
            if family in RENAMED_HYBRIDS:
                forms = ("hub", "native")
            if family in ONE_FORM:
                forms = ("hub",)
            found += [Layout(kind, family, form, config, vision) for form in forms]
            if family in TIED:
                found.append(Layout(kind, f"{family}, tied", "hub", _tied(config), vision))
            if family == "llama":
                found.append(Layout(kind, f"{family}, tied", "untied source", _tied(config), vision))
                found.append(Layout(kind, f"{family}, tied", "no prefix", _tied(config), vision))
    return found
