"""The configuration of a stack tells of each layer what it was, or the stack is refused."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.errors import InputError
from evomerge.merging.disk.stream import merge
from evomerge.merging.plan.layer_settings import follow_layers
from evomerge.recipe.mergekit import parse_recipe

_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SMALL = {"vocab_size": 32,
          "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
          "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}  # fmt: skip
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "n_routed_experts": 2, "n_group": 1,
            "topk_group": 1, "n_shared_experts": 1, "shared_expert_intermediate_size": 8}  # fmt: skip
_MAMBA = {"mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}
GROW, SHRINK, SWAP = [[0, 3], [1, 4]], [[0, 2], [3, 4]], [[0, 1], [2, 3], [1, 2], [3, 4]]
FULL, SLIDING = "full_attention", "sliding_attention"


def stacked(tmp_path, kind, ranges, **config):
    """The configuration of a stack of one model, merged and loaded without a complaint of transformers."""
    torch.manual_seed(0)
    settings = {**_SMALL, **config} if kind not in ("gpt2", "gpt_neo") else config
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **_TOKENS, **settings)).save_pretrained(tmp_path / "a")
    slices = "".join(f"\n- sources: [{{model: {tmp_path / 'a'}, layer_range: {span}}}]" for span in ranges)
    recipe = parse_recipe(f"merge_method: passthrough\nslices:{slices}", "recipe.yaml")
    out = merge(recipe, tmp_path / "out", copy_tokenizer=False)
    _, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return json.loads((out / "config.json").read_text())


@pytest.mark.parametrize(
    ("kind", "config", "ranges", "expected"),
    [
        ("gpt2", {"n_layer": 4, "n_embd": 16, "n_head": 2, "vocab_size": 32}, GROW, {"n_layer": 6}),
        ("glm4_moe", {**_EXPERTS, "first_k_dense_replace": 1}, GROW, {"first_k_dense_replace": 1}),
        ("glm4_moe", {**_EXPERTS, "first_k_dense_replace": 1}, [[1, 3]], {"first_k_dense_replace": 0}),
        ("glm4_moe", {**_EXPERTS, "first_k_dense_replace": 2}, SHRINK, {"first_k_dense_replace": 2}),
        ("qwen3_moe", {**_EXPERTS, "decoder_sparse_step": 2}, GROW,
         {"decoder_sparse_step": 1, "mlp_only_layers": [0, 2, 4]}),
        ("qwen2_moe", {**_EXPERTS, "mlp_only_layers": [1]}, SWAP, {"mlp_only_layers": [2]}),
        ("gemma2", {}, SHRINK, {"layer_types": [SLIDING, FULL, FULL]}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 4}, GROW,
         {"layer_types": [FULL, FULL, SLIDING, FULL, SLIDING, SLIDING]}),
        ("llama4_text", {"num_local_experts": 2, "intermediate_size_mlp": 24, "interleave_moe_layer_step": 2}, SHRINK,
         {"moe_layers": [1, 2], "no_rope_layers": [1, 1, 0]}),
        ("lfm2", {"full_attn_idxs": [1, 3]}, SWAP, {"layer_types": ["conv", "conv", FULL, FULL]}),
        ("jamba", {**_MAMBA, **_EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
                   "expert_layer_offset": 0}, [[1, 4]], {"attn_layer_period": 2, "attn_layer_offset": 0}),
        ("gpt_neo", {"vocab_size": 32, "hidden_size": 16, "num_layers": 4, "num_heads": 2, "window_size": 4,
                     "attention_types": [[["global", "local"], 2]]}, SHRINK,
         {"num_layers": 3, "attention_layers": ["global", "local", "local"]}),
    ],
)  # fmt: skip
def test_settings_on_layers_follow_them(kind, config, ranges, expected, tmp_path):
    written = stacked(tmp_path, kind, ranges, **config)
    assert {key: written[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("kind", "config", "ranges"),
    [
        ("deepseek_v2", {"first_k_dense_replace": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
                         "qk_nope_head_dim": 4, "v_head_dim": 8, **_EXPERTS}, GROW),
        ("jamba", {**_MAMBA, **_EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1}, SHRINK),
        ("ernie4_5_moe", {"moe_num_experts": 2, "moe_k": 1, "moe_intermediate_size": 8, "moe_layer_start_index": 1,
                          "moe_layer_interval": 2}, GROW),
    ],
)  # fmt: skip
def test_a_stack_that_a_rule_cannot_describe_is_refused(kind, config, ranges, tmp_path):
    with pytest.raises(InputError, match=r"layer \d of the stack would not be what it is as layer \d: ") as caught:
        stacked(tmp_path, kind, ranges, **config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def followed(config, ranges, **others):
    result = json.loads(json.dumps(config))
    follow_layers(result, config, [(others.get(name, config), *span) for name, *span in ranges])
    return result


def test_a_model_that_transformers_does_not_know_has_its_lists_followed():
    config = {"model_type": "own", "num_hidden_layers": 3, "layer_kinds": ["x", "y", "z"], "moe_layers": [0, 2]}
    assert followed(config, [("a", 0, 2), ("a", 1, 2)]) == {
        "model_type": "own",
        "num_hidden_layers": 4,
        "layer_kinds": ["x", "y", "y", "z"],
        "moe_layers": [0, 3],
    }


def test_layers_of_two_models_bring_their_own_entries():
    config = {"model_type": "own", "num_hidden_layers": 2, "layer_kinds": ["x", "y"]}
    other = {**config, "layer_kinds": ["X", "Y"]}
    assert followed(config, [("a", 0, 1), ("b", 1, 1)], b=other)["layer_kinds"] == ["x", "Y"]


def test_a_configuration_without_a_number_of_layers_gets_none():
    config = {"model_type": "own", "encoder_layers": 3, "decoder_layers": 3}
    assert followed(config, [("a", 0, 3)]) == config
    assert followed({"model_type": "own"}, [("a", 0, 1)]) == {"model_type": "own"}


def test_both_names_of_one_number_are_set():
    config = {"model_type": "own", "n_layer": 2, "num_hidden_layers": 2}
    assert followed(config, [("a", 0, 2), ("a", 0, 1)]) == {"model_type": "own", "n_layer": 3, "num_hidden_layers": 3}
