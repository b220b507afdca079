"""Scores equal those of `lm_eval.simple_evaluate` on the same items and the same weights."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

from evomerge.scoring.suite import Suite
from evomerge.types import SplitName

from .conftest import Bench, nudge, only_says

SPLITS: tuple[SplitName, ...] = ("search", "holdout", "all")

CASES = {
    "choice": ("choice", "acc", {}),
    "choice, normalised": ("choice", "acc_norm", {}),
    "choice, few-shot": ("choice", "acc", {"num_fewshot": 3}),
    "choice, chat": ("choice", "acc", {"num_fewshot": 2, "apply_chat_template": True}),
    "choice, one chat turn": (
        "choice",
        "acc_norm",
        {
            "num_fewshot": 2,
            "apply_chat_template": True,
            "fewshot_as_multiturn": False,
            "system_instruction": "Be brief.",
        },
    ),
    "text": ("text", "bits_per_byte", {}),
    "text, no second bos": ("text", "bits_per_byte", {"add_bos_token": False}),
    "text, bytes": ("text", "byte_perplexity", {}),
    "text, words": ("text", "word_perplexity", {}),
    "cloze": ("cloze", "perplexity", {}),
    "cloze, greedy": ("cloze", "acc", {}),
    "write": ("write", "exact_match,first", {}),
    "write, other filter": ("write", "exact_match,last", {"num_fewshot": 2}),
    "write, sampling": ("write", "exact_match,first", {"gen_kwargs": {"do_sample": True, "temperature": 1.0}}),
}


def with_options(fitness: Any, options: dict[str, Any]) -> Any:
    """Options as the fitness file hands them over."""
    from dataclasses import replace

    return replace(fitness, slices={k: replace(s, options=dict(options)) for k, s in fitness.slices.items()})


@pytest.mark.parametrize("case", CASES)
def test_a_task_scores_as_in_simple_evaluate(
    case: str, bench: Bench, model: Any, tokenizer: Any, simple_evaluate: Any
) -> None:
    task, metric, options = CASES[case]
    getattr(bench, task)()
    if task == "write":
        only_says(model, tokenizer, "01")
    fitness = with_options(bench.fitness({"s": {"task": task, "metric": metric}}), options)
    suite = Suite.build(fitness, model, tokenizer)
    for weights, splits in enumerate((SPLITS, SPLITS[:1])):
        for split in splits:
            score = suite.score(split)["s"]
            indices = suite.indices("s", split)
            answer = simple_evaluate(task, indices, **options)
            key = metric if "," in metric else f"{metric},none"
            # Loglikelihoods are summed in another order and precision; what is counted is equal.
            expected = pytest.approx(answer["results"][task][key], rel=1e-5)
            assert suite.info.slices["s"].show(score.value) == expected, (case, split, weights)
            assert len(score.items) == answer["n-samples"][task]["effective"] == len(indices[task])
            samples = [s for s in answer["samples"][task] if s["filter"] == key.split(",")[1]]
            raws = [list(s[key.split(",")[0]]) if task == "text" else s[key.split(",")[0]] for s in samples]
            numpy.testing.assert_allclose([item.raw for item in score.items], raws, rtol=1e-6)
        nudge(model)


def test_answers_without_a_filter_score_as_in_simple_evaluate(
    bench: Bench, model: Any, tokenizer: Any, simple_evaluate: Any
) -> None:
    """lm-eval then casts the right answer to the type of the model's."""
    short = {"until": ["\n"], "max_gen_toks": 1, "do_sample": False}
    bench.write(n=40, filter_list=None, generation_kwargs=short)
    only_says(model, tokenizer, "01")
    suite = Suite.build(bench.fitness({"s": {"task": "write", "metric": "exact_match"}}), model, tokenizer)
    score = suite.score()["s"].value
    assert 0 < score < 1
    assert score == simple_evaluate("write", suite.indices("s"))["results"]["write"]["exact_match,none"]


def test_the_cases_can_tell_scores_apart(bench: Bench, model: Any, tokenizer: Any) -> None:
    """The generated answers are right now and then: their equality above is not one of zeros."""
    bench.write(n=40)
    only_says(model, tokenizer, "01")
    fitness = bench.fitness({"s": {"task": "write", "metric": "exact_match,first"}})
    score = Suite.build(fitness, model, tokenizer).score("all")["s"]
    assert 0 < score.value < 1


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_is_pooled_as_in_simple_evaluate(
    by_size: bool, bench: Bench, model: Any, tokenizer: Any, simple_evaluate: Any
) -> None:
    bench.choice("small", n=9)
    bench.choice("large", n=33)
    rule = {"metric": "acc", "aggregation": "mean", "weight_by_size": by_size}
    (bench.tasks / "both.yaml").write_text(f"group: both\ntask: [small, large]\naggregate_metric_list: [{rule}]\n")
    suite = Suite.build(bench.fitness({"s": {"task": "both", "metric": "acc"}}), model, tokenizer)
    score = suite.score()["s"]
    answer = simple_evaluate("both", suite.indices("s"))
    assert score.value == answer["results"]["both"]["acc,none"]
    leaves = [answer["results"][leaf]["acc,none"] for leaf in ("small", "large")]
    assert leaves[0] != leaves[1]
    assert score.stderr is not None


def test_a_tag_is_pooled_by_size(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.choice("small", n=9, tag="pair")
    bench.choice("large", n=33, tag="pair")
    slices = {name: {"task": name, "metric": "acc"} for name in ("pair", "small", "large")}
    scores = Suite.build(bench.fitness(slices), model, tokenizer).score()
    n = {name: len(scores[name].items) for name in slices}
    assert n["pair"] == n["small"] + n["large"]
    hits = sum(scores[name].value * n[name] for name in ("small", "large"))
    assert scores["pair"].value == pytest.approx(hits / n["pair"], abs=1e-12)


def test_standard_errors_are_those_of_lm_eval(bench: Bench, model: Any, tokenizer: Any, simple_evaluate: Any) -> None:
    from lm_eval.api.metrics import mean_stderr

    bench.choice()
    suite = Suite.build(bench.fitness({"s": {"task": "choice", "metric": "acc"}}), model, tokenizer)
    score = suite.score("all")["s"]
    assert score.stderr == pytest.approx(mean_stderr([item.score for item in score.items]))
