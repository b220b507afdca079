"""What is known to go wrong when lm-eval 0.4.13 is called thousands of times in one process.

1. `simple_evaluate(batch_size=...)` does not reach a model that is already built.
2. Every call reseeds the global random generators.
3. The cache of answers is not keyed by the weights.
4. The cache of requests is not keyed by the generation arguments.
5. Tasks that are named are built again, and their data read again, at every call.
6. `limit` takes the first items.
7. 100,000 bootstrap resamples by default.
8. `batch_size=auto` changes scores from run to run.
9. Objects stay alive.
10. Chat templates are off by default, and scores move with them.
11. A group can lack a metric silently.
12. Logits of all positions are computed, and a shared context once for every choice.
"""

from __future__ import annotations

import copy
import gc
import random
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import InputError
from evomerge.scoring.suite import Suite

from .conftest import Bench, nudge, sentence

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
def test_trap_01_the_batch_size_is_the_files_own(
    size: int, bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval's model would run at batch size 1."""
    bench.text(n=40)
    slices = {"s": {"task": "text", "metric": "bits_per_byte"}}
    suite = Suite.build(bench.fitness(slices, batch_size=size), model, tokenizer)
    suite.score()  # the first time a few requests are asked one by one as well, to see that the answers are equal
    sizes = batches(model, monkeypatch)
    suite.score()
    assert max(sizes) == size
    assert sizes.count(size) >= len(sizes) - 2  # the last batch, and that of the texts that share a start


def test_trap_02_nobody_elses_random_numbers_change(bench: Bench, model: Any, tokenizer: Any) -> None:
    """And sampling starts at the same numbers for every candidate."""
    bench.write()
    piece = {"task": "write", "metric": "exact_match,first", "gen_kwargs": {"do_sample": True, "temperature": 1.0}}
    suite = Suite.build(bench.fitness({"s": piece}), model, tokenizer)

    def drawn(between: Any) -> list[float]:
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        between()
        return [random.random(), float(np.random.random()), float(torch.rand(()))]

    found = []
    assert drawn(lambda: found.append(suite.score())) == drawn(lambda: None)
    torch.manual_seed(99)
    assert suite.score() == found[0]


def test_trap_03_no_candidate_gets_the_answers_of_another(
    bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.api.model

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("answers are kept")

    monkeypatch.setattr(lm_eval.api.model.CachingLM, "__init__", refuse)
    bench.text()
    suite = Suite.build(bench.fitness({"s": {"task": "text", "metric": "bits_per_byte"}}), model, tokenizer)
    first = suite.score()
    nudge(model)
    other = suite.score()
    assert all(a.score != b.score for a, b in zip(first["s"].items, other["s"].items, strict=True))
    fresh = Suite.build(bench.fitness({"s": {"task": "text", "metric": "bits_per_byte"}}), model, tokenizer)
    assert fresh.score() == other


def test_trap_04_no_cache_of_requests_is_touched(
    bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.api.task

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a cache was written")

    monkeypatch.setattr(lm_eval.api.task, "save_to_cache", refuse)
    read: list[bool] = []
    monkeypatch.setattr(lm_eval.api.task, "load_from_cache", lambda file_name, cache: read.append(cache))
    bench.choice()
    suite = Suite.build(bench.fitness(ACC), model, tokenizer)
    suite.score()
    suite.score("holdout")
    assert read == [False, False]


def test_trap_04_generation_arguments_are_the_slices_own(bench: Bench, model: Any, tokenizer: Any) -> None:
    """Two slices over one task with other generation arguments: nothing is shared, nothing leaks."""
    bench.write()
    one = {"task": "write", "metric": "exact_match,first", "gen_kwargs": {"max_gen_toks": 2}}
    slices = {"one": one, "two": {**one, "gen_kwargs": "max_gen_toks=3,temperature=0.5,do_sample=true"}}
    suite = Suite.build(bench.fitness(slices), model, tokenizer)
    sources: list[Any] = [suite.slices[name].source for name in slices]
    found = [source.prepare("search").tasks[0].instances[0].args[1] for source in sources]
    assert [f["max_gen_toks"] for f in found] == [2, 3]
    assert [f["do_sample"] for f in found] == [False, True]
    assert found[0]["until"] == ["\n"]


def test_trap_05_tasks_are_built_and_data_is_read_once(
    bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from lm_eval.api.task import ConfigurableTask

    counts = {"tasks": 0, "data": 0, "requests": 0}

    def counted(owner: Any, name: str, key: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[key] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(ConfigurableTask, "__init__", "tasks")
    counted(datasets, "load_dataset", "data")
    counted(ConfigurableTask, "build_all_requests", "requests")
    bench.choice()
    suite = Suite.build(bench.fitness(ACC), model, tokenizer)
    built = dict(counts)
    assert (built["tasks"], built["data"]) == (1, 1)
    for _ in range(3):
        suite.score()
    assert counts == built


def test_trap_05_a_local_task_does_not_wait_for_the_default_index(
    bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.scoring.tasks import library as tasks

    asked: list[bool] = []
    manager = tasks.TaskManager

    def watched(**kwargs: Any) -> Any:
        asked.append(kwargs["include_defaults"])
        return manager(**{**kwargs, "include_defaults": False})

    monkeypatch.setattr(tasks, "TaskManager", watched)
    bench.choice()
    Suite.build(bench.fitness(ACC), model, tokenizer)
    tasks.TaskLibrary(bench.fitness(ACC), ["choice", "hellaswag"])
    (bench.tasks / "mixed.yaml").write_text("group: mixed\ntask: [choice, hellaswag]\n")
    tasks.TaskLibrary(bench.fitness(ACC), ["mixed"])
    assert asked == [False, True, True]


def test_trap_06_items_are_no_prefix(bench: Bench, model: Any, tokenizer: Any) -> None:
    """`limit` takes the first items of a file, which is often sorted."""
    bench.choice(n=60)
    fitness = bench.fitness({"s": {"task": "choice", "metric": "acc", "items": 10}})
    chosen = Suite.build(fitness, model, tokenizer).indices("s")["choice"]
    assert chosen == sorted(set(chosen))
    assert max(chosen) > 30


def test_trap_07_lm_eval_bootstraps_nothing(
    bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("size", ["auto", "auto:4", 0, -1, 2.5])
def test_trap_08_the_batch_size_is_one_number(size: Any, bench: Bench) -> None:
    with pytest.raises(InputError, match=r"fitness.yaml:\d+: batch_size: "):
        bench.fitness(ACC, batch_size=size)


def test_trap_08_every_run_has_the_same_batches(
    bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.text(n=40)
    slices = {"s": {"task": "text", "metric": "bits_per_byte"}}
    sizes, runs = batches(model, monkeypatch), []
    for _ in range(2):
        suite = Suite.build(bench.fitness(slices), model, tokenizer)
        first, second = suite.score(), suite.score()
        assert first == second
        runs.append((first, list(sizes)))
        sizes.clear()
    assert runs[0] == runs[1]


def test_trap_09_answers_do_not_pile_up(bench: Bench, model: Any, tokenizer: Any) -> None:
    """Answers left in the requests would be the next candidate's first ones."""
    bench.choice()
    bench.write()
    slices = {**ACC, "w": {"task": "write", "metric": "exact_match,first"}}
    suite = Suite.build(bench.fitness(slices), model, tokenizer)
    for _ in range(3):
        suite.score()
    for piece in suite.slices.values():
        source: Any = piece.source
        for task in source.prepare("search").tasks:
            assert all(i.resps == [] and i.filtered_resps == {} for i in task.instances)


def test_trap_09_scores_and_models_are_freed(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.choice()
    bench.write()
    slices = {**ACC, "w": {"task": "write", "metric": "exact_match,first"}}
    passed = copy.deepcopy(model)
    suite = Suite.build(bench.fitness(slices), passed, tokenizer)
    gone = weakref.ref(suite.score()["s"])
    gc.collect()
    assert gone() is None
    freed = weakref.ref(passed)
    del suite, passed
    gc.collect()
    assert freed() is None


def test_trap_10_chat_templates_are_off_unless_asked_for(bench: Bench, model: Any, tokenizer: Any) -> None:
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
    prompts = {name: source.prepare("search").tasks[0].instances[0].args[0] for name, source in sources.items()}
    users = {name: prompt.count("[user]") for name, prompt in prompts.items()}
    assert users == {"plain": 0, "chat": 2, "turn": 1, "system": 2}
    assert prompts["system"].startswith("[system]Be brief.")


def test_trap_11_a_leaf_without_the_metric_stops_at_the_start(bench: Bench, model: Any, tokenizer: Any) -> None:
    """lm-eval would pool the other leaves and say nothing."""
    bench.choice()
    bench.text()
    (bench.tasks / "mixed.yaml").write_text("group: mixed\ntask: [choice, text]\n")
    with pytest.raises(InputError, match=r"slices.s.metric: task 'text' has no metric 'acc'"):
        Suite.build(bench.fitness({"s": {"task": "mixed", "metric": "acc"}}), model, tokenizer)


def test_trap_11_a_metric_that_is_declared_but_not_reported_stops_at_the_start(
    bench: Bench, model: Any, tokenizer: Any
) -> None:
    bench.choice()
    (bench.tasks / "own.py").write_text("def measure(doc, results):\n    return {'acc': 1.0}\n")
    path = bench.tasks / "choice.yaml"
    path.write_text(path.read_text() + "process_results: !function own.measure\n")
    fitness = bench.fitness({"s": {"task": "choice", "metric": "acc_norm"}})
    with pytest.raises(InputError, match="declares the metric 'acc_norm', but does not report it; use one of: acc"):
        Suite.build(fitness, model, tokenizer)


class Counted:
    """Tokens that go through the model, and positions whose logits it computes."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens, self.logits, self.largest = 0, 0, 0
        forward, head = type(model).forward, model.lm_head.forward

        def watched(own: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
            self.tokens += input_ids.numel()
            return forward(own, input_ids, *args, **kwargs)

        def projected(hidden: Any) -> Any:
            rows = hidden.shape[:-1].numel()
            self.logits, self.largest = self.logits + rows, max(self.largest, rows)
            return head(hidden)

        monkeypatch.setattr(type(model), "forward", watched)
        monkeypatch.setattr(model.lm_head, "forward", projected)


def asked(bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Counted, list[Any]]:
    """What one candidate costs on 12 items of a long context and three short choices, and their requests."""
    rows = [
        {"question": f"{i} {sentence(i, 40)}", "options": ["red", "blue", "green"], "gold": i % 3} for i in range(24)
    ]
    bench.choice()
    bench.data("choice.jsonl", rows)
    suite = Suite.build(bench.fitness(ACC), model, tokenizer)
    suite.score()  # the first time a few requests are asked one by one as well, to see that the answers are equal
    counted = Counted(model, monkeypatch)
    suite.score()
    source: Any = suite.slices["s"].source
    return counted, source.prepare("search").tasks[0].instances


def test_trap_12_logits_are_computed_only_where_they_count(
    bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, requests = asked(bench, model, tokenizer, monkeypatch)
    scored = sum(len(tokenizer(i.args[1], add_special_tokens=False).input_ids) for i in requests)
    assert 0 < counted.logits <= scored < counted.tokens / 3


def test_trap_12_a_context_goes_through_the_model_once(
    bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, requests = asked(bench, model, tokenizer, monkeypatch)

    def size(text: str) -> int:
        return len(tokenizer(text).input_ids)

    contexts = {i.args[0] for i in requests}
    choices = sum(size(i.args[1]) for i in requests)
    assert len(requests) == 3 * len(contexts)
    once = sum(map(size, contexts)) + choices
    assert counted.tokens < 1.1 * once  # some padding
    assert 3 * sum(map(size, contexts)) > 2.2 * once


# Beyond the list


def test_repeats_are_asked_again(bench: Bench, model: Any, tokenizer: Any, simple_evaluate: Any) -> None:
    bench.write(repeats=3)
    piece = {"task": "write", "metric": "exact_match,first"}
    suite = Suite.build(bench.fitness({"s": piece}), model, tokenizer)
    score = suite.score()["s"]
    answer = simple_evaluate("write", suite.indices("s"))
    assert score.value == answer["results"]["write"]["exact_match,first"]


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
        prepared = source.prepare(split).tasks[0]
        for index, doc in zip(suite.indices("s", split)["choice"], prepared.docs, strict=True):
            assert doc.document == documents[index]
            assert all(str(documents[index]["tag"]) in i.args[0] for i in doc.instances)


def test_what_task_code_prints_is_no_result(
    bench: Bench, model: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command's own JSON goes to stdout."""
    bench.choice()
    code = "print('read')\ndef ask(doc):\n    print('asked')\n    return doc['question']\n"
    (bench.tasks / "loud.py").write_text(code)
    path = bench.tasks / "choice.yaml"
    path.write_text(path.read_text() + "doc_to_text: !function loud.ask\n")
    capsys.readouterr()
    Suite.build(bench.fitness(ACC), model, tokenizer).score()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert {"read", "asked"} <= set(printed.err.splitlines())


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
    assert source.prepare("search").tasks[0].instances[0].args[0].startswith("Asked: ")


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
