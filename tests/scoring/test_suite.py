"""The suite in a loop: fresh for every candidate, built once, without a trace on the rest of the program."""

from __future__ import annotations

import json
import logging
import pickle
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from evomerge.errors import InputError
from evomerge.scoring.slices import SliceInfo
from evomerge.scoring.suite import Suite

from .conftest import Bench, nudge, only_says

ALL = {
    "choice": {"task": "choice", "metric": "acc"},
    "text": {"task": "text", "metric": "bits_per_byte"},
    "write": {"task": "write", "metric": "exact_match,first"},
}


@pytest.fixture
def suite(bench: Bench, model: Any, tokenizer: Any) -> Suite:
    bench.choice()
    bench.text()
    bench.write(n=40)
    only_says(model, tokenizer, "01")
    return Suite.build(bench.fitness(ALL), model, tokenizer)


def test_scores_follow_the_weights_and_come_back_with_them(suite: Suite, model: Any) -> None:
    first = suite.score()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    nudge(model)
    second = suite.score()
    model.load_state_dict(kept)
    assert suite.score() == first
    assert second["text"].value != first["text"].value
    assert [i.raw for i in second["choice"].items] != [i.raw for i in first["choice"].items]
    assert [i.raw for i in second["write"].items] != [i.raw for i in first["write"].items]


def test_a_lower_is_better_metric_is_flipped_once(suite: Suite) -> None:
    text, choice = suite.info.slices["text"], suite.info.slices["choice"]
    score = suite.score()["text"]
    assert (text.sign, choice.sign) == (-1, 1)
    assert score.value < 0 < text.show(score.value)
    total = sum(i.weight for i in score.items)
    mean = sum(i.score * i.weight for i in score.items if i.score is not None) / total
    assert mean == pytest.approx(text.show(score.value))


def test_splits_are_disjoint_and_all_is_their_union(suite: Suite) -> None:
    for name in ALL:
        search, holdout, every = ({i.item for i in suite.score(s)[name].items} for s in ("search", "holdout", "all"))
        assert not search & holdout
        assert search | holdout == every
        assert suite.slices[name].counts == {"search": len(search), "holdout": len(holdout), "all": len(every)}


