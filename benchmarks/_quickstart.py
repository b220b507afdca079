"""The quickstart's models under floors on accuracies: many searches that differ in the optimizer and in the pruners."""

from __future__ import annotations

import shutil
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


def write_files(place: Path, root: Path, optimizer: str, trials: int, pruning: Any) -> Path:
    """Space and fitness file of a search, in `place`, over the models in `root`; returns the space file. Each slice has
    170 items, dealt in two halves, right or wrong, and a floor of 0.90."""
    place.mkdir(parents=True, exist_ok=True)
    shutil.copytree(root / "fitness/quickstart", place / "tasks", dirs_exist_ok=True)
    for domain in data.DOMAINS:
        lines = (root / f"fitness/quickstart/{domain}.jsonl").read_text().splitlines(keepends=True)
        (place / f"tasks/{domain}.jsonl").write_text("".join(lines[:ITEMS]))
    slices = {domain: {"task": f"quickstart_{domain}", "metric": "acc", "floor": FLOOR} for domain in data.DOMAINS}
    fitness = {"include": ["tasks"], "batch_size": 64, "pruning": pruning, "slices": slices}
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
        "optimizer": OPTIMIZERS[optimizer],
        "budget": {"trials": trials},
        "fitness": "fitness.yaml",
    }
    if not space["optimizer"]:
        del space["optimizer"]
    (place / "fitness.yaml").write_text(yaml.safe_dump(fitness, sort_keys=False))
    (place / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    return place / "space.yaml"
