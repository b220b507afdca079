"""What is known to go wrong when lm-eval is called thousands of times in one process, one test each."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import InputError
from evomerge.scoring.suite import Suite

from .conftest import Bench

ACC = {"s": {"task": "choice", "metric": "acc"}}


def batches(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of every forward pass from now on."""
    sizes: list[int] = []
    forward = type(model).forward

    def watched(self: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(input_ids))
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", watched)
    return sizes


@pytest.mark.parametrize("size", [1, 4, 16])
def test_the_batch_size_is_the_files_own(
    size: int, bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`simple_evaluate(batch_size=...)` does not reach a model that is already built, which then runs at 1; and an
    automatic size changes scores from run to run."""
    bench.text(n=40)
    slices = {"s": {"task": "text", "metric": "bits_per_byte"}}
    suite = Suite.build(bench.fitness(slices, batch_size=size), model, tokenizer)
    suite.score()  # the first time a few requests are asked one by one as well, to see that the answers are equal
    sizes = batches(model, monkeypatch)
    suite.score()
    assert max(sizes) == size
    assert sizes.count(size) >= len(sizes) - 2  # the last batch, and that of the texts that share a start


def test_no_cache_of_answers_or_requests_is_touched(
    bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer cache is not keyed by the weights, the request cache not by the generation arguments."""
    import lm_eval.api.model
    import lm_eval.api.task

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a cache was written")

    monkeypatch.setattr(lm_eval.api.task, "save_to_cache", refuse)
    monkeypatch.setattr(lm_eval.api.model.CachingLM, "__init__", refuse)
    read: list[bool] = []
    monkeypatch.setattr(lm_eval.api.task, "load_from_cache", lambda file_name, cache: read.append(cache))
    bench.choice()
    suite = Suite.build(bench.fitness(ACC), model, tokenizer)
    suite.score()
    suite.score("holdout")
    assert read == [False, False]


def test_generation_arguments_are_the_slices_own(bench: Bench, model: Any, tokenizer: Any) -> None:
    """Two slices over one task with other generation arguments: nothing is shared, nothing leaks."""
    bench.write()
    one = {"task": "write", "metric": "exact_match,first", "gen_kwargs": {"max_gen_toks": 2}}
    slices = {"one": one, "two": {**one, "gen_kwargs": "max_gen_toks=3,temperature=0.5,do_sample=true"}}
    suite = Suite.build(bench.fitness(slices), model, tokenizer)
    sources: list[Any] = [suite.slices[name].source for name in slices]
    found = [source.prepare("search").papers[0].instances[0].args[1] for source in sources]
    assert [f["max_gen_toks"] for f in found] == [2, 3]
    assert [f["do_sample"] for f in found] == [False, True]
    assert found[0]["until"] == ["\n"]


def test_a_local_task_does_not_wait_for_the_default_index(
    bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.scoring import tasks

    asked: list[bool] = []
    manager = tasks.TaskManager

    def watched(**kwargs: Any) -> Any:
        asked.append(kwargs["include_defaults"])
        return manager(**{**kwargs, "include_defaults": False})

    monkeypatch.setattr(tasks, "TaskManager", watched)
    bench.choice()
    Suite.build(bench.fitness(ACC), model, tokenizer)
    tasks.TaskLibrary([bench.tasks], ["choice", "hellaswag"])
    (bench.tasks / "mixed.yaml").write_text("group: mixed\ntask: [choice, hellaswag]\n")
    tasks.TaskLibrary([bench.tasks], ["mixed"])
    assert asked == [False, True, True]


def test_items_are_no_prefix(bench: Bench, model: Any, tokenizer: Any) -> None:
    """`limit` takes the first items of a file, which is often sorted."""
    bench.choice(n=60)
    fitness = bench.fitness({"s": {"task": "choice", "metric": "acc", "items": 10}})
    chosen = Suite.build(fitness, model, tokenizer).indices("s")["choice"]
    assert chosen == sorted(set(chosen))
    assert max(chosen) > 30


def test_lm_eval_bootstraps_nothing(bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.api.metrics

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("bootstrapped")

    monkeypatch.setattr(lm_eval.api.metrics, "bootstrap_stderr", refuse)
    monkeypatch.setattr(lm_eval.api.metrics, "stderr_for_metric", refuse)
    bench.text()
    bench.cloze()
    slices = {"t": {"task": "text", "metric": "word_perplexity"}, "c": {"task": "cloze", "metric": "perplexity"}}
    scores = Suite.build(bench.fitness(slices), model, tokenizer).score()
    assert all(score.stderr is not None and score.stderr > 0 for score in scores.values())


def test_answers_do_not_pile_up(bench: Bench, model: Any, tokenizer: Any) -> None:
    """Answers left in the requests would be the next candidate's first ones."""
    bench.choice()
    bench.write()
    slices = {**ACC, "w": {"task": "write", "metric": "exact_match,first"}}
    suite = Suite.build(bench.fitness(slices), model, tokenizer)
    for _ in range(3):
        suite.score()
    for piece in suite.slices.values():
        source: Any = piece.source
        for paper in source.prepare("search").papers:
            assert all(i.resps == [] and i.filtered_resps == {} for i in paper.instances)


def test_scores_are_freed(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.choice()
    suite = Suite.build(bench.fitness(ACC), model, tokenizer)
    gone = weakref.ref(suite.score()["s"])
    gc.collect()
    assert gone() is None


def test_repeats_are_asked_again(bench: Bench, model: Any, tokenizer: Any, simple_evaluate: Any) -> None:
    bench.write(repeats=3)
    piece = {"task": "write", "metric": "exact_match,first"}
    suite = Suite.build(bench.fitness({"s": piece}), model, tokenizer)
    score = suite.score()["s"]
    answer = simple_evaluate("write", suite.indices("s"))
    assert score.value == answer["results"]["write"]["exact_match,first"]


def test_chat_templates_are_off_unless_asked_for(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.choice()
    piece = {"task": "choice", "metric": "acc", "num_fewshot": 1}
    slices = {
        "plain": piece,
        "chat": {**piece, "apply_chat_template": True},
        "turn": {**piece, "apply_chat_template": True, "fewshot_as_multiturn": False},
        "system": {**piece, "apply_chat_template": True, "system_instruction": "Be brief."},
    }
    suite = Suite.build(bench.fitness(slices), model, tokenizer)
    sources: dict[str, Any] = {name: piece.source for name, piece in suite.slices.items()}
    prompts = {name: source.prepare("search").papers[0].instances[0].args[0] for name, source in sources.items()}
    users = {name: prompt.count("[user]") for name, prompt in prompts.items()}
    assert users == {"plain": 0, "chat": 2, "turn": 1, "system": 2}
    assert prompts["system"].startswith("[system]Be brief.")


def test_a_leaf_without_the_metric_stops_at_the_start(bench: Bench, model: Any, tokenizer: Any) -> None:
    """lm-eval would pool the other leaves and say nothing."""
    bench.choice()
    bench.text()
    (bench.tasks / "mixed.yaml").write_text("group: mixed\ntask: [choice, text]\n")
    with pytest.raises(InputError, match=r"slices.s.metric: task 'text' has no metric 'acc'"):
        Suite.build(bench.fitness({"s": {"task": "mixed", "metric": "acc"}}), model, tokenizer)


def test_a_metric_that_is_declared_but_not_reported_stops_at_the_start(
    bench: Bench, model: Any, tokenizer: Any
) -> None:
    bench.choice()
    (bench.tasks / "own.py").write_text("def measure(doc, results):\n    return {'acc': 1.0}\n")
    path = bench.tasks / "choice.yaml"
    path.write_text(path.read_text() + "process_results: !function own.measure\n")
    fitness = bench.fitness({"s": {"task": "choice", "metric": "acc_norm"}})
    with pytest.raises(InputError, match="declares the metric 'acc_norm', but does not report it; use one of: acc"):
        Suite.build(fitness, model, tokenizer)


def test_a_task_that_draws_random_numbers_asks_what_was_dealt(bench: Bench, model: Any, tokenizer: Any) -> None:
    """lm-eval reads a task's documents anew each time, and some tasks shuffle their choices as they are read."""
    bench.choice()
    (bench.tasks / "shuffle.py").write_text(
        "import random, datasets\n"
        "def process(docs):\n"
        "    rows = [dict(d, tag=random.random()) for d in docs]\n"
        "    return datasets.Dataset.from_list(rows)\n"
    )
    path = bench.tasks / "choice.yaml"
    text = path.read_text().replace("{{question}}", "{{question}} {{tag}}")
    path.write_text(text + "process_docs: !function shuffle.process\n")
    suite = Suite.build(bench.fitness(ACC), model, tokenizer)
    source: Any = suite.slices["s"].source
    documents = source._documents["choice"]
    for split in ("search", "holdout"):
        prepared = source.prepare(split).papers[0]
        for index, question in zip(suite.indices("s", split)["choice"], prepared.questions, strict=True):
            assert question.document == documents[index]
            assert all(str(documents[index]["tag"]) in i.args[0] for i in question.instances)


# Local task files


def test_data_is_found_beside_the_yaml_wherever_one_stands(
    bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any
) -> None:
    """lm-eval looks in the current folder. Functions and includes work as in lm-eval."""
    bench.choice("deep", n=20)
    nested = bench.tasks / "nested"
    nested.mkdir()
    for name in ("deep.jsonl", "deep_shots.jsonl"):
        (bench.tasks / name).rename(nested / name)
    base = (bench.tasks / "deep.yaml").read_text().replace("task: deep\n", "")
    (bench.tasks / "deep.yaml").unlink()
    (nested / "_base").write_text(base)
    (nested / "deep.yaml").write_text("include: _base\ntask: deep\ndoc_to_text: !function words.ask\n")
    (nested / "words.py").write_text("def ask(doc):\n    return 'Asked: ' + doc['question']\n")
    (bench.tasks / "above.yaml").write_text("include: nested/_base\ntask: above\n")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    Path("deep.jsonl").write_text("not this one\n")
    slices = {name: {"task": name, "metric": "acc"} for name in ("deep", "above")}
    suite = Suite.build(bench.fitness(slices), model, tokenizer)
    assert suite.slices["deep"].counts["all"] == suite.slices["above"].counts["all"] == 20
    source: Any = suite.slices["deep"].source
    assert source.prepare("search").papers[0].instances[0].args[0].startswith("Asked: ")


def test_group_members_keep_their_own_folders(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.choice("one", n=12)
    bench.choice("two", n=12)
    (bench.tasks / "sub").mkdir()
    (bench.tasks / "two.yaml").rename(bench.tasks / "sub" / "two.yaml")
    for name in ("two.jsonl", "two_shots.jsonl"):
        (bench.tasks / name).rename(bench.tasks / "sub" / name)
    (bench.tasks / "pair.yaml").write_text("group: pair\ntask:\n- one\n- {task: two, num_fewshot: 1}\n")
    suite = Suite.build(bench.fitness({"s": {"task": "pair", "metric": "acc"}}), model, tokenizer)
    assert set(suite.indices("s", "all")) == {"one", "two"}
    assert {i.item.split("/")[0] for i in suite.score()["s"].items} == {"one", "two"}
