"""A search whose sources have different vocabularies: preflight, candidates, winner."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import evomerge
from evomerge.merging.disk.stream import checkpoint_digest
from evomerge.recipe.mergekit import read_recipe
from evomerge.study.dry_run import dry_run
from evomerge.study.observer import Observer
from evomerge.study.search import search

Study = Callable[..., Path]


def extend(folder: Path, tokens: list[str]) -> None:
    """Add tokens to a model's tokenizer, and rows to its matrices."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.add_tokens(tokens)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Told(Observer):
    """What the user is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def phase(self, message: str) -> None:
        self.lines.append(message)

    warn = phase


@pytest.mark.parametrize(("policy", "rows"), [("base", 13), ("union", 15), ("two", 15)])
def test_search_merges_different_vocabularies(tiny_study: Study, policy: str, rows: int) -> None:
    def change(space: dict, fitness: dict) -> None:
        space["tokenizer"] = policy
        space["genes"]["method"] = {"choices": ["task_arithmetic", "ties"], "per": ["layers"]}
        space["genes"]["density"] = {"low": 0.2, "high": 1.0}
        space["budget"] = {"trials": 7}

    file = tiny_study(change)
    extend(file.parent / "models/two", ["kl", "mn"])
    told = Told()
    result = search(file, run="runs/r", device="cpu", observer=told)
    states = [t.state for t in result.search.trials]
    assert states == ["complete"] * 7
    lines = [line for line in told.lines if line.startswith("tokenizer")]
    if policy == "base":
        assert lines == ["tokenizer base: drops 2 tokens of two ('kl', 'mn')"]
    else:
        assert [line.partition(": ")[2] for line in lines] == [
            "fills in 2 rows for base, which lacks 'kl', 'mn'",
            "fills in 2 rows for one, which lacks 'kl', 'mn'",
        ]
    best = result.search.trials[-1]
    folder = evomerge.merge(best.recipe, file.parent / "out")
    assert checkpoint_digest(folder) == best.digest
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == rows


def test_dry_run_tells_of_tokens(tiny_study: Study) -> None:
    file = tiny_study()
    assert "tokens" not in dry_run(file)
    extend(file.parent / "models/two", ["kl"])
    assert dry_run(file)["tokens"] == ["tokenizer base: drops 1 tokens of two ('kl')"]


def test_the_winner_is_evaluated_with_its_own_tokenizer(tiny_study: Study) -> None:
    def change(space: dict, fitness: dict) -> None:
        space["tokenizer"] = "union"
        space["budget"] = {"trials": 6}

    file = tiny_study(change)
    extend(file.parent / "models/two", ["kl"])
    result = search(file, run="runs/r", device="cpu")
    best = file.parent / "runs/r/best.yaml"
    assert read_recipe(best).output.tokenizer is not None
    winner = next(t for t in result.search.trials if t.recipe.id == read_recipe(best).id)
    found = evomerge.evaluate(best, "fitness.yaml", split="search")
    assert found.digest == winner.digest
    assert {name: s.value for name, s in found.scores.items()} == pytest.approx(winner.scores)
    assert set(found.references) == {"base"}
