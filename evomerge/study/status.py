"""`evomerge.status` and `evomerge.export`: read a run, finished or going on, without its model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import EvomergeError, InputError
from evomerge.recipe.mergekit import write_recipe
from evomerge.study.folder import RunFolder, list_runs, write_atomic
from evomerge.study.holdout import released
from evomerge.study.standing import Standing
from evomerge.study.store import Store, open_storage
from evomerge.study.trial import Trial


class NothingFeasible(EvomergeError):
    """The run holds no recipe that passes every floor (exit code 1: it ran, and the answer is no)."""


@dataclass(frozen=True)
class Status:
    """A run as its storage tells it. `holdout` and `winner` are None until a search has ended."""

    folder: RunFolder
    budget: Mapping[str, Any]
    slices: Mapping[str, Mapping[str, Any]]
    search: Standing
    holdout: Standing | None
    winner: Trial | None
    finished: bool


def status(run: str | Path) -> Status:
    """One run's progress, references and best trials. InputError where there is no such run."""
    folder = RunFolder.existing(run)
    environment = json.loads(folder.environment.read_text())
    store = Store.open(open_storage(folder.journal, environment["storage"]), environment["study"])
    facts = store.facts
    search = Standing.from_data(store.trials(), facts.get("gates", {}))
    holdout = released(store)
    number = facts.get("winner")
    winner = next((t for t in holdout.trials if t.number == number), None) if holdout else None
    return Status(folder, facts.get("budget", {}), facts.get("slices", {}), search, holdout, winner, "winner" in facts)


def runs(root: str | Path = "runs") -> list[Status]:
    """All runs of a folder, oldest first."""
    return [status(folder.path) for folder in list_runs(Path(root))]


def export(
    run: str | Path, output: str | Path | None = None, *, trial: int | None = None, allow_infeasible: bool = False
) -> str:
    """The recipe of a run's winner (or best feasible trial so far, or `trial`) as mergekit YAML; several documents
    are a recipe for mergekit-multi. Written to `output`, if given, and returned.

    Raises:
        InputError: there is no such run or trial.
        NothingFeasible: the recipe misses a floor, and `allow_infeasible` is false.
    """
    state = status(run)
    chosen, standing, split = _chosen(state, trial)
    missed = [v.slice for v in standing.verdicts(chosen) if not v.passed]
    if missed and not allow_infeasible:
        problem = f"{chosen.name} misses the floor of {', '.join(missed)} on the {split} split"
        raise NothingFeasible(f"{problem}; --allow-infeasible exports it all the same")
    text = write_recipe(chosen.recipe, _header(state, chosen, split, missed))
    if output is not None:
        write_atomic(Path(output), text)
    return text


def _chosen(state: Status, number: int | None) -> tuple[Trial, Standing, str]:
    if number is not None:
        return _numbered(state, number)
    if state.winner is not None and state.holdout is not None:
        return state.winner, state.holdout, "holdout"
    standing, split = (state.holdout, "holdout") if state.holdout else (state.search, "search")
    merges = standing.merges()
    if not merges:
        raise NothingFeasible(f"the run {state.folder.name!r} has no finished merge yet")
    return merges[0], standing, split


def _numbered(state: Status, number: int) -> tuple[Trial, Standing, str]:
    for standing, split in ((state.holdout, "holdout"), (state.search, "search")):
        for trial in standing.trials if standing else ():
            if trial.number == number and trial.state == "complete":
                assert standing is not None
                return trial, standing, split
    count = len(state.search.trials)
    raise InputError(f"the run {state.folder.name!r} has no complete trial {number}", f"it has {count}, from 0")


def _header(state: Status, trial: Trial, split: str, missed: list[str]) -> str:
    lines = [f"evomerge run {state.folder.name}, {trial.name}, recipe {trial.recipe_id[:16]}"]
    lines.append(f"sha256 of the weights {trial.digest}")
    for name, value in trial.scores.items():
        about = state.slices[name]
        floor = ", below its floor" if name in missed else ""
        lines.append(f"{name}: {about['metric']} {about['sign'] * value:.4f} on the {split} split{floor}")
    several = len(trial.recipe.documents) > 1
    peer = "mergekit-multi FILE --intermediate-dir TMP --out-path OUT" if several else "mergekit-yaml FILE OUT"
    return "\n".join([*lines, f"evomerge merge FILE OUT (these very bits), or {peer}"])
