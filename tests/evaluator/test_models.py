"""What is found out about the models of a space from their headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import yaml

from evomerge.errors import InputError
from evomerge.evaluator.models import OpenModels, open_models
from evomerge.files.fitness_file import read_fitness
from evomerge.files.space_file import read_space


def opened(folder: Path, **changes: Any) -> OpenModels:
    models = tiny_models.family(folder / "models")
    data = {
        "base": str(models["base"]),
        "sources": {"a": str(models["a"])},
        "genes": {"method": "task_arithmetic", "weight": {"low": 0.0, "high": 1.0, "per": ["modules"]}},
        "fitness": "f.yaml",
        **changes,
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(data))
    (folder / "f.yaml").write_text(yaml.safe_dump({"slices": {"t": {"python": "m:f", "data": "items.jsonl"}}}))
    return open_models(read_space(folder / "s.yaml"), read_fitness(folder / "f.yaml"))


def test_ready_made_modules_are_looked_up(tmp_path: Path) -> None:
    models = opened(tmp_path, modules=["mlp", "attention"])
    assert dict(models.space.axes.modules) == {"attention": "_attn.", "mlp": ".mlp."}


@pytest.mark.parametrize("frozen", [{}, {"freeze": {"modules": ["proj"]}}])
def test_a_module_without_tensors_is_refused_where_it_is_meant(tmp_path: Path, frozen: dict[str, Any]) -> None:
    modules = {"layers": "layers", "mlp": "auto"} if not frozen else {"layers": "layers", "proj": "proj"}
    with pytest.raises(
        InputError, match=r"the module (mlp|proj) is empty: all of its tensors belong to modules before"
    ):
        opened(tmp_path, modules=modules, **frozen)
