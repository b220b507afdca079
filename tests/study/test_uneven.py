"""A search whose models do not all store the same tensors: told first, and the winner on disk is the one scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import evomerge
from evomerge.merging.disk.stream import checkpoint_digest
from evomerge.recipe.mergekit import read_recipe
from evomerge.study.dry_run import dry_run
from evomerge.study.observer import Observer
from evomerge.study.search import search

Study = Callable[..., Path]
Tensors = dict[str, Tensor]


class Told(Observer):
    """What the user is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def store(folder: Path, change: Callable[[Tensors], Tensors], **settings: object) -> None:
    file, config = folder / "model.safetensors", folder / "config.json"
    tensors = {name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))


def predicting(tensors: Tensors) -> Tensors:
    return {**tensors, "mtp.fc.weight": torch.ones(4, 8), "model.layers.2.enorm.weight": torch.ones(16)}


def valued(tensors: Tensors) -> Tensors:
    return {**tensors, "v_head.summary.weight": torch.zeros(1, 16)}


def headless(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def compiled(tensors: Tensors) -> Tensors:
    return {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}


PREDICTION = {"model.layers.2.enorm.weight", "mtp.fc.weight"}


@pytest.mark.parametrize(
    ("changes", "told", "extra"),
    [
        ({"base": predicting}, "model.layers.2.enorm.weight, mtp.fc.weight: kept from the base, as one and two lack it",
         PREDICTION),
        ({"base": predicting, "one": predicting, "two": predicting},
         "model.layers.2.enorm.weight, mtp.fc.weight: merged, and not read by transformers", PREDICTION),
        ({"one": valued}, "v_head.summary.weight: left out, as only one has it", set()),
        ({"two": compiled, "base": compiled}, None, set()),
    ],
)  # fmt: skip
def test_a_search_merges_what_all_store(
    changes: dict[str, Callable[[Tensors], Tensors]], told: str | None, extra: set[str], tiny_study: Study
) -> None:
    file = tiny_study(lambda space, fitness: space.update(budget={"trials": 6}))
    for name, change in changes.items():
        store(file.parent / "models" / name, change)
    assert dry_run(file, run="runs/d", device="cpu").get("tensors", []) == [told for _ in range(told is not None)]
    observer = Told()
    result = search(file, run="runs/r", device="cpu", observer=observer)
    assert [t.state for t in result.search.trials] == ["complete"] * 6
    assert observer.lines.count(told) == (told is not None)
    for trial in (t for t in result.search.trials if t.number >= 3):
        out = evomerge.merge(trial.recipe, f"out{trial.number}")
        assert checkpoint_digest(out) == trial.digest
        assert {n for n in load_file(out / "model.safetensors") if "enorm" in n or "mtp" in n or "v_head" in n} == extra


@pytest.mark.parametrize("tied", [["base", "two"], ["one"]])
def test_a_search_over_tied_and_untied_heads(tied: list[str], tiny_study: Study) -> None:
    file = tiny_study(lambda space, fitness: space.update(budget={"trials": 6}))
    for name in tied:
        store(file.parent / "models" / name, headless, tie_word_embeddings=True)
    [line] = dry_run(file, run="runs/d", device="cpu")["tensors"]
    assert line.endswith(": merged models have a head of their own")
    result = search(file, run="runs/r", device="cpu")
    assert [t.state for t in result.search.trials] == ["complete"] * 6
    out = evomerge.merge(read_recipe(Path("runs/r/best.yaml")), "out")
    assert checkpoint_digest(out) in {t.digest for t in result.search.trials}
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    _, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
