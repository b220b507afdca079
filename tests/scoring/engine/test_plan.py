"""Plans: prepared once and without weights, answered as lm-eval would; shortcuts are dropped where they differ."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import InputError
from evomerge.scoring.engine import forward, shortcuts
from evomerge.scoring.engine.resident import ResidentLM
from tests.scoring.conftest import nudge

from .asks import ask, choices, hflm, letters, pairs, same, texts

SHARED = Path(__file__).parents[3].parent / "shared" / "specialists"


@pytest.fixture
def lm(model: Any, tokenizer: Any) -> ResidentLM:
    return ResidentLM(model, tokenizer, batch_size=4)


REQUESTS = {"choices": choices, "letters": letters, "pairs": pairs, "texts": texts}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_plan_needs_no_weights_and_serves_every_candidate(kind: str, lm: Any, model: Any, tokenizer: Any) -> None:
    requests = REQUESTS[kind]()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    plan = lm.plan(requests)
    model.load_state_dict(kept)
    for seed in range(2):
        same(lm.answer(plan), hflm(model, tokenizer, requests))
        nudge(model, seed)


def test_equal_requests_are_one_and_answers_keep_the_order(lm: Any, model: Any, tokenizer: Any) -> None:
    requests = choices()
    mixed = requests[::-1] + requests[:3] * 2
    plan = lm.plan(mixed)
    found = lm.answer(plan)
    same(found, hflm(model, tokenizer, mixed))
    assert sum(map(len, plan.layout(lm).rows)) == sum(map(len, _rows(lm, requests)))
    assert found == lm.answer(plan)


def _rows(lm: Any, requests: list[Any]) -> Any:
    return lm.plan(requests).layout(lm).rows


def test_a_context_is_computed_once(lm: Any) -> None:
    requests = [ask("loglikelihood", "the old house " * 8, word) for word in ("red", "blue", "sings")]
    (row,) = _rows(lm, requests)
    assert len(row) == 1 + 8 * 14 + 2 + 3 + 4  # the first token, the context, each word less its last


def test_tokens_are_those_that_are_scored(lm: Any) -> None:
    assert lm.plan([ask("loglikelihood", "a", " red"), ask("loglikelihood", "", "red")]).tokens == [4, 3]
    assert lm.plan([ask("loglikelihood_rolling", "red" * 300)]).tokens == [901]


@pytest.mark.parametrize("length", [3, 510, 511, 512, 600, 1300])
def test_long_requests_are_cut_as_in_lm_eval(length: int, lm: Any, model: Any, tokenizer: Any) -> None:
    text = ("red blue cat " * 200)[:length]
    for requests in (
        [ask("loglikelihood_rolling", text)],
        [ask("loglikelihood", text, word) for word in (" red", " blue")],
    ):
        same(lm.answer(lm.plan(requests)), hflm(model, tokenizer, requests), within=2e-3)


def test_spaces_prefixes_and_bos_are_those_of_lm_eval(model: Any, tokenizer: Any) -> None:
    requests = [
        ask("loglikelihood", *given)
        for given in [("a  ", "b"), ("", "<s>red"), ("", "red"), ("<s>a", " b"), ("a\n", "\nb")]
    ]
    for bos in (None, True, False):
        lm = ResidentLM(model, tokenizer, 4, add_bos_token=bos)
        same(lm.answer(lm.plan(requests)), hflm(model, tokenizer, requests, add_bos_token=bos))


def test_a_text_without_tokens_weighs_nothing(model: Any, tokenizer: Any) -> None:
    lm = ResidentLM(model, tokenizer, 4, add_bos_token=False)
    plan = lm.plan([ask("loglikelihood_rolling", text) for text in ("", "red", "")])
    empty, red, last = lm.answer(plan)
    assert (empty, last) == (0, 0)
    assert red < 0
    assert plan.tokens == [0, 3, 0]
    assert lm.answer(lm.plan([])) == []


def test_what_no_model_can_answer_is_an_input_error(lm: Any, model: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="no token"):
        lm.plan([ask("loglikelihood", "a", "")])
    with pytest.raises(InputError, match="no token"):
        lm.plan([ask("loglikelihood", "", "")])
    with pytest.raises(InputError, match=r"prompt ' ' .*no token"):
        ResidentLM(model, tokenizer, 4, add_bos_token=False).plan([ask("loglikelihood", " ", "a")])
    with pytest.raises(InputError, match=r"600 tokens.*at most 512"):
        lm.plan([ask("loglikelihood", "a", "b" * 600)])
    with pytest.raises(ValueError, match="loglikelihood, loglikelihood_rolling"):
        lm.plan([*choices(1), *texts(1)])


def test_nan_answers_nan_and_proves_nothing(lm: Any, model: Any, tokenizer: Any) -> None:
    plan, text = lm.plan(choices()), lm.plan(texts())
    kept = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    assert all(value != value for value, _ in lm.answer(plan))
    assert all(value != value for value in lm.answer(text))
    assert lm.shortcuts.trees
    with torch.no_grad():
        model.lm_head.weight.copy_(kept)
    same(lm.answer(plan), hflm(model, tokenizer, plan.requests))


def test_impossible_answers_are_minus_infinity(lm: Any, model: Any, tokenizer: Any) -> None:
    """A model that gives a token no probability at all is right about that, and keeps its shortcuts."""

    def never(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        logits[..., tokenizer("a", add_special_tokens=False).input_ids] = float("-inf")
        return logits

    requests = [*choices(), ask("loglikelihood", "the", " cat")]
    plan = lm.plan(requests)
    hook = model.lm_head.register_forward_hook(never)
    try:
        found, expected = lm.answer(plan), hflm(model, tokenizer, requests)
    finally:
        hook.remove()
    assert [a[0] for a in found if a[0] == float("-inf")] == [a[0] for a in expected if a[0] == float("-inf")]
    assert found[-1][0] == float("-inf")
    assert lm.shortcuts.trees


class Caught(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def warnings() -> Any:
    handler = Caught()
    shortcuts.log.addHandler(handler)
    yield handler.lines
    shortcuts.log.removeHandler(handler)


@pytest.mark.parametrize("how", ["differs", "fails"])
def test_trees_that_are_not_exact_are_given_up(
    how: str, lm: Any, model: Any, tokenizer: Any, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(ends: torch.Tensor, model: Any) -> torch.Tensor:
        if how == "fails":
            raise TypeError("no such argument")
        size = ends.shape[1]
        return torch.ones(len(ends), 1, size, size, dtype=torch.bool).tril()

    monkeypatch.setattr(forward, "_mask", wrong)
    plan = lm.plan(choices())
    for _ in range(2):
        same(lm.answer(plan), hflm(model, tokenizer, plan.requests))
    assert (lm.shortcuts.selection, lm.shortcuts.trees) == (True, False)
    assert len(warnings) == 1
    assert "LlamaForCausalLM" in warnings[0]
    assert "share a row" in warnings[0]


def _without_selection(lm: Any, model: Any, tokenizer: Any, requests: list[Any], warnings: list[str]) -> None:
    plan = lm.plan(requests)
    for _ in range(2):
        same(lm.answer(plan), hflm(model, tokenizer, requests))
    assert (lm.shortcuts.selection, lm.shortcuts.trees) == (False, False)
    assert "lm-eval's own path" in warnings[-1]


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_head_that_looks_at_the_whole_sequence_gets_it(
    kind: str, lm: Any, model: Any, tokenizer: Any, warnings: list[str]
) -> None:
    hook = model.lm_head.register_forward_hook(lambda _, given, out: out * (1 + given[0].shape[1] / 100))
    try:
        _without_selection(lm, model, tokenizer, REQUESTS[kind](), warnings)
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_model_that_passes_its_output_embeddings_by_takes_lm_evals_path(
    kind: str, lm: Any, model: Any, tokenizer: Any, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "get_output_embeddings", torch.nn.Identity)
    _without_selection(lm, model, tokenizer, REQUESTS[kind](), warnings)


def test_rows_longer_than_any_before_are_checked_again(tokenizer: Any, warnings: list[str]) -> None:
    """GPT-Neo's local layers cut a row at 16 nodes, whatever mask they are given: nothing to see in short rows."""
    from .test_architectures import build

    model = build("gpt_neo")
    lm = ResidentLM(model, tokenizer, batch_size=4)
    short = [ask("loglikelihood", "the ", word) for word in ("red", "blue")]
    long = [ask("loglikelihood", "the river sings slowly ", word) for word in ("red", "blue")]
    same(lm.answer(lm.plan(short)), hflm(model, tokenizer, short))
    assert lm.shortcuts.trees
    same(lm.answer(lm.plan(long)), hflm(model, tokenizer, long))
    assert not lm.shortcuts.trees
    assert len(warnings) == 1


