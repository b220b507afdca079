"""Models and tasks that vLLM can serve: heads of 64 numbers, generated answers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import save_tiny

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "max_position_embeddings": 256,
}
"""Two heads of 64 numbers: vLLM's attention on the CPU takes no smaller ones."""


def write_models(root: Path) -> None:
    """`base`, `one` and `two`, float32."""
    save_tiny(root / "base", 1, **SHAPE)
    save_tiny(root / "one", 2, near=root / "base", scale=0.05)
    save_tiny(root / "two", 3, near=root / "base", scale=0.05)


def write_generated(folder: Path, name: str, seed: int, count: int = 16, letters: int = 6, **changes: Any) -> None:
    """A task of `count` texts of so many letters that are to be continued. Right answers are the item's letter."""
    draw = random.Random(seed)
    items = [{"q": "".join(draw.choices("abcdefgh", k=letters)), "a": draw.choice("abcdefgh")} for _ in range(count)]
    _write(
        folder,
        name,
        items,
        output_type="generate_until",
        doc_to_text="{{q}}",
        doc_to_target="{{a}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 10},
        metric_list=[
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "regexes_to_ignore": ["[b-z ]+"]}
        ],
        **changes,
    )


def write_texts(folder: Path, name: str, seed: int, count: int = 16) -> None:
    """A task of `count` texts, whose likelihood counts."""
    draw = random.Random(seed)
    items = [{"text": "".join(draw.choices("abcdefgh", k=30))} for _ in range(count)]
    _write(
        folder,
        name,
        items,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )


def _write(folder: Path, name: str, items: list[dict[str, Any]], **task: Any) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    common = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "metadata": {"version": 1},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, **task}))


def write_study(root: Path, trials: int = 10, **fitness: Any) -> Path:
    """Models, three tasks and both files; returns the space file."""
    write_models(root / "models")
    tasks = root / "tasks"
    tasks.mkdir()
    write_generated(tasks, "first", 1)
    write_generated(tasks, "second", 2)
    write_texts(tasks, "texts", 3)
    slices = {
        "first": {"task": "first", "metric": "exact_match"},
        "length": {"of": "first", "metric": "generated_tokens", "weight": 0},
        "second": {"task": "second", "metric": "exact_match"},
        "texts": {"task": "texts", "metric": "bits_per_byte", "engine": "resident"},
    }
    data = {"include": ["tasks"], "engine": "vllm", "objective": "weighted_mean", "slices": slices, **fitness}
    (root / "fitness.yaml").write_text(yaml.safe_dump(data))
    space = {
        "base": "models/base",
        "sources": {"one": "models/one", "two": "models/two"},
        "genes": {"method": "task_arithmetic", "weight": {"low": 0.0, "high": 1.0, "per": ["sources"]}},
        "budget": {"trials": trials},
        "optimizer": {"name": "cma-es", "population": 4, "seed": 1},
        "fitness": "fitness.yaml",
    }
    (root / "space.yaml").write_text(yaml.safe_dump(space))
    return root / "space.yaml"
