"""Studies whose scores cost nothing, so that hundreds of damaged ones can be resumed: the true search on true files
with a scorer that is a function of the recipe in place of the evaluator."""

from __future__ import annotations

import hashlib
import math
import random
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

FREE_KINDS = ("racing", "cma-es", "pareto")
SLICES, ITEMS = ("a", "b"), 40


def write_free_study(folder: Path, models: Path, kind: str, trials: int = 20) -> None:
    """`space.yaml` and `fitness.yaml` of a kind of study."""
    space = {
        "base": str(models / "base"),
        "sources": {"one": str(models / "one"), "two": str(models / "two")},
        "layers": 2,
        "genes": {
            "method": "task_arithmetic",
            "weight": {"low": 0.0, "high": 1.0, "init": 0.4, "per": ["sources", "layers"]},
        },
        "optimizer": {"name": "nsga-ii" if kind == "pareto" else "cma-es", "seed": 3, "population": 8},
        "budget": {"trials": trials},
        "fitness": "fitness.yaml",
    }
    fitness = {
        "include": ["tasks"],
        "objective": "pareto" if kind == "pareto" else "mean",
        "pruning": kind == "racing",
        "slices": {name: {"task": f"tiny_{name}", "metric": "acc", "floor": 0.1} for name in SLICES},
    }
    for file, data in (("space.yaml", space), ("fitness.yaml", fitness)):
        (folder / file).write_text(yaml.safe_dump(data, sort_keys=False))


class FreeExecutor:
    """Scores recipes by their ids: the same for the same recipe, item by item."""

    num_workers, devices = 1, "none"

    def __init__(self, plan: Any) -> None:
        from evomerge.scoring.slices import SliceInfo, SuiteInfo
        from evomerge.scoring.stats.aggregation import ItemMean, MeanKind

        mean = ItemMean(MeanKind(1, best=1.0, worst=0.0))
        items = tuple(f"items/{i}" for i in range(ITEMS))
        infos = {n: SliceInfo(n, 1, "acc", 1.0, plan.fitness.slices[n].floor, items, mean, "") for n in SLICES}
        self.info, self.digests = SuiteInfo(infos, tuple((name,) for name in SLICES)), dict.fromkeys(SLICES, "none")
        self._queue: deque[Any] = deque()

    def submit(self, job: Any) -> None:
        self._queue.append(job)

    def result(self) -> tuple[Any, Any]:
        from evomerge.evaluator.evaluation import Evaluation

        job = self._queue.popleft()
        wanted = {name: None if job.items is None else job.items.get(name, ()) for name in SLICES}
        scores = {
            n: self._score(job.recipe.id, n, job.split, names) for n, names in wanted.items() if names is None or names
        }
        return job, Evaluation(scores, job.recipe.id, {"materialize": 0.0, "score": 0.0})

    def _score(self, recipe: str, name: str, split: str, names: Any) -> Any:
        from evomerge.types import ItemScore, SliceScore

        skill = 0.3 + 0.5 * _drawn(recipe, name)
        items = tuple(
            ItemScore(item, right := float(_drawn(recipe, name, split, item) < skill), raw=right)
            for item in self.info.slices[name].items
            if names is None or item in names
        )
        value = math.fsum(i.score or 0.0 for i in items) / len(items)
        return SliceScore(value, math.sqrt(value * (1 - value) / len(items)), items)


def _drawn(*parts: str) -> float:
    """A number in [0, 1) that is a function of the texts."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:6], "big") / 2**48


@contextmanager
def free_executor(plan: Any, *_: Any) -> Iterator[FreeExecutor]:
    """In place of `study.search._executor`."""
    yield FreeExecutor(plan)


# Damage. Each function changes a run's folder and says in words what it did.


def cut_journal(run: Path, draw: random.Random) -> str:
    journal = run / "study.journal"
    content = journal.read_bytes()
    at = draw.randrange(len(content))
    journal.write_bytes(content[:at])
    return f"journal cut at byte {at} of {len(content)}"


def flip_journal(run: Path, draw: random.Random) -> str:
    journal = run / "study.journal"
    if draw.random() < 0.5:  # near the end of a killed search: the damage of most power cuts
        cut_journal(run, draw)
    content = bytearray(journal.read_bytes())
    if not content:
        return "journal empty"
    at = draw.randrange(max(0, len(content) - 2000) if draw.random() < 0.5 else 0, len(content))
    content[at] ^= 1 << draw.randrange(8)
    journal.write_bytes(content)
    return f"bit of byte {at} of the journal's {len(content)}"


def flip_items(run: Path, draw: random.Random) -> str:
    file = draw.choice(sorted((run / "items").iterdir()))
    content = bytearray(file.read_bytes())
    at = draw.randrange(len(content))
    content[at] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return f"bit of byte {at} of {file.name}"


def lose_items(run: Path, draw: random.Random) -> str:
    files = sorted((run / "items").iterdir())
    file, how = draw.choice(files), draw.choice(["emptied", "halved", "missing", "a folder", "all missing"])
    if how == "all missing":
        shutil.rmtree(run / "items")
        return "items/ missing"
    if how in ("missing", "a folder"):
        file.unlink()
        if how == "a folder":
            file.mkdir()
    else:
        file.write_bytes(file.read_bytes()[: 0 if how == "emptied" else file.stat().st_size // 2])
    return f"{file.name} {how}"