def test_a_failure_after_the_check_is_the_candidates(lm: Any, model: Any) -> None:
    plan = lm.plan(choices())
    lm.answer(plan)

    def fail(*_: Any) -> None:
        raise RuntimeError("lost")

    hook = model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="lost"):
            lm.answer(plan)
    finally:
        hook.remove()
    assert lm.shortcuts.trees


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no specialists at {SHARED}")
@pytest.mark.parametrize(
    ("file", "items"), [("shakespeare_choice", 10), ("grammar_pairs", 60), ("french_text", 12), ("gsm8k_text", 12)]
)
def test_real_items_on_real_checkpoints(file: str, items: int) -> None:
    import json

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(SHARED / "base", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "base")
    rows = [json.loads(line) for line in (SHARED / "items" / f"{file}.jsonl").read_text().splitlines()[:items]]
    if "choices" in rows[0]:
        requests = [ask("loglikelihood", row["context"], choice) for row in rows for choice in row["choices"]]
    elif "good" in rows[0]:
        requests = [ask("loglikelihood", "", row[key]) for row in rows for key in ("good", "bad")]
    else:
        requests = [ask("loglikelihood_rolling", row["text"]) for row in rows]
    lm = ResidentLM(model, tokenizer, batch_size=16)
    same(lm.answer(lm.plan(requests)), hflm(model, tokenizer, requests))
    assert lm.shortcuts.trees
