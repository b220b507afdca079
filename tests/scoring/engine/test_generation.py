"""Generated text is lm-eval's, string by string."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text

from evomerge.errors import InputError, TrialError
from evomerge.scoring.engine import generation, greedy
from evomerge.scoring.engine.generation import GenerationPlan, generate, plan_generation
from evomerge.scoring.engine.greedy import is_settled
from evomerge.scoring.engine.resident import ResidentLM
from evomerge.scoring.guard import undisturbed

from ..conftest import nudge, only_says, sentence

SHARED = Path(__file__).parents[3].parent / "shared" / "specialists"
LETTERS = "abcdefghijklmnopqrst"
SMALL = {"vocab_size": 258, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
LLAMA_LIKE = {
    **SMALL,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {**SMALL, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.4}),
    "gemma2": ("Gemma2", {**LLAMA_LIKE, "head_dim": 8, "sliding_window": 24, "final_logit_softcapping": 5.0}),
    "mistral": ("Mistral", {**LLAMA_LIKE, "sliding_window": 24}),
    "qwen3": ("Qwen3", {**LLAMA_LIKE, "head_dim": 8}),
    "llama": ("Llama", LLAMA_LIKE),
    "bloom": ("Bloom", {**SMALL, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.4}),
}
"""Learned positions; soft-capping and a window in every other layer; a window everywhere; alibi."""

WINDOWS = ("gemma2", "mistral")
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
ELSEWHERE: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {**SMALL, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "dynamic rope": ("Llama", {**LLAMA_LIKE, "rope_parameters": DYNAMIC}),
}


def build(family: str, settings: dict[str, Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = getattr(transformers, f"{family}Config")(**settings)
        return transformers.AutoModelForCausalLM.from_config(config).float().eval()


def asked(text: str, repeats: int = 1, **settings: Any) -> list[Any]:
    return [Instance("generate_until", {}, (text, {"until": ["\n"], "max_gen_toks": 12, **settings}), 0)] * repeats


def mixed() -> list[Any]:
    """Requests of many lengths, with long common starts, several stops and limits, equal ones among them."""
    start = sentence(5, 12)
    requests = [r for i in range(6) for r in asked(f"{start} {sentence(i, 1 + i)}", 1 + i % 2)]
    requests += [r for i in range(5) for r in asked(sentence(20 + i, 1 + 2 * i), until=["e", " t"], max_gen_toks=30)]
    return requests + asked("", until=["a"], max_gen_toks=5) + asked("b " * 300, until=[], max_gen_toks=7)


def together() -> list[Any]:
    """Requests that all start with the same 70 tokens, of different lengths after it."""
    return [asked(f"{sentence(5, 14)} {sentence(i, 1 + i)}")[0] for i in range(8)]


def lm_of(model: Any, tokenizer: Any, batch_size: int = 4) -> ResidentLM:
    with undisturbed():
        return ResidentLM(model, tokenizer, batch_size)


def theirs(lm: ResidentLM, requests: list[Any]) -> list[str]:
    """A plain HFLM's answers."""
    with undisturbed():
        other = HFLM(pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), batch_size=lm.batch_size)
        found: list[str] = other.generate_until(requests)
        return found


def ours(lm: ResidentLM, requests: list[Any]) -> tuple[list[str], GenerationPlan]:
    with undisturbed():
        plan = plan_generation(lm, requests)
        return generate(lm, plan), plan


def decoded_here(lm: ResidentLM, plan: GenerationPlan) -> bool:
    return bool(lm.greedy) and None not in plan.prompts


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_llama_writes_what_it_writes_in_lm_eval(model: Any, tokenizer: Any, batch_size: int) -> None:
    lm, requests = lm_of(model, tokenizer, batch_size), mixed()
    texts, plan = ours(lm, requests)
    assert texts == theirs(lm, requests)
    assert decoded_here(lm, plan)
    assert len(set(texts)) > 8
    assert plan.tokens == [0] * len(requests)
    nudge(model)
    again = generate(lm, plan)
    assert again == theirs(lm, requests)
    assert again != texts


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_write_what_they_write_in_lm_eval(family: str, tokenizer: Any) -> None:
    lm, requests = lm_of(build(*FAMILIES[family]), tokenizer), mixed()
    texts, plan = ours(lm, requests)
    assert texts == theirs(lm, requests)
    assert decoded_here(lm, plan)
    assert len(set(texts)) > 8
    texts, plan = ours(lm, together())
    assert texts == theirs(lm, together())
    assert all(batch.shared > 60 or family in WINDOWS for batch in plan.batches)


