"""Each mistake in a fitness file is one line: where, what, how to mend. Found by the preflight, which reads no data
and imports nothing heavy, and again by `Suite.build`."""

from __future__ import annotations

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
    (bench.tasks / "halves.yaml").write_text("group: halves\ntask: [choice, chioce]\n")
    (bench.tasks / "torn.yaml").write_text("task: torn\nmetric_list: [\n")
    (bench.folder / "mine.py").write_text("def score(model, tokenizer, items):\n    return [1.0 for _ in items]\n")
    (bench.folder / "bad.py").write_text("def score(:\n")
    bench.data("own.jsonl", [{"n": i} for i in range(9)], bench.folder)
    return bench


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
}


@pytest.mark.parametrize("case", LINES)
def test_the_preflight_says_what_is_wrong_and_where(case: str, full: Bench) -> None:
    piece, line = LINES[case]
    with pytest.raises(InputError, match=rf"fitness.yaml:\d+: {line}") as found:
        check_fitness(full.fitness({"s": piece}), [])
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("case", [case for case in LINES if case not in ("member of a group", "data")])
def test_building_says_the_same(case: str, full: Bench, model: Any, tokenizer: Any) -> None:
    piece, line = LINES[case]
    with pytest.raises(InputError, match=rf"fitness.yaml:\d+: {line.split(';')[0]}"):
        Suite.build(full.fitness({"s": piece}), model, tokenizer)


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
        "the prompts of task 'choice' cannot be built",
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
        {"a": {"task": "choice", "metric": "acc"}, "b": {"python": "mine:score", "data": "own.jsonl"}}
    )
    started = time.perf_counter()
    check_fitness(fitness, [])
    assert time.perf_counter() - started < 0.5
    code = (
        "import sys; from pathlib import Path; from evomerge.files.fitness_file import read_fitness;"
        "from evomerge.scoring.preflight import check_fitness; import evomerge.scoring.gates,"
        " evomerge.scoring.objectives, evomerge.scoring.splits, evomerge.scoring.statistics, evomerge.scoring.suite;"
        "check_fitness(read_fitness(Path(sys.argv[1])), []);"
        "print([m for m in ('torch', 'lm_eval', 'transformers', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(fitness.file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
