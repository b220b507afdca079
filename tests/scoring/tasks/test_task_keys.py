"""Whatever a task's YAML or its data holds: one line that names the place, or a score."""

from __future__ import annotations

import os
from typing import Any

import pytest
import yaml

from evomerge.errors import InputError
from evomerge.files.objects import FitnessSpec
from evomerge.scoring.preflight import check_fitness, doubts
from evomerge.scoring.suite import Suite
from evomerge.scoring.tasks.trust import code_listed

from ..conftest import Bench

SLICE = {"s": {"task": "choice", "metric": "acc"}}

LINES: dict[str, tuple[Any, str]] = {
    "metric_list": (5, "metric_list of task 'choice' is 5, not a list of"),
    "filter_list": (["regex"], "filter_list of task 'choice' is 'regex', not a list of"),
    "dataset_path": ({"a": 1}, "dataset_path of task 'choice' is {'a': 1}, not a text"),
    "dataset_kwargs": ("data.jsonl", "dataset_kwargs of task 'choice' is 'data.jsonl', not a mapping"),
    "test_split": (["test"], r"test_split of task 'choice' is \['test'\], not a text"),
    "output_type": (
        "multiple_chioce",
        "output_type of task 'choice' is 'multiple_chioce'",
    ),
    "doc_to_text": ([], r"doc_to_text of task 'choice' is \[\], not a text or !function"),
    "description": ({"a": "x" * 1000}, r"description of task 'choice' is \{'a': 'xxx.*\.\.\., not a text"),
    "repeats": (10**12, "repeats of task 'choice' is 1000000000000, not at most 1000"),
    "num_fewshot": (10**9, "num_fewshot of task 'choice' is 1000000000, not at most 1000"),
}


def change(bench: Bench, **config: Any) -> None:
    file = bench.tasks / "choice.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **config}, sort_keys=False))


@pytest.mark.parametrize("key", LINES)
def test_a_value_that_a_key_cannot_have(key: str, bench: Bench) -> None:
    bench.choice()
    value, line = LINES[key]
    change(bench, **{key: value})
    fitness = bench.fitness(SLICE)
    with pytest.raises(InputError, match=rf"fitness.yaml:\d+: slices.s.task: {line}.*mend .*choice.yaml") as found:
        check_fitness(fitness, [])
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 600


DATA = {
    "a line that is cut off": ('{"n": 1}\n{"n": \n', r"jsonl:2: is not JSON"),
    "a line too deep": ('{"n": 1}\n' + "[" * 100_000 + "\n", r"jsonl:2: is not JSON \(nested too deep\)"),
    "a number of many digits": ('{"n": 1}\n{"n": ' + "1" * 6000 + "}\n", r"jsonl:2: is not JSON \(Exceeds"),
    "a line that is no object": ('{"n": 1}\n5\n', "jsonl:2: is not a JSON object"),
    "another encoding": (b"\xff\xfe", "jsonl: is not UTF-8"),
}


def write(bench: Bench, content: str | bytes) -> None:
    file = bench.tasks / "choice.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("case", [case for case in DATA if case != "a number of many digits"])
def test_data_of_a_task(case: str, bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.choice()
    content, line = DATA[case]
    write(bench, content)
    with pytest.raises(InputError, match=rf"slices.s.task: task 'choice' cannot be built: .*{line}") as found:
        Suite.build(bench.fitness(SLICE), model, tokenizer)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("case", DATA)
def test_data_of_a_scorer(case: str, bench: Bench) -> None:
    (bench.folder / "mine.py").write_text("def score(model, tokenizer, items): ...\n")
    content, line = DATA[case]
    bench.tasks.mkdir()
    write(bench, content)
    with pytest.raises(InputError, match=line):
        check_fitness(bench.fitness({"s": {"python": "mine:score", "data": "tasks/choice.jsonl"}}), [])


def test_data_that_is_a_pipe_is_not_waited_for(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.choice()
    (bench.tasks / "choice.jsonl").unlink()
    os.mkfifo(bench.tasks / "choice.jsonl")
    os.mkfifo(bench.folder / "pipe.py")
    with pytest.raises(InputError, match=r"the data of task 'choice' is no regular file: .*choice.jsonl"):
        check_fitness(bench.fitness(SLICE), [])
    for piece, line in (
        ({"python": "pipe:score", "data": "choice.jsonl"}, "no file .*pipe.py"),
        ({"python": "conftest:score", "data": "tasks/choice.jsonl"}, "no data file .*choice.jsonl|no file"),
    ):
        with pytest.raises(InputError, match=line):
            check_fitness(bench.fitness({"s": piece}), [])


@pytest.mark.parametrize(
    ("piece", "line"),
    [
        ({"num_fewshot": 1000}, "slices.s.num_fewshot: task 'choice' has not as many few-shot examples"),
        ({"items": 10**12}, None),
    ],
)
def test_large_numbers(piece: dict[str, Any], line: str | None, bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.choice()
    fitness = bench.fitness({"s": {**SLICE["s"], **piece}}, batch_size=10**9)
    if line is None:
        assert Suite.build(fitness, model, tokenizer).score()["s"].items
        return
    with pytest.raises(InputError, match=line):
        Suite.build(fitness, model, tokenizer)


NASTY = [None, True, 10**12, float("inf"), "", "foo", "{{x", "{{ 1/0 }}", [1], ["a", None], {"a": [{}]}, "\x1b[31mred",
         "x" * 5000, "/dev/zero", [["a"]]]  # fmt: skip
KEYS = (*LINES, "doc_to_choice", "doc_to_target", "fewshot_config", "gen_prefix", "use_prompt")


def said(fitness: FitnessSpec, key: str, model: Any, tokenizer: Any) -> str:
    """The line that something is refused with; empty where nothing is. Other errors are raised."""
    try:
        check_fitness(fitness, [])
        doubts(fitness)
        code_listed(fitness)
        if not key.startswith("dataset"):  # other data is looked for on the hub
            Suite.build(fitness, model, tokenizer)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", KEYS)
def test_no_value_is_a_traceback(key: str, bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.choice(n=8)
    kept = (bench.tasks / "choice.yaml").read_text()
    for value in NASTY:
        (bench.tasks / "choice.yaml").write_text(kept)
        change(bench, **{key: value})
        line = said(bench.fitness(SLICE), key, model, tokenizer)
        assert line.isprintable()
        assert len(line) < 1200