@pytest.mark.parametrize("family", ELSEWHERE)
def test_what_cannot_be_decoded_here_is_left_to_lm_eval(family: str, tokenizer: Any) -> None:
    lm, requests = lm_of(build(*ELSEWHERE[family]), tokenizer), mixed()[3:9]
    texts, plan = ours(lm, requests)
    assert texts == theirs(lm, requests)
    assert plan.batches == []


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no specialists at {SHARED}")
def test_a_real_model_writes_what_it_writes_in_lm_eval() -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(SHARED / "base", dtype=torch.float32)
    lm = lm_of(model, transformers.AutoTokenizer.from_pretrained(SHARED / "base"), 8)
    rows = [json.loads(line) for line in (SHARED / "items" / "gsm8k_choice.jsonl").read_text().splitlines()[:20]]
    requests = [asked(row["context"], until=["\n\n", "?", "the"], max_gen_toks=40)[0] for row in rows]
    texts, plan = ours(lm, requests)
    assert texts == theirs(lm, requests)
    assert decoded_here(lm, plan)
    assert len(set(texts)) > 10


def test_a_stop_sequence_over_two_tokens_ends_a_row(model: Any, tokenizer: Any, passes: list[int]) -> None:
    """One that stands in the prompt does not."""
    only_says(model, tokenizer, LETTERS)
    lm = lm_of(model, tokenizer)
    (whole,), _ = ours(lm, asked("a cat", until=[], max_gen_toks=40))
    stop = next(whole[i : i + 2] for i in range(5, 38) if whole.find(whole[i : i + 2]) == i)
    plan = plan_generation(lm, asked("a cat", until=[stop], max_gen_toks=40))
    lm.greedy = True
    passes.clear()
    assert generate(lm, plan) == [whole[: whole.index(stop)]]
    assert len(passes) == whole.index(stop) + 2
    prompt = f"{stop} {stop}"
    (whole,), _ = ours(lm, asked(prompt, until=[], max_gen_toks=5))
    assert ours(lm, asked(prompt, until=[stop], max_gen_toks=5))[0] == [whole.split(stop)[0]]
    assert whole.split(stop)[0]


def test_rows_leave_the_batch(model: Any, tokenizer: Any, passes: list[int]) -> None:
    only_says(model, tokenizer, LETTERS)
    lm = lm_of(model, tokenizer, 8)
    requests = [asked(sentence(i, 4), until=[], max_gen_toks=n)[0] for i, n in enumerate((2, 2, 5, 9))]
    plan = plan_generation(lm, requests)
    lm.greedy = True
    passes.clear()
    generate(lm, plan)
    assert passes == [4, 4, 2, 2, 2, 1, 1, 1, 1]


def test_equal_requests_are_decoded_once_and_a_common_start_read_once(
    model: Any, tokenizer: Any, passes: list[int]
) -> None:
    only_says(model, tokenizer, LETTERS)
    lm, start = lm_of(model, tokenizer, 8), sentence(5, 12)
    plan = plan_generation(lm, asked(start + " cat", 3, until=[]) + asked(start + " doge", 2, until=[]))
    lm.greedy = True
    passes.clear()
    texts = generate(lm, plan)
    assert len(texts) == 5
    assert texts[0] == texts[1] == texts[2]
    assert passes == [1] + [2] * 12