def test_global_random_generators_are_left_alone(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.write()
    fitness = bench.fitness({"w": ALL["write"]})
    sampling = {"gen_kwargs": {"do_sample": True, "temperature": 1.0}, "num_fewshot": 2}
    fitness = replace(fitness, slices={"w": replace(fitness.slices["w"], options=sampling)})

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        undisturbed = [draw(), draw(), draw()]
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        first = draw()
        suite = Suite.build(fitness, model, tokenizer)
        second = draw()
        scores = suite.score()
        assert [first, second, draw()] == undisturbed
        assert suite.score() == scores  # sampled answers too do not depend on who drew before


def test_tasks_and_data_are_built_once(
    bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.task import ConfigurableTask

    counts = {"load": 0, "build": 0}
    load, build = datasets.load_dataset, ConfigurableTask.build_all_requests

    def count_load(*args: Any, **kwargs: Any) -> Any:
        counts["load"] += 1
        return load(*args, **kwargs)

    def count_build(*args: Any, **kwargs: Any) -> Any:
        counts["build"] += 1
        return build(*args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", count_load)
    monkeypatch.setattr(ConfigurableTask, "build_all_requests", count_build)
    bench.choice()
    bench.text()
    slices = {
        "acc": {"task": "choice", "metric": "acc"},
        "norm": {"task": "choice", "metric": "acc_norm", "weight": 2, "floor": 0.1},
        "text": {"task": "text", "metric": "bits_per_byte"},
    }
    suite = Suite.build(bench.fitness(slices), model, tokenizer)
    suite.score()  # the first answers are checked against plain forward passes
    calls: list[int] = []
    monkeypatch.setattr(type(model), "forward", _counted(type(model).forward, calls))
    for seed in range(4):
        nudge(model, seed)
        suite.score()
    assert counts == {"load": 2, "build": 4}  # of each split
    together = len(calls)
    alone = Suite.build(bench.fitness({k: slices[k] for k in ("acc", "text")}), model, tokenizer)
    alone.score()
    calls.clear()
    for _ in range(4):
        alone.score()
    assert len(calls) == together  # the two slices over one task share its forward passes


def _counted(function: Any, calls: list[int]) -> Any:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(self, *args, **kwargs)

    return forward


def test_sharing_a_pass_changes_no_score(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.write(n=40)
    only_says(model, tokenizer, "01")
    slices = {f: {"task": "write", "metric": "exact_match", "filter": f} for f in ("first", "last")}
    both = Suite.build(bench.fitness(slices), model, tokenizer).score()
    for name, piece in slices.items():
        assert Suite.build(bench.fitness({name: piece}), model, tokenizer).score()[name] == both[name]


def test_the_tokenizer_and_the_model_stay_the_callers(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.write()
    assert tokenizer.pad_token is None
    side = tokenizer.padding_side
    Suite.build(bench.fitness({"w": ALL["write"]}), model, tokenizer).score()
    assert tokenizer.pad_token is None
    assert tokenizer.padding_side == side


def test_a_model_left_in_training_mode_is_scored_in_evaluation_mode(suite: Suite, model: Any) -> None:
    expected = suite.score()
    model.train()
    assert suite.score() == expected


def test_progress_is_told_slice_by_slice(suite: Suite) -> None:
    told: list[str] = []
    suite.score(on_slice=told.append)
    assert told == list(ALL)


def test_nothing_is_drawn_or_logged(suite: Suite, capfd: pytest.CaptureFixture[str]) -> None:
    suite.score()
    suite.score("holdout")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""
    assert not datasets.are_progress_bars_disabled()
    assert logging.getLogger("lm_eval").level != logging.ERROR


def test_no_item_of_the_holdout_stands_in_a_prompt(bench: Bench, model: Any, tokenizer: Any) -> None:
    """A task without examples of its own draws them from its test set: from the search side only."""
    bench.choice(n=40)
    config = (bench.tasks / "choice.yaml").read_text().replace("training_split: train\nfewshot_split: train\n", "")
    (bench.tasks / "choice.yaml").write_text(config)
    fitness = bench.fitness({"s": {"task": "choice", "metric": "acc", "num_fewshot": 5}})
    suite = Suite.build(fitness, model, tokenizer)
    source: Any = suite.slices["s"].source
    documents = source._documents["choice"]
    hidden = {documents[i]["question"] for i in suite.indices("s", "holdout")["choice"]}
    shown = {documents[i]["question"] for i in suite.indices("s", "search")["choice"]}
    prompts = [i.args[0] for i in source.prepare("search").tasks[0].instances]
    assert not any(question in prompt for question in hidden for prompt in prompts)
    assert any(prompt.count("Question:") == 6 for prompt in prompts)
    for instance in source.prepare("holdout").tasks[0].instances:
        *examples, asked = instance.args[0].split("\n\n")
        assert not any(question in example for question in hidden for example in examples)
        assert any(question in asked for question in hidden)
        assert any(question in example for question in shown for example in examples)


# What a resumed run compares


def test_the_digest_notices_changed_data_dealing_and_prompts(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.text()

    def digest(**more: Any) -> str:
        fitness = bench.fitness({"s": {"task": "text", "metric": "bits_per_byte"}}, **more)
        return Suite.build(fitness, model, tokenizer).items_digest()["s"]

    first = digest()
    assert digest() == first
    path = bench.tasks / "text.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(lines)))
    assert digest() == first
    assert digest(split={"search": 0.5, "seed": 1}) != first
    path.write_text("".join(lines[:-1]))
    assert digest() != first
    path.write_text("".join(lines))
    yaml = bench.tasks / "text.yaml"
    yaml.write_text(yaml.read_text().replace("{{text}}", "{{text}}!"))
    assert digest() != first


def test_a_folder_that_moved_is_the_same_data(bench: Bench, model: Any, tokenizer: Any, tmp_path_factory: Any) -> None:
    bench.choice()
    slices = {"s": {"task": "choice", "metric": "acc", "num_fewshot": 1}}
    first = Suite.build(bench.fitness(slices), model, tokenizer).items_digest()
    moved = Bench(bench.folder.rename(tmp_path_factory.mktemp("else") / "where"))
    assert Suite.build(moved.fitness(slices), model, tokenizer).items_digest() == first


def test_items_caps_each_split(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.choice(n=40)
    slices = {
        "few": {"task": "choice", "metric": "acc", "items": 5},
        "more": {"task": "choice", "metric": "acc", "items": 9},
        "every": {"task": "choice", "metric": "acc"},
    }
    suite = Suite.build(bench.fitness(slices), model, tokenizer)
    assert suite.slices["few"].counts == {"search": 5, "holdout": 5, "all": 40}
    few, more, every = (set(suite.indices(name)["choice"]) for name in slices)
    assert few < more < every


@pytest.mark.parametrize("metric", ["bits_per_byte", "byte_perplexity"])
def test_confidence_needs_more_than_one_item(bench: Bench, model: Any, tokenizer: Any, metric: str) -> None:
    bench.text()
    slices = {"s": {"task": "text", "metric": metric, "floor": 9.0, "items": 1}}
    with pytest.raises(InputError, match=r"fitness.yaml:\d+: .*s: `confidence` needs a standard error, and one item"):
        Suite.build(bench.fitness(slices, confidence=0.95), model, tokenizer)
    slices["s"]["items"] = 2
    suite = Suite.build(bench.fitness(slices, confidence=0.95), model, tokenizer)
    assert suite.score()["s"].stderr is not None


def test_items_that_were_scored_in_parts_give_the_score_of_the_whole(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.cloze()
    bench.choice("small", n=8)
    bench.choice("large", n=24)
    bench.text("brief", n=8)
    bench.text("long", n=20)
    rule = "[{metric: bits_per_byte, aggregation: mean, weight_by_size: false}]"
    (bench.tasks / "texts.yaml").write_text(f"group: texts\ntask: [brief, long]\naggregate_metric_list: {rule}\n")
    (bench.tasks / "choices.yaml").write_text("group: choices\ntask: [small, large]\n")
    bench.data("own.jsonl", [{"n": i / 7, "kind": i // 3} for i in range(33)], bench.folder)
    (bench.folder / "mine.py").write_text("def score(model, tokenizer, items):\n    return [i['n'] for i in items]\n")
    slices = {
        "texts": {"task": "texts", "metric": "bits_per_byte"},
        "words": {"task": "long", "metric": "word_perplexity"},
        "cloze": {"task": "cloze", "metric": "perplexity", "cluster": "b"},
        "choices": {"task": "choices", "metric": "acc_norm"},
        "mine": {"python": "mine:score", "data": "own.jsonl", "cluster": "kind", "direction": "lower"},
    }
    suite = Suite.build(bench.fitness(slices), model, tokenizer)
    infos: Mapping[str, SliceInfo] = pickle.loads(pickle.dumps(suite.info)).slices
    assert infos == suite.info.slices
    whole = suite.score()
    for name, info in infos.items():
        assert info.items == tuple(item.item for item in whole[name].items)
        assert info.aggregation is not None
        assert info.aggregation.kind.sign == info.sign
        # As they come back from a run folder.
        items = [replace(item, raw=json.loads(json.dumps(item.raw))) for item in whole[name].items]
        score = info.aggregation.score(items)
        assert (score.value, score.stderr) == (whole[name].value, whole[name].stderr)
    parts = [{n: frozenset(info.items[at::2]) for n, info in infos.items()} for at in (0, 1)]
    scored = [suite.score(items=part) for part in parts]
    for name, info in infos.items():
        by_name = {item.item: item for part in scored for item in part[name].items}
        assert info.aggregation is not None
        assert info.aggregation.score([by_name[i] for i in info.items]).value == pytest.approx(whole[name].value)
