"""Scores on whole public benchmarks as files that the hub reads: `.eval_results/NAME.yaml` beside a model."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from evomerge.checkpoints.write import EVAL_RESULTS
from evomerge.errors import InputError, Where
from evomerge.files.objects import FitnessSpec
from evomerge.merging.disk.record import RECORD, read_record
from evomerge.safety.durable import write_whole
from evomerge.scoring.tasks.benchmarks import benchmarks
from evomerge.types import Scores, SplitName

if TYPE_CHECKING:
    from evomerge.scoring.slices import SliceInfo

_FLAG = Where("--eval-results")


@dataclass(frozen=True)
class EvalResults:
    """What was written, and why the other slices were not.

    Attributes:
        files: slice -> its file.
        left_out: slice -> why it has none.
    """

    files: Mapping[str, Path]
    left_out: Mapping[str, str]


def check_eval_results(model: str | Path, split: SplitName) -> Path:
    """The folder of a model that results may be written to. InputError where there is none, or a part of the items is
    scored."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise InputError(f"{model} is no folder of a model", "merge it first", _FLAG)
    if split != "all":
        raise InputError(f"the {split} split is a part of a benchmark", "add --split all", _FLAG)
    return folder


def write_eval_results(
    folder: Path, fitness: FitnessSpec, slices: Mapping[str, SliceInfo], scores: Scores
) -> EvalResults:
    """Writes a file for each slice that is a whole public benchmark which no search has chosen this model by."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    public, seen = benchmarks(fitness), _searched(folder)
    files: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for name, score in scores.items():
        benchmark, spec = public.get(name), fitness.slices[name]
        if benchmark is None:
            left_out[name] = "it is none of lm-eval's benchmarks"
        elif benchmark.dataset is None:
            left_out[name] = "it is made of several data sets"
        elif spec.items is not None:
            left_out[name] = "`items` leaves some of its items out"
        elif benchmark.task in seen:
            left_out[name] = "the search that made this model chose by its items"
        else:
            shots = spec.options.get("num_fewshot")
            notes = (
                f"lm-eval task {benchmark.task}, {slices[name].metric}, {len(score.items)} items of {benchmark.split}"
            )
            entry = EvalResultEntry(
                dataset_id=benchmark.dataset,
                task_id=benchmark.subset or "default",
                value=slices[name].show(score.value),
                date=datetime.datetime.now(datetime.UTC).date().isoformat(),
                notes=notes + ("" if shots is None else f", {shots}-shot"),
            )
            files[name] = folder / EVAL_RESULTS / f"{name}.yaml"
            files[name].parent.mkdir(exist_ok=True)
            write_whole(files[name], yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False))
    return EvalResults(files, left_out)


def _searched(folder: Path) -> set[str]:
    """The tasks by whose items the search chose that a model comes from."""
    try:
        told = read_record(folder / RECORD).search.get("slices", {})
        return {str(spec["task"]) for spec in told.values() if "task" in spec}
    except (InputError, AttributeError, TypeError):
        return set()
