"""The quickstart's models under floors on accuracies: many searches that differ in the optimizer and in the pruners."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge.demo import data
from evomerge.demo.run import copy_starter_files
from evomerge.demo.train import prepare

ITEMS, FLOOR = 170, 0.90

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "default": {},
    "cma-es": {"name": "cma-es", "population": 12, "sigma": 0.2},
    "tpe": {"name": "tpe"},
}


def models(root: Path) -> None:
    """Trains the models in `root`, unless it has them, and copies their tasks there."""
    copy_starter_files(root)
    prepare(root)


def items(root: Path) -> dict[str, list[str]]:
    """The lines of each slice's items."""
    files = {domain: root / f"fitness/quickstart/{domain}.jsonl" for domain in data.DOMAINS}
    return {domain: file.read_text().splitlines(keepends=True) for domain, file in files.items()}


def write_files(
    place: Path,
    root: Path,
    lines: Mapping[str, list[str]],
    optimizer: Mapping[str, Any],
    trials: int,
    floor: Any = FLOOR,
    **fitness: Any,
) -> Path:
    """Space and fitness file of a search, in `place`, over the models in `root`; returns the space file. Each slice has
    the items of `lines`, right or wrong, and a floor; `fitness` are further keys of the fitness file. Without an
    `optimizer` it is the default."""
    place.mkdir(parents=True, exist_ok=True)
    shutil.copytree(root / "fitness/quickstart", place / "tasks", dirs_exist_ok=True)
    for domain, own in lines.items():
        (place / f"tasks/{domain}.jsonl").write_text("".join(own))
    slices = {domain: {"task": f"quickstart_{domain}", "metric": "acc", "floor": floor} for domain in lines}
    folder = root / "models/quickstart"
    space = {
        "base": str(folder / "base"),
        "sources": {domain: str(folder / domain) for domain in data.DOMAINS},
        "dtype": "float32",
        "layers": 2,
        "genes": {
            "method": "task_arithmetic",
            "weight": {"low": 0.0, "high": 1.2, "init": 0.4, "per": ["sources", "layers"]},
        },
        **({"optimizer": dict(optimizer)} if optimizer else {}),
        "budget": {"trials": trials},
        "fitness": "fitness.yaml",
    }
    whole = {"include": ["tasks"], "batch_size": 64, **fitness, "slices": slices}
    (place / "fitness.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    (place / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    return place / "space.yaml"
