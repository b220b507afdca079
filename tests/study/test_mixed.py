"""A method for each layer group, on real checkpoints."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.errors import InputError
from evomerge.optimize.base import Start
from evomerge.optimize.build import build
from evomerge.recipe.mergekit import read_recipe
from evomerge.recipe.relocated import anchored
from evomerge.registry import METHODS
from evomerge.study.prepare import launched_plan
from evomerge.study.run.manifest import Launch
from evomerge.types import Genome, Outcome

METHODS_SEARCHED = ["ties", "dare_ties", "task_arithmetic"]
SOURCES = ("shakespeare", "gsm8k", "french")


def write(root: Path, shared: Path, methods: list[str], sources: tuple[str, ...] = SOURCES) -> Path:
    folder = shared / "specialists"
    task = {
        "task": "gsm8k_text",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "items/gsm8k_text.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    (root / "tasks").mkdir()
    (root / "tasks/gsm8k.yaml").write_text(yaml.safe_dump(task))
    piece = {"task": "gsm8k_text", "metric": "bits_per_byte", "items": 8, "floor": {"of": "base", "margin": 1.0}}
    (root / "f.yaml").write_text(yaml.safe_dump({"include": ["tasks"], "slices": {"gsm8k": piece}, "pruning": False}))
    space: dict[str, Any] = {
        "base": str(folder / "base"),
        "sources": {name: str(folder / name) for name in sources},
        "layers": "each",
        "genes": {
            "method": {"choices": methods, "per": ["layers"]},
            "weight": {"low": 0.0, "high": 1.0, "init": 0.2, "per": ["sources"]},
            "density": {"low": 0.2, "high": 1.0, "per": ["layers"]},
        },
        "fixed": {"normalize": False},
        "budget": {"trials": 26},
        "fitness": "f.yaml",
    }
    (root / "s.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    return root / "s.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["surrogate", "cma-es"])
def test_every_method_stays_reachable_and_the_recipe_rebuilds(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space = write(tmp_path, shared, METHODS_SEARCHED)
    result = evomerge.search(space, run="mixed", optimizer=name)
    assert result.winner is not None
    trials = [t for t in result.search.trials if t.genome]
    mixed = next(t for t in reversed(trials) if t.state == "complete" and len(t.recipe.documents) > 1)
    text = evomerge.export("mixed", "mixed.yaml", trial=mixed.number, allow_infeasible=True)
    assert len(list(yaml.safe_load_all(text))) == len(mixed.recipe.documents) > 1
    assert anchored(read_recipe(Path("mixed.yaml"))).id == mixed.recipe_id, "by its own folder's paths"
    scored = evomerge.evaluate(
        "mixed.yaml", "f.yaml", split="search", references={"base": str(shared / "specialists/base")}
    )
    assert scored.digest == mixed.digest
    assert {str(v) for t in trials for k, v in t.genome.items() if k.startswith("method")} == set(METHODS_SEARCHED)
    check_reachable(name, space)


def check_reachable(name: str, space: Path) -> None:
    """However clearly one method has won in every layer, each of the others is proposed now and then."""
    dimensions = launched_plan(Launch(str(space))).space.dimensions

    def score(genome: Genome) -> Outcome:
        ties = sum(value == "ties" for value in genome.values())
        return Outcome(feasible=True, objective=ties - 0.1 * float(genome["weight[gsm8k]"]) ** 2, shortfall=0.0)

    optimizer, late = build(name, dimensions, 0, {}, Start()), Counter[str]()
    for number in range(120):
        genome = optimizer.ask().genome
        optimizer.tell(genome, score(genome))
        if number >= 60:
            late.update(str(v) for k, v in genome.items() if k.startswith("method"))
    assert late["ties"] > 0.5 * late.total()
    assert set(late) == set(METHODS_SEARCHED)


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].base == "endpoint" or m == "nuslerp"])
def test_methods_of_other_kinds_are_refused_with_a_reason(method: str, shared: Path, tmp_path: Path) -> None:
    space = write(tmp_path, shared, ["ties", method])
    with pytest.raises(InputError, match=rf"s\.yaml.*method.*{method} merges the base with .* this space has 3"):
        evomerge.search(space)
