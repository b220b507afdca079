"""Each mistake in a fitness file is one line: where, what, how to mend. Found by the preflight, which reads no data
and imports nothing heavy, and again by `Suite.build`."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from typing import Any

import pytest

from evomerge.errors import InputError
from evomerge.scoring.preflight import check_fitness
from evomerge.scoring.suite import Suite

from .conftest import Bench


@pytest.fixture
def full(bench: Bench) -> Bench:
    bench.choice()
    bench.text()
    bench.write()
    bench.yaml("lost", dataset_path="json", dataset_kwargs={"data_files": {"test": "../nowhere.jsonl"}},
               test_split="test", output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="x")  # fmt: skip
    write_odd_tasks(bench)
    (bench.tasks / "halves.yaml").write_text("group: halves\ntask: [choice, chioce]\n")
    (bench.tasks / "torn.yaml").write_text("task: torn\nmetric_list: [\n")
    (bench.folder / "mine.py").write_text("def score(model, tokenizer, items):\n    return [1.0 for _ in items]\n")
    (bench.folder / "bad.py").write_text("def score(:\n")
    odd = [
        "def two(model, items): ...",
        "def keyed(model, tokenizer, items, *, batch): ...",
        "async def later(*all): ...",
    ]
    (bench.folder / "odd.py").write_text("\n".join([*odd, "CONSTANT = 3\n"]))
    (bench.folder / "torn.jsonl").write_text('{"n": 1}\n{"n": \n')
    bench.data("one.jsonl", [{"n": 1}], bench.folder)
    bench.data("alike.jsonl", [{"n": i, "from": "here"} for i in range(20)], bench.folder)
    bench.data("own.jsonl", [{"n": i} for i in range(9)], bench.folder)
    return bench


ODD: dict[str, dict[str, Any]] = {
    "foo_split": {"test_split": "foo"},
    "foo_folder": {"test_split": "foo", "dataset_path": "folder", "dataset_kwargs": None},
    "no_split": {"test_split": None},
    "whole_file": {"dataset_kwargs": {"data_files": "odd.jsonl"}},
    "empty": {"dataset_kwargs": {"data_files": {"test": "empty.jsonl"}}},
    "tokns": {"generation_kwargs": {"max_tokns": 5}},
    "many": {"generation_kwargs": {"until": ["x"], "max_gen_toks": "many"}},
    "listed": {"generation_kwargs": ["until"]},
    "endless": {"generation_kwargs": {"until": ["x"], "max_gen_toks": 100_000}},
    "twice": {"repeats": "two"},
    "metre": {"metric_list": [{"metric": "exact_metch"}]},
    "meen": {"metric_list": [{"metric": "exact_match", "aggregation": "meen"}]},
    "regexx": {"filter_list": [{"name": "f", "filter": [{"function": "regexx"}]}]},
    "patern": {"filter_list": [{"name": "f", "filter": [{"function": "regex", "regex_patern": "x"}]}]},
    "nameless": {"filter_list": [{"filter": [{"function": "regex"}]}]},
    "no_field": {"doc_to_text": "{{nope}}"},
}
"""What is wrong with a task that writes and is right otherwise."""


def write_odd_tasks(bench: Bench) -> None:
    right: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "odd.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["x"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    for folder in (bench.tasks, bench.tasks / "folder"):
        bench.data("odd.jsonl", [{"q": f"{i}?", "a": str(i)} for i in range(20)], folder)
    (bench.tasks / "empty.jsonl").write_text("")
    for name, wrong in ODD.items():
        bench.yaml(name, **{k: v for k, v in {**right, **wrong}.items() if v is not None})


def writes(task: str, **more: Any) -> dict[str, Any]:
    return {"task": task, "metric": "exact_match,first" if task == "write" else "exact_match", **more}


LINES = {
    "task": (
        {"task": "chioce", "metric": "acc"},
        r"slices.s.task: unknown task 'chioce'; did you mean 'choice'\?",
    ),
    "task of lm-eval's": (
        {"task": "hellaswaag", "metric": "acc"},
        r"slices.s.task: unknown task 'hellaswaag'; did you mean 'hellaswag'\?",
    ),
    "task like no other": (
        {"task": "§§§", "metric": "acc"},
        "slices.s.task: unknown task '§§§'; name an lm-eval task, or `include` the folder of its YAML",
    ),
    "member of a group": (
        {"task": "halves", "metric": "acc"},
        r"slices.s.task: unknown task 'chioce'; did you mean 'choice'\?",
    ),
    "task file": ({"task": "torn", "metric": "acc"}, r"slices.s.task: the task file .*torn.yaml cannot be read"),
    "metric": (
        {"task": "choice", "metric": "accuracy"},
        r"slices.s.metric: task 'choice' has no metric 'accuracy'; use one of: acc, acc_norm",
    ),
    "metric, close": (
        {"task": "text", "metric": "bit_per_byte"},
        r"slices.s.metric: task 'text' has no metric 'bit_per_byte'; did you mean 'bits_per_byte'\?",
    ),
    "filter": (
        {"task": "write", "metric": "exact_match,frist"},
        r"slices.s.metric: task 'write' has no filter 'frist'; did you mean 'first'\?",
    ),
    "filter option": (
        {"task": "write", "metric": "exact_match", "filter": "frist"},
        r"slices.s.filter: task 'write' has no filter 'frist'; did you mean 'first'\?",
    ),
    "data": (
        {"task": "lost", "metric": "bits_per_byte"},
        r"slices.s.task: the data of task 'lost' is missing: no .*nowhere.jsonl; "
        r"mend .*lost.yaml \(paths there are relative to its folder\)",
    ),
    "split": (
        writes("foo_split"),
        r"slices.s.task: the data of task 'foo_split' has no split 'foo' \(test_split\); mend .*: use one of: test",
    ),
    "no split": (
        writes("no_split"),
        "slices.s.task: task 'no_split' has neither test nor validation items; mend .*no_split.yaml: add `test_split`",
    ),
    "split of a single file": (
        writes("whole_file"),
        "slices.s.task: the data of task 'whole_file' has no split 'test' .test_split.; mend .*: use one of: train",
    ),
    "empty data": (writes("empty"), "slices.s.task: the data of task 'empty' is empty: .*empty.jsonl; mend"),
    "the task's generation argument": (
        writes("tokns"),
        r"slices.s.task: no generation argument 'max_tokns' of task 'tokns' \(.*.yaml\); did you mean 'max_tokens'",
    ),
    "the task's generation value": (
        writes("many"),
        r"slices.s.task: max_gen_toks of task 'many' \(.*\) is 'many'; give a whole number above 0",
    ),
    "the task's generation arguments": (
        writes("listed"),
        r"slices.s.task: generation arguments of task 'listed' \(.*\) are \['until'\], not a mapping",
    ),
    "repeats": (writes("twice"), "slices.s.task: repeats of task 'twice' is 'two', not a whole number above 0; mend"),
    "generation argument": (
        writes("write", gen_kwargs={"max_tokns": 5}),
        r"slices.s.gen_kwargs: no generation argument 'max_tokns'; did you mean 'max_tokens'\?",
    ),
    "generation argument of transformers": (
        writes("write", gen_kwargs={"repetion_penalty": 1.1}),
        r"slices.s.gen_kwargs: no generation argument 'repetion_penalty'; did you mean 'repetition_penalty'\?",
    ),
    "generation argument, as text": (
        writes("write", gen_kwargs="max_gen_toks=5,temprature=0.5"),
        r"slices.s.gen_kwargs: no generation argument 'temprature'; did you mean 'temperature'\?",
    ),
    "generation value": (
        writes("write", gen_kwargs={"temperature": "hot"}),
        "slices.s.gen_kwargs: temperature is 'hot'; give a number from 0 on",
    ),
    "generation flag": (
        writes("write", gen_kwargs={"do_sample": "yes"}),
        "slices.s.gen_kwargs: do_sample is 'yes'; give true or false",
    ),
    "generation without text": (
        {"task": "choice", "metric": "acc", "gen_kwargs": {"max_gen_toks": 5}},
        "slices.s.gen_kwargs: task 'choice' generates no text; remove it",
    ),
    "callable's file": (
        {"python": "mien:score", "data": "own.jsonl"},
        r"slices.s.python: no file .*mien.py; did you mean 'mine'\?",
    ),
    "callable's function": (
        {"python": "mine:scores", "data": "own.jsonl"},
        r"slices.s.python: .*mine.py defines no 'scores'; did you mean 'score'\?",
    ),
    "callable's syntax": (
        {"python": "bad:score", "data": "own.jsonl"},
        r"slices.s.python: .*bad.py is not valid Python",
    ),
    "callable's data": (
        {"python": "mine:score", "data": "owned.jsonl"},
        r"slices.s.data: no data file .*owned.jsonl; name a JSONL file",
    ),
    "callable's parameters": (
        {"python": "odd:two", "data": "own.jsonl"},
        r"slices.s.python: odd:two does not fit: it is called as two\(model, tokenizer, items\); mend .*odd.py",
    ),
    "callable's keyword": (
        {"python": "odd:keyed", "data": "own.jsonl"},
        r"slices.s.python: odd:keyed does not fit: it is called as keyed\(model, tokenizer, items\); mend .*odd.py",
    ),
    "callable that waits": (
        {"python": "odd:later", "data": "own.jsonl"},
        r"slices.s.python: odd:later is a coroutine, .*; remove `async`",
    ),
    "callable that is none": (
        {"python": "odd:CONSTANT", "data": "own.jsonl"},
        r"slices.s.python: odd:CONSTANT is not callable; name a function",
    ),
    "callable's cluster": (
        {"python": "mine:score", "data": "own.jsonl", "cluster": "m"},
        r"slices.s.cluster: an item of .*own.jsonl has no field 'm'; .*n",
    ),
    "callable's only item": (
        {"python": "mine:score", "data": "one.jsonl"},
        r"slices.s: slice 's' has no items in the \w+ split \(of 1 in all\); give it more items or change `split`",
    ),
}


def test_the_preflight_reads_the_items_of_callables(full: Bench) -> None:
    with pytest.raises(InputError, match=r"torn.jsonl:2: is not JSON .*; write one object a line"):
        check_fitness(full.fitness({"s": {"python": "mine:score", "data": "torn.jsonl"}}), [])


@pytest.mark.parametrize("case", LINES)
def test_the_preflight_says_what_is_wrong_and_where(case: str, full: Bench) -> None:
    piece, line = LINES[case]
    with pytest.raises(InputError, match=rf"fitness.yaml:\d+: {line}") as found:
        check_fitness(full.fitness({"s": piece}), [])
    assert "\n" not in str(found.value)


LATER = ("member of a group", "data", "generation flag", "generation without text")
"""Cases in which only the preflight knows that something is wrong, or what."""


@pytest.mark.parametrize("case", [case for case in LINES if case not in LATER])
def test_building_says_it_in_a_line_too(case: str, full: Bench, model: Any, tokenizer: Any) -> None:
    piece, line = LINES[case]
    with pytest.raises(InputError, match=r"fitness.yaml:\d+: slices.s.") as found:
        Suite.build(full.fitness({"s": piece}), model, tokenizer)
    assert "\n" not in str(found.value)
    if piece.get("task") not in {"halves", "write", *ODD}:
        assert re.search(line.split(";")[0], str(found.value))


OPTIONS: dict[str, tuple[Any, str]] = {
    "num_fewshot": (-1, r"-1 is outside \[0, 1000\]"),
    "gen_kwargs": ("greedy", "'greedy' is not a=1,b=2; write a mapping, such as {max_gen_toks: 32}"),
    "apply_chat_template": ("yes please", "is 'yes please', not true or false"),
    "fewshot_as_multiturn": (1, "is 1, not true or false"),
    "system_instruction": (["Be brief."], r"is \['Be brief.'\], not a text"),
    "filter": (3, "is 3, not a text"),
    "add_bos_token": ("no bos", "is 'no bos', not true or false"),
}


@pytest.mark.parametrize("key", OPTIONS)
def test_options_of_the_wrong_type(key: str, full: Bench) -> None:
    value, line = OPTIONS[key]
    with pytest.raises(InputError, match=rf"fitness.yaml:\d+: slices.s.{key}: {line}"):
        full.fitness({"s": writes("write", **{key: value})})
    with pytest.raises(InputError, match=rf"slices.s.{key}: only goes with an lm-eval `task`; remove it"):
        full.fitness({"s": {"python": "mine:score", "data": "own.jsonl", key: value}})


def test_gen_kwargs_of_a_wrong_kind(full: Bench) -> None:
    for value in (5, ["a"], True):
        with pytest.raises(InputError, match=r"slices.s.gen_kwargs: is .*, not a mapping"):
            full.fitness({"s": writes("write", gen_kwargs=value)})


def test_what_transformers_and_lm_eval_take_is_legal(full: Bench) -> None:
    for text in ("max_gen_toks=3,temperature=0.5,do_sample=true", "until=x", "top_k=3", "num_beams=2", "min_p=0.1"):
        check_fitness(full.fitness({"s": writes("write", gen_kwargs=text)}), [])
    mapping = {"until": ["a", "b"], "max_new_tokens": 5, "temperature": "1e-3", "top_p": 0.9, "max_tokens": None}
    check_fitness(full.fitness({"s": writes("write", gen_kwargs=mapping)}), [])


def test_a_floor_relative_to_nobody(full: Bench) -> None:
    floor = {"of": "refund", "keep": 0.97}
    fitness = full.fitness({"s": {"task": "choice", "metric": "acc", "floor": floor}})
    with pytest.raises(InputError, match=r"floor relative to an unknown source 'refund'; did you mean 'refunds'\?"):
        check_fitness(fitness, ["refunds", "catalog"])
    check_fitness(full.fitness({"s": {"task": "choice", "metric": "acc", "floor": {**floor, "of": "base"}}}), [])


def test_weights_of_0_leave_no_objective(full: Bench) -> None:
    fitness = full.fitness({"s": {"task": "choice", "metric": "acc", "weight": 0}})
    with pytest.raises(InputError, match="no slice has a weight above 0"):
        check_fitness(fitness, [])


BUILD_LINES = {
    "split of a folder": (
        writes("foo_folder"),
        {},
        "slices.s.task: task 'foo_folder' cannot be built: its data has no split 'foo'",
    ),
    "metric of no name": (
        writes("metre", metric="exact_metch"),
        {},
        r"task 'metre' cannot be built: lm-eval knows no metric 'exact_metch'; did you mean 'exact_match'\?",
    ),
    "aggregation": (writes("meen"), {}, "task 'meen': lm-eval does not know the aggregation of 'exact_match'"),
    "filter function": (writes("regexx", metric="exact_match,f"), {}, "task 'regexx' cannot be built: .*'regexx'"),
    "filter argument": (
        writes("patern", metric="exact_match,f"),
        {},
        "task 'patern': its filter 'f' cannot be made .*regex_patern",
    ),
    "filter without a name": (writes("nameless"), {}, "task 'nameless' cannot be built: KeyError: 'name'"),
    "template": (writes("no_field"), {}, "task 'no_field' cannot be built: doc_to_text: 'nope' is undefined"),
    "more tokens than the model reads": (
        writes("endless"),
        {},
        "slices.s.task: max_gen_toks 100000 leaves no room for a prompt",
    ),
    "several filters": (
        {"task": "write", "metric": "exact_match"},
        {},
        "reports 'exact_match' under several filters; write one of: exact_match,first, exact_match,last",
    ),
    "two filters": (
        {"task": "write", "metric": "exact_match,first", "filter": "last"},
        {},
        "the metric names the filter 'first', and `filter` is 'last'",
    ),
    "no items": (
        {"task": "choice", "metric": "acc"},
        {"split": {"search": 0.0001}},
        "slice 's' has no items in the search split",
    ),
    "geometric mean": (
        {"task": "text", "metric": "bits_per_byte"},
        {"objective": "geometric_mean"},
        "geometric_mean cannot hold slice 's': a lower bits_per_byte is better",
    ),
    "more examples than there are": (
        {"task": "choice", "metric": "acc", "num_fewshot": 50},
        {},
        "slices.s.num_fewshot: task 'choice' has not as many few-shot examples as it is to show; lower `num_fewshot`",
    ),
    "all items one cluster": (
        {"python": "mine:score", "data": "alike.jsonl", "cluster": "from", "floor": 0.5},
        {"confidence": 0.95},
        "slices.s.cluster: `confidence` needs a standard error: the search split's items are one cluster",
    ),
}


@pytest.mark.parametrize("case", BUILD_LINES)
def test_building_finds_what_only_the_data_shows(case: str, full: Bench, model: Any, tokenizer: Any) -> None:
    piece, more, line = BUILD_LINES[case]
    with pytest.raises(InputError, match=rf"fitness.yaml:\d+: .*{line}"):
        Suite.build(full.fitness({"s": piece}, **more), model, tokenizer)


def test_a_tokenizer_without_a_chat_template(full: Bench, model: Any, tokenizer: Any) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    fitness = full.fitness({"s": {"task": "choice", "metric": "acc", "apply_chat_template": True}})
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        Suite.build(fitness, model, bare)


def test_a_direction_that_nobody_told(full: Bench, model: Any, tokenizer: Any) -> None:
    (full.tasks / "fun.py").write_text("def measure(doc, results):\n    return {'fun': 1.0}\n")
    config = (full.tasks / "text.yaml").read_text().split("metric_list")[0]
    (full.tasks / "text.yaml").write_text(config + "process_results: !function fun.measure\n")
    piece = {"task": "text", "metric": "fun"}
    check_fitness(full.fitness({"s": piece}), [])
    with pytest.raises(InputError, match="does not tell whether a higher 'fun' is better; add `direction: higher`"):
        Suite.build(full.fitness({"s": piece}), model, tokenizer)
    suite = Suite.build(full.fitness({"s": {**piece, "direction": "lower"}}), model, tokenizer)
    assert suite.score()["s"].value == -1.0


def test_broken_data_is_named(full: Bench, model: Any, tokenizer: Any) -> None:
    (full.tasks / "text.jsonl").write_text('{"text": \n')
    with pytest.raises(InputError, match=r"slices.s.task: task 'text' cannot be built"):
        Suite.build(full.fitness({"s": {"task": "text", "metric": "bits_per_byte"}}), model, tokenizer)


def test_code_that_the_model_writes_is_not_run(full: Bench, model: Any, tokenizer: Any) -> None:
    full.write("unsafe", unsafe_code=True)
    with pytest.raises(InputError, match="task 'unsafe' runs code that the model writes"):
        Suite.build(full.fitness({"s": {"task": "unsafe", "metric": "exact_match,first"}}), model, tokenizer)


def test_the_preflight_is_fast_and_light(full: Bench) -> None:
    fitness = full.fitness(
        {
            "a": {"task": "choice", "metric": "acc"},
            "b": {"python": "mine:score", "data": "own.jsonl"},
            "c": writes("write", gen_kwargs={"max_gen_toks": 5, "temperature": 0.5, "do_sample": True, "until": "x"}),
        }
    )
    started = time.perf_counter()
    check_fitness(fitness, [])
    assert time.perf_counter() - started < 0.5
    code = (
        "import sys; from pathlib import Path; from evomerge.files.fitness_file import read_fitness;"
        "from evomerge.scoring.preflight import check_fitness; import evomerge.scoring.gates,"
        " evomerge.scoring.objectives, evomerge.scoring.splits, evomerge.scoring.stats.standard_errors,"
        " evomerge.scoring.suite;"
        "check_fitness(read_fitness(Path(sys.argv[1])), []);"
        "print([m for m in ('torch', 'lm_eval', 'transformers', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(fitness.file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
