"""Equal to lm-eval's own class on every kind of architecture, by a shortcut or without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from evomerge.scoring.engine.resident import ResidentLM

from .asks import choices, hflm, letters, pairs, same, texts

WIDE = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
HEADS = {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 256}
GROUPED = {**WIDE, **HEADS, "num_key_value_heads": 2, "head_dim": 8}
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "gpt2": (
        "GPT2",
        {"vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3},
    ),
    "gemma2": (
        "Gemma2",
        {**GROUPED, "sliding_window": 16, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    ),
    "cohere": ("Cohere", {**GROUPED, "logit_scale": 0.25}),
    "granite": ("Granite", {**GROUPED, "logits_scaling": 4.0}),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 16}),
    "qwen3": ("Qwen3", GROUPED),
    "phi": ("Phi", {**WIDE, **HEADS}),
    "gpt_neo": ("GPTNeo", {**WIDE, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                           "window_size": 16, "max_position_embeddings": 256}),
    "bloom": ("Bloom", {"vocab_size": 258, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}),
    "falcon": ("Falcon", {**WIDE, "num_attention_heads": 4, "alibi": True, "max_position_embeddings": 256}),
    "mamba": ("Mamba", {**WIDE, "state_size": 4, "num_hidden_layers": 2}),
    "t5": ("T5", {"vocab_size": 258, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
                  "decoder_start_token_id": 1}),
}  # fmt: skip


def build(name: str) -> Any:
    kind, options = ARCHITECTURES[name]
    config = getattr(transformers, f"{kind}Config")(**options, **IDS)
    head = "ForConditionalGeneration" if kind == "T5" else "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = getattr(transformers, kind + head)(config).eval()
        with torch.no_grad():  # biases and norms that do nothing would hide what they should do
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_are_lm_evals(name: str, tokenizer: Any) -> None:
    model = build(name)
    lm = ResidentLM(model, tokenizer, batch_size=4)
    for requests in (choices(), letters(), pairs(), texts()):
        plan = lm.plan(requests)
        expected = hflm(model, tokenizer, requests)
        same(lm.answer(plan), expected)
        same(lm.answer(plan), expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    same(lm.answer(plan), hflm(model, tokenizer, requests))


TREES = {"llama", "gpt2", "gemma2", "cohere", "granite", "mistral", "qwen3", "phi"}
SELECTION = TREES | {"gpt_neo", "bloom", "falcon", "mamba"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shortcuts_are_kept_where_they_are_exact(name: str, tokenizer: Any) -> None:
    lm = ResidentLM(build(name), tokenizer, batch_size=4)
    lm.answer(lm.plan(choices()))
    assert (lm.shortcuts.selection, lm.shortcuts.trees) == (name in SELECTION, name in TREES)


@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_what_a_sliding_window_would_cut_has_a_row_of_its_own(name: str, tokenizer: Any) -> None:
    lm = ResidentLM(build(name), tokenizer, batch_size=4)
    short, long = (lm.plan(choices(4, words, 4)) for words in (0, 30))
    for plan in (short, long):
        lm.answer(plan)
    rows = [row for plan in (short, long) for row in plan.layout(lm).rows]
    assert all(row.longest <= 16 for row in rows if row.branched)
    assert any(row.branched for row in rows)
    assert any(row.longest > 16 for row in rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_models_keep_their_shortcuts(dtype: torch.dtype, tokenizer: Any) -> None:
    model = build("llama").to(dtype)
    lm = ResidentLM(model, tokenizer, batch_size=4)
    plan = lm.plan(choices())
    found = lm.answer(plan)
    assert lm.shortcuts.trees
    exact = hflm(model.float(), tokenizer, plan.requests)
    assert all(abs(a[0] - b[0]) < 0.02 * abs(b[0]) + 0.3 for a, b in zip(found, exact, strict=True))


def test_attention_that_takes_no_mask_gets_no_trees(tokenizer: Any) -> None:
    model = build("llama")
    model.config._attn_implementation = "flash_attention_2"
    assert not ResidentLM(model, tokenizer, batch_size=4).shortcuts.trees


def test_eager_attention_answers_the_same(tokenizer: Any) -> None:
    model = build("llama")
    model.set_attn_implementation("eager")
    lm = ResidentLM(model, tokenizer, batch_size=4)
    requests = choices()
    same(lm.answer(lm.plan(requests)), hflm(model, tokenizer, requests))
    assert lm.shortcuts.trees
