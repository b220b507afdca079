"""Lengths of another slice's answers, and several samples of an answer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import evomerge
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.files.fitness_file import read_fitness
from evomerge.files.resolved import fitness_data, to_yaml
from evomerge.scoring.engine.generation import generate
from evomerge.scoring.replies import Samples, Written, measured, reduced
from evomerge.scoring.suite import Suite

from ..conftest import Bench, nudge, only_says

SAMPLED = {"do_sample": True, "temperature": 1.0}


def maths(**more: Any) -> dict[str, Any]:
    return {"task": "write", "metric": "exact_match,first", **more}


def length(metric: str = "generated_tokens", **more: Any) -> dict[str, Any]:
    return {"of": "maths", "metric": metric, **more}


def test_lengths_are_those_of_the_answers(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.write()
    slices = {"maths": maths(), "tokens": length(), "cut": length("truncated")}
    only_says(model, tokenizer, "01\n")
    suite = Suite.build(bench.fitness(slices), model, tokenizer)
    assert suite.info.pools == (("maths", "tokens", "cut"),), "no answer is written twice"
    found = suite.score()
    tokens = {item.item: item.score for item in found["tokens"].items}
    cut = {item.item: item.score for item in found["cut"].items}
    assert set(tokens.values()) <= {1.0, 2.0, 3.0, 4.0}
    assert all(tokens[name] == 4.0 for name in cut if cut[name]), "four is the limit"
    assert found["tokens"].value == pytest.approx(-fmean(tokens.values()))
    assert found["cut"].value == pytest.approx(-fmean(cut.values()))
    assert [suite.info.slices[name].sign for name in slices] == [1, -1, -1]
    assert tokens.keys() == {item.item for item in found["maths"].items}
    # A model that never ends.
    only_says(model, tokenizer, "01")
    found = suite.score()
    assert (found["tokens"].value, found["cut"].value) == (-4.0, -1.0)


def test_lm_evals_own_path_has_the_same_lengths(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.write()
    suite = Suite.build(bench.fitness({"maths": maths(), "tokens": length()}), model, tokenizer)
    only_says(model, tokenizer, "01\n")
    prepared = suite.slices["maths"].source.prepare("search")
    plan, lm = prepared._plans[0], prepared._lm
    ours = generate(lm, plan)
    assert lm.greedy
    lm.greedy = False
    theirs = generate(lm, plan)
    # A special token is in no text: lm-eval's path does not count it.
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if len(a) == 4 or not a.truncated]
    assert pairs
    assert all((str(a), a.tokens, a.truncated) == (str(b), b.tokens, b.truncated) for a, b in pairs)
    assert len({a.tokens for a, _ in pairs}) > 1


def test_a_written_text_stays_one_when_it_is_copied() -> None:
    written = Written("a", 3, True)
    for twin in (copy.deepcopy(written), pickle.loads(pickle.dumps(written))):
        assert (twin, twin.tokens, twin.truncated) == ("a", 3, True)
    assert measured(written, None, 1) is written


def test_samples_are_averaged_and_drawn_alike_each_time(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.write()
    slices = {
        "maths": maths(samples=6, gen_kwargs=SAMPLED),
        "tokens": length(),
    }
    only_says(model, tokenizer, "01")
    suite = Suite.build(bench.fitness(slices), model, tokenizer)
    found = suite.score()
    scores = [item.score for item in found["maths"].items]
    assert {round(6 * (score or 0.0), 9) for score in scores} <= set(range(7))
    assert len(set(scores)) > 1, "0 and 1 are both likely"
    assert suite.score()["maths"] == found["maths"], "equal candidates score equal"
    nudge(model)
    assert suite.score()["maths"] != found["maths"]


def test_one_of_some_samples_has_to_be_right(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.write()
    only_says(model, tokenizer, "01")
    values = {}
    for name, more in {"mean": {}, "first": {"pass_at": 1}, "any": {"pass_at": 5}}.items():
        slices = {"maths": maths(samples=5, gen_kwargs=SAMPLED, **more)}
        suite = Suite.build(bench.fitness(slices), model, tokenizer)
        values[name] = {item.item: item.score or 0.0 for item in suite.score()["maths"].items}
    assert suite.info.slices["maths"].metric == "pass@5 exact_match,first"
    assert values["first"] == pytest.approx(values["mean"]), "the first of five is right as often as each"
    assert values["any"] == {name: float(value > 0) for name, value in values["mean"].items()}


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    choices = list(combinations(right, k))
    assert reduced(Samples(map(float, right)), k) == pytest.approx(sum(map(any, choices)) / len(choices))
    assert reduced(Samples(right), None) == pytest.approx(fmean(right))
    assert reduced("as it is", k) == "as it is"


@pytest.mark.parametrize(
    ("slices", "line"),
    [
        ({"tokens": length()}, "there is no other slice 'maths'"),
        ({"maths": length()}, "there is no other slice 'maths'"),
        ({"maths": maths(), "tokens": length("acc")}, "unknown metric of another slice's answers 'acc'"),
        ({"maths": maths(), "tokens": {"of": "maths"}}, "has no 'metric'"),
        ({"maths": maths(), "tokens": length(items=3)}, "items: is that of slice 'maths'"),
        ({"maths": maths(), "tokens": length(task="write")}, "needs one of `task`"),
        ({"maths": {"measure": "layers"}, "tokens": length(), "c": maths()}, "slice 'maths' is no lm-eval task"),
        ({"maths": {"task": "choice", "metric": "acc"}, "tokens": length()}, "generates no text that has a length"),
        ({"maths": maths(pass_at=2)}, "needs `samples`"),
        ({"maths": maths(samples=2, pass_at=3)}, "pass_at"),
        ({"maths": maths(samples=0)}, "samples"),
        ({"maths": {"python": "a:b", "data": "c.jsonl", "samples": 2}}, "only goes with an lm-eval `task`"),
    ],
)
def test_what_does_not_fit_is_said(slices: dict[str, Any], line: str, bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.write()
    bench.choice()
    with pytest.raises(InputError) as caught:
        Suite.build(bench.fitness(slices), model, tokenizer)
    assert line in str(caught.value)
    assert "fitness.yaml:" in str(caught.value)


@pytest.mark.parametrize(
    ("maths_", "line"),
    [
        (maths(samples=2), "all samples of task 'write' would be the same"),
        ({"task": "choice", "metric": "acc", "samples": 2}, "task 'choice' generates no text to sample"),
    ],
)
def test_samples_that_make_no_sense(
    maths_: dict[str, Any], line: str, bench: Bench, model: Any, tokenizer: Any
) -> None:
    bench.write()
    bench.choice()
    with pytest.raises(InputError, match=line):
        Suite.build(bench.fitness({"maths": maths_}), model, tokenizer)


def test_the_resolved_file_means_the_same(bench: Bench) -> None:
    bench.write()
    spec = bench.fitness({"maths": maths(samples=4, pass_at=2, gen_kwargs=SAMPLED), "tokens": length(weight=0.0)})
    again = bench.folder / "again.yaml"
    again.write_text(to_yaml(fitness_data(spec), "again"))
    assert read_fitness(again).slices == spec.slices


def test_a_search_keeps_answers_short(tiny_study: Callable[..., Path], tmp_path: Path) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        bench = Bench(tmp_path)
        bench.write()
        fitness["slices"] = {"maths": maths(floor=0.0), "tokens": length(floor={"of": "base", "margin": 4})}
        space["budget"] = {"trials": 6}

    result = evomerge.search(tiny_study(change))
    assert {t.state for t in result.search.trials} == {"complete"}
    assert all(-4.0 <= t.scores["tokens"] <= -1.0 for t in result.search.trials)
    assert main(["status", "space"]) == 0
    assert torch.isfinite(torch.tensor([t.objective for t in result.search.trials])).all()
