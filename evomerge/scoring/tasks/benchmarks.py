"""Public benchmarks: lm-eval's own tasks on the split that everybody reports."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.files.objects import FitnessSpec
from evomerge.scoring.tasks.built_in import built_in_tasks
from evomerge.scoring.tasks.task_files import scan


@dataclass(frozen=True)
class Benchmark:
    """A public benchmark.

    Attributes:
        task: lm-eval's.
        split: of its data, that lm-eval scores: the test split, or the validation split of one without.
        dataset: on the hub; None where it is made of several, or its file does not say.
        subset: of the data set (its configuration there), or None.
    """

    task: str
    split: str
    dataset: str | None = None
    subset: str | None = None


def benchmarks(fitness: FitnessSpec) -> dict[str, Benchmark]:
    """Those among the slices, by slice. A task that is scored on training items, or whose name says so, is none."""
    local = scan(fitness.include)
    found = {}
    for name, spec in fitness.slices.items():
        if spec.task is None or spec.of is not None or spec.task in local.names or spec.task.endswith("_train"):
            continue
        splits, data = set[str](), set[tuple[str | None, str | None]]()
        for leaf in built_in_tasks(spec.task):
            config = leaf.config
            splits.add(str(config.get("test_split") or config.get("validation_split") or "train"))
            data.add((_text(config.get("dataset_path")), _text(config.get("dataset_name"))))
        scored = sorted(split for split in splits if not split.startswith("train"))
        if scored:
            dataset, subset = next(iter(data)) if len(data) == 1 else (None, None)
            found[name] = Benchmark(spec.task, scored[0], dataset, subset)
    return found


def benchmark_doubts(fitness: FitnessSpec) -> list[str]:
    """A line that names the slices that are public benchmarks; nothing where none is. Their scores mean less once a
    search has seen their items."""
    told = [f"{b.task} ({b.split})" for b in benchmarks(fitness).values()]
    if not told:
        return []
    what = "are public benchmarks" if len(told) > 1 else "is a public benchmark"
    after = "scores on that split will be optimistic, as the search sees a part of its items"
    mend = "search on training items, and keep the benchmark for the end"
    return [f"{', '.join(dict.fromkeys(told))} {what}: {after}; {mend}"]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
