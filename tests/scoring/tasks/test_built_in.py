"""lm-eval's own tasks: found by name, built from its index, with their data put in by hand (no hub here)."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from evomerge.errors import InputError
from evomerge.scoring.preflight import check_fitness
from evomerge.scoring.suite import Suite
from evomerge.scoring.tasks.built_in import built_in_names, is_built_in

from ..conftest import Bench, only_says, sentence

NAMES = ["gsm8k", "hellaswag", "mmlu", "mmlu_anatomy", "arc_easy", "wikitext", "ai2_arc", "math_word_problems"]


@pytest.mark.parametrize("name", NAMES)
def test_tasks_groups_and_tags_are_known(name: str) -> None:
    assert is_built_in(name)
    assert name in built_in_names()


def test_other_names_are_not() -> None:
    assert not any(is_built_in(name) for name in ("gsm8kk", "", "*", "../arc", "no_such_task"))


@pytest.mark.slow
def test_gsm8k_as_lm_eval_has_it(bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": sentence(i, 4), "answer": f"so it is\n#### {i % 2}"} for i in range(20)]
    data = datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split in ("train", "test")})
    monkeypatch.setattr(datasets, "load_dataset", lambda **kwargs: data)
    only_says(model, tokenizer, "01")
    piece = {
        "task": "gsm8k",
        "metric": "exact_match,flexible-extract",
        "num_fewshot": 2,
        "gen_kwargs": "max_gen_toks=4",
    }
    fitness = bench.fitness({"s": piece})
    check_fitness(fitness, [])
    with pytest.raises(InputError, match="write one of: exact_match,flexible-extract, exact_match,strict-match"):
        Suite.build(bench.fitness({"s": {**piece, "metric": "exact_match"}}), model, tokenizer)
    suite = Suite.build(fitness, model, tokenizer)
    source: Any = suite.slices["s"].source
    instance = source.prepare("search").tasks[0].instances[0]
    assert instance.args[0].count("Question: ") == 3
    assert instance.args[1]["max_gen_toks"] == 4
    assert 0 <= suite.score()["s"].value <= 1