@pytest.fixture
def passes(model: Any) -> Iterator[list[int]]:
    """The number of rows of each forward pass."""
    rows: list[int] = []
    hook = model.register_forward_pre_hook(lambda m, a, k: rows.append(len(k["input_ids"])), with_kwargs=True)
    yield rows
    hook.remove()


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 1.0},
        {"num_beams": 3},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 6},
    ],
    ids=str,
)
def test_what_is_not_plainly_greedy_is_lm_evals(model: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
    """Sampling draws the same numbers, with greedy requests before and after, and repeats that differ."""
    lm = lm_of(model, tokenizer)
    requests = asked("a cat") + asked("a dog", 4, **settings) + asked("a tree")
    texts, plan = ours(lm, requests)
    assert texts == theirs(lm, requests)
    assert [prompt is None for prompt in plan.prompts] == [False, True, True, True, True, False]
    assert (len(set(texts[1:5])) > 1) == ("do_sample" in settings)


def test_the_models_own_settings_count(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = lm_of(model, tokenizer)
    assert ours(lm, asked("a cat"))[1].batches
    monkeypatch.setattr(model.generation_config, "temperature", 0.7)  # does nothing without sampling
    assert ours(lm, asked("a cat"))[1].batches
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 1.7)
    texts, plan = ours(lm, asked("a cat"))
    assert texts == theirs(lm, asked("a cat"))
    assert not plan.batches


def test_an_end_of_text_that_the_model_does_not_know_is_lm_evals(model: Any, tokenizer: Any, monkeypatch: Any) -> None:
    """lm-eval then goes on after it, unless all rows of a batch have written it."""
    monkeypatch.setattr(model.generation_config, "eos_token_id", 70)
    lm, requests = lm_of(model, tokenizer), mixed()
    texts, plan = ours(lm, requests)
    assert texts == theirs(lm, requests)
    assert not plan.batches
    monkeypatch.setattr(model.generation_config, "eos_token_id", [1, 70])
    texts, plan = ours(lm, requests)
    assert texts == theirs(lm, requests)
    assert lm.greedy


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 1.0}, {"num_beams": 2}], ids=str)
def test_nan_fails_the_trial_and_changes_no_path(model: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
    lm, requests = lm_of(model, tokenizer), asked("a cat", **settings) + asked("a much longer cat", **settings)
    plan = plan_generation(lm, requests)
    kept = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    for _ in range(2):
        with pytest.raises(TrialError, match="NaN"), undisturbed():
            generate(lm, plan)
        assert lm.greedy is None
    with torch.no_grad():
        model.lm_head.weight.copy_(kept)
    with undisturbed():
        assert generate(lm, plan) == theirs(lm, requests)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(TrialError, match="NaN"), undisturbed():
        generate(lm, plan)


def test_a_model_that_decodes_otherwise_falls_back_for_good(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = greedy.Reply.text
    monkeypatch.setattr(greedy.Reply, "text", lambda reply: real(reply) + "!")
    lm, requests = lm_of(model, tokenizer), mixed()
    plan = plan_generation(lm, requests)
    with caplog.at_level(logging.WARNING, logger=generation.__name__):
        for _ in range(2):
            assert generate(lm, plan) == theirs(lm, requests)
    assert lm.greedy is False
    assert [record.message for record in caplog.records if record.name == generation.__name__] == [
        "lm-eval's own generation is used: greedy decoding gave other text for this model"
    ]


@pytest.mark.parametrize("wrong", [False, True])
def test_rounding_is_no_reason_to_fall_back(
    model: Any, tokenizer: Any, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 16 bits another text is accepted where each of its tokens is as good as the most likely one."""
    half = copy.deepcopy(model).bfloat16()
    real = greedy.Reply.text
    monkeypatch.setattr(greedy.Reply, "text", lambda reply: real(reply) + "!")  # as if a token had been another
    if wrong:
        step = greedy._Model.next
        monkeypatch.setattr(greedy._Model, "next", lambda self, *given: (step(self, *given) + 7) % 258)
    lm = lm_of(half, tokenizer)
    ours(lm, mixed())
    assert lm.greedy is not wrong


def test_the_plan_looks_at_no_weights(model: Any, tokenizer: Any) -> None:
    lm, requests = lm_of(model, tokenizer), mixed()
    kept = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    plan = plan_generation(lm, requests)
    model.load_state_dict(kept)
    assert generate(lm, plan) == theirs(lm, requests)


def test_wrong_arguments_are_refused_before_anything_is_generated(model: Any, tokenizer: Any) -> None:
    lm = lm_of(model, tokenizer)
    with pytest.raises(InputError, match="no generation argument 'do_smaple'; did you mean 'do_sample'"):
        plan_generation(lm, asked("a", do_smaple=True))
    with pytest.raises(InputError, match="max_gen_toks 512 leaves no room for a prompt: the model reads 512 tokens"):
        plan_generation(lm, asked("a", max_gen_toks=512))


def test_no_requests_no_text(model: Any, tokenizer: Any) -> None:
    assert ours(lm_of(model, tokenizer), [])[0] == []


@given(
    st.text("ab\n", max_size=8),
    st.text("ab\n", max_size=6),
    st.lists(st.text("ab\n", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_a_settled_text_is_cut_where_the_longer_one_is(text: str, more: str, until: list[str]) -> None:
    if is_settled(text, until):
        assert postprocess_generated_text(text, until, None) == postprocess_generated_text(text + more, until, None)


def test_a_text_is_settled_as_soon_as_it_can_be() -> None:
    assert is_settled("a\n", ["\n"])
    assert is_settled("a\n\n", ["\n\n"])
    assert is_settled("a\nb", ["\n\n", "\n"])
    assert not is_settled("a\n", ["\n\n", "\n"])
    assert not is_settled("a", ["\n"])
    assert not is_settled("a\n\ufffd", ["\n"])
