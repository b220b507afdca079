"""`evomerge.status` and `evomerge.export`: read a run, finished or going on, without its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import EvomergeError, InputError, Where
from evomerge.recipe.mergekit import write_recipe
from evomerge.scoring.gates import Gate
from evomerge.study.gradients.contributions import FACT, Contributions
from evomerge.study.holdout import Release, released, rescored
from evomerge.study.run.folder import RunFolder, list_runs, write_atomic
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.manifest import Environment
from evomerge.study.run.store import Store, open_storage
from evomerge.study.run.trial import Trial


class NothingFeasible(EvomergeError):
    """The run holds no recipe that passes every floor (exit code 1: it ran, and the answer is no)."""


@dataclass(frozen=True)
class Status:
    """A run as its storage tells it. `release` is the last one, None before a search has ended; the run is
    `finished` when no trial was started after it. `rescored` are all trials that have holdout scores, with these;
    `gained` what steps along the gradient were worth."""

    folder: RunFolder
    budget: Mapping[str, Any]
    slices: Mapping[str, Mapping[str, Any]]
    search: Leaderboard
    release: Release | None
    rescored: Sequence[Trial] = ()
    gained: Contributions | None = None

    @property
    def done(self) -> int:
        return sum(t.state != "running" for t in self.search.trials)

    @property
    def finished(self) -> bool:
        return self.release is not None and self.release.after == len(self.search.trials)

    @property
    def winner(self) -> Trial | None:
        return self.release.winner if self.release else None


@dataclass(frozen=True)
class Unreadable:
    """A run whose storage cannot be read, and why."""

    folder: RunFolder
    problem: str


def status(run: str | Path) -> Status:
    """One run's progress, references and best trials. InputError where there is no such run, or it is damaged."""
    folder = RunFolder.existing(run)
    environment = Environment.read(folder)
    missing = environment.storage is None and not folder.journal.exists()
    store = None if missing else Store.open(open_storage(folder.journal, environment.storage), environment.study)
    if store is None:
        if lost := environment.study_missing(folder):
            raise lost
        return Status(folder, {}, {}, Leaderboard((), {}, {}, settled=False), None)
    facts = store.facts
    slices = facts.get("slices", {})
    leaderboard = _standing(store, facts, slices)
    gained = Contributions.from_data(facts[FACT]) if FACT in facts else None
    return Status(folder, facts.get("budget", {}), slices, leaderboard, released(store), rescored(store), gained)


def _standing(store: Store, facts: Mapping[str, Any], slices: Mapping[str, Mapping[str, Any]]) -> Leaderboard:
    if "gates" in facts:
        return Leaderboard.from_data(store.trials(), facts["gates"])
    gates = {name: Gate(name, None, "", about["sign"]) for name, about in slices.items()}
    return Leaderboard(store.trials(), gates, dict.fromkeys(gates, 1.0), settled=False)


def runs(root: str | Path = "runs") -> list[Status | Unreadable]:
    """All runs of a folder, oldest first."""
    found: list[Status | Unreadable] = []
    for folder in list_runs(Path(root)):
        try:
            found.append(status(folder.path))
        except (EvomergeError, OSError, ValueError, KeyError) as error:
            found.append(Unreadable(folder, " ".join(str(error).split())))
    return found


def export(
    run: str | Path, output: str | Path | None = None, *, trial: int | None = None, allow_infeasible: bool = False
) -> str:
    """The recipe of a run's winner (or best feasible trial so far, or `trial`) as mergekit YAML; several documents
    are a recipe for mergekit-multi. Written to `output`, if given, and returned.

    Raises:
        InputError: there is no such run or trial.
        NothingFeasible: the recipe misses a floor, or was not scored on all items, and `allow_infeasible` is false.
    """
    state = status(run)
    chosen, leaderboard, split = _chosen(state, trial)
    missed = [v.slice for v in leaderboard.verdicts(chosen) if not v.passed]
    if chosen.state == "stopped" and not allow_infeasible:
        problem = f"{chosen.name} was stopped after {chosen.evaluated} of {chosen.items} items"
        raise NothingFeasible(f"{problem}, whether it passes is open; --allow-infeasible exports it all the same")
    if missed and not allow_infeasible:
        problem = f"{chosen.name} misses the floor of {', '.join(missed)} on the {split} split"
        raise NothingFeasible(f"{problem}; --allow-infeasible exports it all the same")
    text = write_recipe(chosen.recipe, _header(state, chosen, split, missed))
    if output is not None:
        try:
            write_atomic(Path(output), text)
        except OSError as error:
            raise InputError(
                f"cannot write {output} ({error.strerror})", "give another file", Where("--output")
            ) from None
    return text


def _chosen(state: Status, number: int | None) -> tuple[Trial, Leaderboard, str]:
    if not state.search.settled:
        raise NothingFeasible(f"the run {state.folder.name!r} has not scored all its references yet")
    if number is not None:
        return _numbered(state, number)
    if state.release is not None and state.release.winner is not None:
        return state.release.winner, state.release.leaderboard, "holdout"
    leaderboard, split = (state.release.leaderboard, "holdout") if state.release else (state.search, "search")
    merges = leaderboard.merges()
    if not merges:
        raise NothingFeasible(f"the run {state.folder.name!r} has no finished merge yet")
    return merges[0], leaderboard, split


def _numbered(state: Status, number: int) -> tuple[Trial, Leaderboard, str]:
    places = [(state.release.leaderboard, "holdout")] if state.release else []
    for leaderboard, split in (*places, (state.search, "search")):
        for trial in leaderboard.trials:
            if trial.number == number and trial.ranked:
                return trial, leaderboard, split
    count = len(state.search.trials)
    raise InputError(f"the run {state.folder.name!r} has no complete trial {number}", f"it has {count}, from 0")


def _header(state: Status, trial: Trial, split: str, missed: list[str]) -> str:
    lines = [f"evomerge run {state.folder.name}, {trial.name}, recipe {trial.recipe_id[:16]}"]
    lines.append(f"digest of the weights {trial.digest}")
    for name, value in trial.scores.items():
        about = state.slices[name]
        floor = ", below its floor" if name in missed else ""
        floor += f", predicted from {trial.evaluated} of {trial.items} items" if trial.state == "stopped" else ""
        lines.append(f"{name}: {about['metric']} {about['sign'] * value:.4f} on the {split} split{floor}")
    if state.release is not None and not state.finished:
        lines.append(f"chosen after {state.release.after} trials; the run has gone on since")
    several = len(trial.recipe.documents) > 1
    peer = "mergekit-multi FILE --intermediate-dir TMP --out-path OUT" if several else "mergekit-yaml FILE OUT"
    return "\n".join([*lines, f"evomerge merge FILE OUT (these very bits), or {peer}"])
