"""Studies whose scores cost nothing: their files, and an executor that stands in the evaluator's place. Everything else
is the true search."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

Answers = Callable[[str, int, str], bool]
"""Whether an item is answered right, by its slice, its place in it, and its name."""


def write_study(
    folder: Path,
    base: Path,
    sources: Mapping[str, Path],
    optimizer: Mapping[str, Any],
    trials: int,
    fitness: Mapping[str, Any],
) -> Path:
    """Writes `space.yaml` and `fitness.yaml` of a search for weights by source and layer group. Returns the first; an
    empty `optimizer` is left out."""
    space = {
        "base": str(base),
        "sources": {name: str(path) for name, path in sources.items()},
        "layers": 2,
        "genes": {
            "method": "task_arithmetic",
            "weight": {"low": 0.0, "high": 1.0, "init": 0.4, "per": ["sources", "layers"]},
        },
        **({"optimizer": dict(optimizer)} if optimizer else {}),
        "budget": {"trials": trials},
        "fitness": "fitness.yaml",
    }
    for file, data in (("space.yaml", space), ("fitness.yaml", dict(fitness))):
        (folder / file).write_text(yaml.safe_dump(data, sort_keys=False))
    return folder / "space.yaml"


class FreeExecutor(ABC):
    """An executor whose scores are a function of the job, item by item."""

    num_workers, devices = 1, "none"

    def __init__(self, plan: Any, items: int) -> None:
        """`plan`: of the study; each of its slices gets so many `items`, on either split."""
        from evomerge.scoring.slices import SliceInfo, SuiteInfo
        from evomerge.scoring.stats.aggregation import ItemMean, MeanKind

        mean, names = ItemMean(MeanKind(1, best=1.0, worst=0.0)), tuple(f"items/{i}" for i in range(items))
        slices = plan.fitness.slices
        infos = {n: SliceInfo(n, 1, "acc", 1.0, slices[n].floor, names, mean, "") for n in slices}
        self.info, self.digests = SuiteInfo(infos, tuple((name,) for name in slices)), dict.fromkeys(slices, "none")
        self._queue: deque[Any] = deque()

    @abstractmethod
    def answers(self, job: Any) -> Answers:
        """Which items a job's recipe answers."""

    def submit(self, job: Any) -> None:
        self._queue.append(job)

    def result(self) -> tuple[Any, Any]:
        from evomerge.evaluator.evaluation import Evaluation
        from evomerge.evaluator.jobs import DocumentsJob

        job = self._queue.popleft()
        if isinstance(job, DocumentsJob):
            return job, {}  # such items have no texts
        answers = self.answers(job)
        wanted = {name: None if job.items is None else job.items.get(name, ()) for name in self.info.slices}
        scores = {n: self._score(answers, n, names) for n, names in wanted.items() if names is None or names}
        return job, Evaluation(scores, job.recipe.id, {"materialize": 0.0, "score": 0.0})

    def _score(self, answers: Answers, name: str, names: Any) -> Any:
        from evomerge.types import ItemScore, SliceScore

        items = tuple(
            ItemScore(item, right := float(answers(name, place, item)), raw=right)
            for place, item in enumerate(self.info.slices[name].items)
            if names is None or item in names
        )
        value = math.fsum(i.score or 0.0 for i in items) / len(items)
        return SliceScore(value, math.sqrt(value * (1 - value) / len(items)), items)
