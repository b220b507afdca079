"""A field of a task that names no field of the data is noticed; what is meant to be constant is not complained of."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.files.fitness_file import read_fitness
from evomerge.scoring.preflight import doubts
from evomerge.scoring.suite import Suite
from evomerge.study.dry_run import dry_run
from evomerge.study.observer import Observer

from ..conftest import Bench

METRICS = {"text": "bits_per_byte", "cloze": "perplexity", "choice": "acc", "write": "exact_match,first"}

MISSPELT: dict[str, tuple[str, dict[str, Any], str]] = {
    "a rolling text": ("text", {"doc_to_target": "txet"}, "doc_to_target is the text 'txet', .*did you mean 'text'"),
    "a target": ("cloze", {"doc_to_target": "bb"}, "all items have the same .* the text 'bb', .*did you mean 'b'"),
    "a prompt and a target": ("cloze", {"doc_to_text": "x", "doc_to_target": "z"}, "all items .*its fields are a, b"),
    "the prompt": ("write", {"doc_to_text": "question"}, "doc_to_text is the text 'question'.*fields are q, a"),
    "the right text": ("write", {"doc_to_target": "answer"}, "doc_to_target is the text 'answer', and no field"),
    "the right choice": ("choice", {"doc_to_target": "glod"}, "doc_to_target is the text 'glod', .*you mean 'gold'"),
    "choices without their question": (
        "choice", {"doc_to_text": "question_", "doc_to_choice": ["yes", "no", "maybe"]},
        "doc_to_text is the text 'question_', .*did you mean 'question'",
    ),
}  # fmt: skip
"""task, what is changed in it, what is said."""

ONLY_BUILT: dict[str, tuple[str, dict[str, Any], str]] = {
    "no gold": ("choice", {"doc_to_target": "{{'glod'}}"}, "no item's target is one of its choices; check doc_to_ta"),
    "a template of nothing": ("text", {"doc_to_target": "{{'body'}}"}, "same of the model; check doc_to_target"),
    "one answer": ("choice", {"doc_to_choice": ["yes", "no"], "doc_to_target": 0}, "same choices and the same target"),
    "one text": ("write", {"doc_to_target": "{{'yes'}}"}, "all items have the same target; check doc_to_target"),
}

RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "a rolling text": ("text", {}),
    "a rolling text by its field": ("text", {"doc_to_target": "text"}),
    "a rolling text with a prompt that is not used": ("text", {"doc_to_text": "Read this"}),
    "a cloze": ("cloze", {}),
    "texts after nothing": ("cloze", {"doc_to_text": "", "doc_to_target": "{{a}}"}),
    "texts after one prompt": ("cloze", {"doc_to_text": "Once upon a time", "doc_to_target": "a"}),
    "choices": ("choice", {}),
    "choices of yes and no": ("choice", {"doc_to_choice": ["yes", "no", "maybe"]}),
    "the first choice is right": ("choice", {"doc_to_text": "", "doc_to_target": 0}),
    "the first choice is right, as a text": ("choice", {"doc_to_text": "", "doc_to_target": "0"}),
    "written answers": ("write", {}),
    "answers that code marks": ("write", {"doc_to_target": "", "process_results": "!function code.mark"}),
    "answers that code marks, with a target": (
        "write",
        {"doc_to_target": "none", "process_results": "!function code.mark"},
    ),
}


def prepared(bench: Bench, task: str, config: dict[str, Any]) -> dict[str, Any]:
    getattr(bench, task)()
    (bench.tasks / "code.py").write_text("def mark(doc, results):\n    return {'exact_match': 1.0}\n")
    file = bench.tasks / f"{task}.yaml"
    text = yaml.safe_dump({**yaml.safe_load(file.read_text()), **config}, sort_keys=False)
    file.write_text(text.replace("'!function ", "!function '"))
    return {"s": {"task": task, "metric": METRICS[task]}}


@pytest.mark.parametrize("case", [*MISSPELT, *ONLY_BUILT])
def test_a_field_that_is_none_is_a_warning(case: str, bench: Bench, model: Any, tokenizer: Any) -> None:
    task, config, line = {**MISSPELT, **ONLY_BUILT}[case]
    fitness = bench.fitness(prepared(bench, task, config))
    found = [Suite.build(fitness, model, tokenizer).doubts(), doubts(fitness)]
    assert [len(lines) for lines in found] == [1, case in MISSPELT]
    for [said] in found if case in MISSPELT else found[:1]:
        assert re.search(rf"^.*fitness.yaml:\d+: slices.s.task: task '{task}': .*{line}", said)


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_meant_is_no_warning(case: str, bench: Bench, model: Any, tokenizer: Any) -> None:
    task, config = RIGHT[case]
    fitness = bench.fitness(prepared(bench, task, config))
    assert (Suite.build(fitness, model, tokenizer).doubts(), doubts(fitness)) == ([], [])


def test_our_own_tasks_are_right(model: Any, tokenizer: Any) -> None:
    root = Path(__file__).parents[3]
    fitness = read_fitness(root / "fitness/quickstart.yaml")
    assert (Suite.build(fitness, model, tokenizer).doubts(), doubts(fitness)) == ([], [])


class Listening(Observer):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_search_evaluation_and_dry_run_say_it(tiny_study: Callable[..., Path]) -> None:
    space = tiny_study()
    file = next((space.parent / "tasks").glob("tiny_a*.yaml"))
    config = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**config, "doc_to_target": "lable"}))
    line = "fitness.yaml:6: slices.a.task: task 'tiny_a': "
    [warning] = dry_run(space)["warnings"]
    assert line in warning
    for run in (
        lambda observer: evomerge.search(space, trials=5, observer=observer),
        lambda observer: evomerge.evaluate("models/one", "fitness.yaml", references={"base": "models/base"},
                                           observer=observer),
    ):  # fmt: skip
        observer = Listening()
        run(observer)
        assert any(line in warning for warning in observer.warnings)
