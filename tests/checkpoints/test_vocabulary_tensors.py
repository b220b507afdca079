"""The tensors that have a row for every token, in families that call them differently."""

from __future__ import annotations

import json

import pytest
import transformers
from safetensors.torch import load_file

from evomerge.checkpoints.vocabulary_tensors import vocabulary_axes, with_rows

TOKENS = 60
_STACK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": TOKENS}
_BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
         "max_position_embeddings": TOKENS}  # fmt: skip
FAMILIES = {
    "mamba": (
        "CausalLM",
        {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4},
        {"backbone.embeddings.weight": 0},
    ),
    "rwkv": (
        "CausalLM",
        {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 48},
        {"rwkv.embeddings.weight": 0, "head.weight": 0},
    ),
    "bart": ("Seq2SeqLM", _BART, {"model.shared.weight": 0, "final_logits_bias": 1}),
    "marian": (
        "Seq2SeqLM",
        {**_BART, "decoder_vocab_size": TOKENS, "pad_token_id": 0},
        {"model.shared.weight": 0, "final_logits_bias": 1},
    ),
    "t5": ("Seq2SeqLM", {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 48, "d_kv": 16}, {"shared.weight": 0}),
    # As many positions as tokens
    "gpt2": ("CausalLM", _GPT, {"transformer.wte.weight": 0}),
    "openai-gpt": ("CausalLM", _GPT, {"transformer.tokens_embed.weight": 0}),
    "gptj": (
        "CausalLM",
        {**_GPT, "rotary_dim": 8},
        {"transformer.wte.weight": 0, "lm_head.weight": 0, "lm_head.bias": 0},
    ),
    "falcon": ("CausalLM", _STACK, {"transformer.word_embeddings.weight": 0}),
    "gpt_neox": ("CausalLM", _STACK, {"gpt_neox.embed_in.weight": 0, "embed_out.weight": 0}),
    "bert": ("MaskedLM", _STACK, {"bert.embeddings.word_embeddings.weight": 0, "cls.predictions.bias": 0}),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_counts_tokens(kind, tmp_path):
    auto, settings, expected = FAMILIES[kind]
    config = transformers.AutoConfig.for_model(kind, vocab_size=TOKENS, **settings)
    getattr(transformers, f"AutoModelFor{auto}").from_config(config).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert vocabulary_axes(json.loads((tmp_path / "config.json").read_text()), stored) == expected


def test_names_tell_of_models_that_transformers_does_not_know():
    names = ["net.wte.weight", "lm_head.weight", "lm_head.bias", "net.0.weight"]
    expected = {"net.wte.weight": 0, "lm_head.weight": 0, "lm_head.bias": 0}
    assert vocabulary_axes({"model_type": "of-my-own", "vocab_size": 60}, names) == expected
    assert vocabulary_axes({}, names) == expected


def test_the_size_is_set_wherever_it_stands():
    config = {"vocab_size": 60, "decoder_vocab_size": 60, "phoneme_vocab_size": 8, "text_config": {"vocab_size": 60}}
    assert with_rows(config, 64) == {
        "vocab_size": 64, "decoder_vocab_size": 64, "phoneme_vocab_size": 8, "text_config": {"vocab_size": 64}
    }  # fmt: skip
    assert config["text_config"] == {"vocab_size": 60}
