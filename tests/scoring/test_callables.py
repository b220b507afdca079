"""A slice scored by the user's own function."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from evomerge.errors import InputError, TrialError
from evomerge.scoring.suite import Suite

from .conftest import Bench, nudge

GOOD = """
from helper import HALF

def score(model, tokenizer, items):
    return [HALF + 0 * len(item["text"]) for item in items]

def weight(model, tokenizer, items):
    total = float(sum(p.sum() for p in model.parameters()))
    return [total + item["n"] for item in items]

def greedy(model, tokenizer, items):
    for item in items:
        item.clear()
    items.append({})
    return [1.0] * (len(items) - 1)

def stateful(model, tokenizer, items):
    import random
    return [random.random() for _ in items]
"""


@pytest.fixture
def own(bench: Bench) -> Bench:
    (bench.folder / "mine.py").write_text(GOOD)
    (bench.folder / "helper.py").write_text("HALF = 0.5\n")
    bench.data("own.jsonl", [{"text": f"item {i}", "n": i} for i in range(20)], bench.folder)
    return bench


def build(bench: Bench, model: Any, tokenizer: Any, python: str, **more: Any) -> Suite:
    fitness = bench.fitness({"s": {"python": python, "data": "own.jsonl", **more}})
    return Suite.build(fitness, model, tokenizer)


def test_it_is_called_with_the_items_of_the_split(own: Bench, model: Any, tokenizer: Any) -> None:
    suite = build(own, model, tokenizer, "mine:weight")
    total = float(sum(p.sum() for p in model.parameters()))
    for split in ("search", "holdout", "all"):
        score = suite.score(split)["s"]
        indices = suite.indices("s", split)["own.jsonl"]
        assert [i.score for i in score.items] == pytest.approx([total + n for n in indices], abs=1e-4)
        assert score.value == pytest.approx(total + sum(indices) / len(indices), abs=1e-4)
        assert score.stderr is not None
    before = suite.score()["s"].value
    nudge(model)
    assert suite.score()["s"].value != before


def test_it_may_import_its_neighbours(own: Bench, model: Any, tokenizer: Any) -> None:
    score = build(own, model, tokenizer, "mine:score").score()["s"]
    assert (score.value, score.stderr) == (0.5, 0.0)


def test_lower_may_be_better(own: Bench, model: Any, tokenizer: Any) -> None:
    suite = build(own, model, tokenizer, "mine:score", direction="lower")
    assert suite.score()["s"].value == -0.5
    assert suite.slices["s"].show(-0.5) == 0.5


def test_what_it_does_to_its_items_does_not_last(own: Bench, model: Any, tokenizer: Any) -> None:
    suite = build(own, model, tokenizer, "mine:greedy")
    assert suite.score() == suite.score()
    assert suite.items_digest() == build(own, model, tokenizer, "mine:greedy").items_digest()


def test_its_random_numbers_are_the_same_for_every_candidate(own: Bench, model: Any, tokenizer: Any) -> None:
    suite = build(own, model, tokenizer, "mine:stateful")
    assert suite.score() == suite.score()


def test_slices_over_one_file_share_its_deal(own: Bench, model: Any, tokenizer: Any) -> None:
    slices = {f: {"python": f"mine:{f}", "data": "own.jsonl"} for f in ("score", "weight")}
    suite = Suite.build(own.fitness(slices), model, tokenizer)
    assert suite.indices("score") == suite.indices("weight")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", r"broken:score returned 1 scores for \d+ items"),
        ("return [float('nan')] * len(items)", "broken:score returned nan for item 0, not a finite number"),
        ("return ['0.5'] * len(items)", "broken:score returned '0.5' for item 0, not a finite number"),
        ("return [None] * len(items)", "broken:score returned None for item 0"),
        ("return 0.5", "broken:score returned float, expected one number per item"),
        ("raise KeyError('answer')", "broken:score raised KeyError: 'answer'"),
    ],
)
def test_an_unusable_answer_fails_the_trial(
    body: str, message: str, own: Bench, model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (own.folder / "broken.py").write_text(f"def score(model, tokenizer, items):\n    {body}\n")
    suite = build(own, model, tokenizer, "broken:score")
    with caplog.at_level(logging.ERROR), pytest.raises(TrialError, match=f"slice s: {message}"):
        suite.score()
    if "raise" in body:
        assert "Traceback" in caplog.text


def test_tensors_and_arrays_are_numbers(own: Bench, model: Any, tokenizer: Any) -> None:
    (own.folder / "arrays.py").write_text(
        "import torch\ndef score(model, tokenizer, items):\n    return torch.ones(len(items))\n"
    )
    assert build(own, model, tokenizer, "arrays:score").score()["s"].value == 1.0


def test_data_that_is_not_jsonl(own: Bench, model: Any, tokenizer: Any) -> None:
    (own.folder / "own.jsonl").write_text('{"text": "a"}\n\n[1]\n')
    with pytest.raises(InputError, match=r"own.jsonl:3: is not a JSON object; write one object a line"):
        build(own, model, tokenizer, "mine:score")
    (own.folder / "own.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(InputError, match=r"own.jsonl:2: is not JSON"):
        build(own, model, tokenizer, "mine:score")


def test_code_that_does_not_load(own: Bench, model: Any, tokenizer: Any) -> None:
    (own.folder / "broken.py").write_text("import no_such_module\ndef score(*a): pass\n")
    with pytest.raises(InputError, match=r"fitness.yaml:\d+: slices.s.python: broken:score cannot be loaded"):
        build(own, model, tokenizer, "broken:score")
