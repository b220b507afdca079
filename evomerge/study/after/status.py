"""`evomerge.status` and `evomerge.runs`: read a run, finished or going on, without its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evomerge.errors import EvomergeError
from evomerge.study.after.dataframe import trials_dataframe
from evomerge.study.run.driver import Driver, driver
from evomerge.study.run.folder import RunFolder, list_runs
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.manifest import Environment
from evomerge.study.run.release import Contributions, Release, recorded_contributions, released, rescored
from evomerge.study.run.store import Store, open_storage
from evomerge.study.run.trial import Trial

if TYPE_CHECKING:
    import pandas as pd


class NothingFeasible(EvomergeError):
    """The run holds no recipe that passes every floor (exit code 1: it ran, and the answer is no)."""


@dataclass(frozen=True)
class Status:
    """A run as its storage tells it.

    Attributes:
        budget: the last one: "trials", "seconds" and, where they are limited, "items".
        slices: by name: "metric", "sign" and "weight".
        search: all trials, by their search scores.
        release: the last one; None before a search has ended. The run is `finished` when no trial is to come after it.
        rescored: all trials that have holdout scores, with these.
        gained: what gradient steps gained.
        driver: the process that drives it now.
        items: what the finished trials count against the budget of items: what they were scored on in the search.
        confidence: of the fitness file.
    """

    folder: RunFolder
    budget: Mapping[str, Any]
    slices: Mapping[str, Mapping[str, Any]]
    search: Leaderboard
    release: Release | None
    rescored: Sequence[Trial] = ()
    gained: Contributions | None = None
    driver: Driver | None = None
    items: int = 0
    confidence: float | None = None

    @property
    def facts(self) -> Mapping[str, Mapping[str, Any]]:
        """The same as `slices`."""
        return self.slices

    @property
    def holdout(self) -> Leaderboard:
        """Ranks the trials of the last release by their holdout scores; empty before one."""
        return self.release.leaderboard if self.release else Leaderboard(Floors.unsettled())

    @property
    def state(self) -> Literal["running", "stopped", "finished"]:
        """A run that no process drives and that has not ended is stopped: `evomerge.resume` goes on."""
        if self.driver is not None:
            return "running"
        return "finished" if self.finished else "stopped"

    @property
    def seconds(self) -> float:
        """What the finished trials count against the budget of time, in seconds."""
        ended = (t.seconds for t in self.search.trials if t.state != "running")
        return sum(seconds.get("elapsed", seconds.get("total", 0.0)) for seconds in ended)

    @property
    def done(self) -> int:
        return self.search.n_finished

    @property
    def finished(self) -> bool:
        if self.release is None or self.release.after != self.done:
            return False
        # A trial that a killed process left in flight stays so where the budget ended before its turn.
        return self.done == len(self.search.trials) or self._budget_is_spent

    @property
    def _budget_is_spent(self) -> bool:
        spent = {"trials": self.done, "seconds": self.seconds, "items": self.items}
        limits = {name: self.budget.get(name) for name in spent}
        return any(limit is not None and spent[name] >= limit for name, limit in limits.items())

    @property
    def winner(self) -> Trial | None:
        return self.release.winner if self.release else None

    def metrics(self, trial: Trial) -> dict[str, float]:
        """A trial's scores in the metrics' own directions, by slice; `Trial.scores` are oriented: higher is better."""
        return {name: self.slices[name]["sign"] * value for name, value in trial.scores.items()}

    def trials_dataframe(self) -> pd.DataFrame:
        """One row a trial, by its search scores (`after.dataframe.trials_dataframe`)."""
        return trials_dataframe(self.search)


@dataclass(frozen=True)
class Unreadable:
    """A run whose storage cannot be read, and why."""

    folder: RunFolder
    problem: str


def status(run: str | Path) -> Status:
    """One run's progress, references and best trials. InputError where there is no such run, or it is damaged."""
    folder = RunFolder.existing(run)
    environment, process = Environment.read(folder), driver(folder)
    missing = environment.storage is None and not folder.journal.exists()
    store = None if missing else Store.open(open_storage(folder.journal, environment.storage), environment.study)
    if store is None:
        if lost := environment.study_missing(folder):
            raise lost
        return Status(folder, {}, {}, Leaderboard(Floors.unsettled()), None, driver=process)
    budget, slices = store.facts.get("budget", {}), store.facts.get("slices", {})
    leaderboard = Leaderboard(_floors(store.facts, slices), store.trials())
    gained = recorded_contributions(store)
    items = sum(trial.items_scored for trial in store.as_ended() if trial.state != "running")
    confidence = environment.identity.get("fitness file", {}).get("confidence")
    end = released(store), rescored(store), gained
    return Status(folder, budget, slices, leaderboard, *end, process, items, confidence)


def _floors(facts: Mapping[str, Any], slices: Mapping[str, Mapping[str, Any]]) -> Floors:
    if "gates" in facts:
        return Floors.from_data(facts["gates"])
    return Floors.unsettled({name: fact["sign"] for name, fact in slices.items()})


def runs(root: str | Path = "runs") -> list[Status | Unreadable]:
    """All runs of a folder, oldest first."""
    states: list[Status | Unreadable] = []
    for folder in list_runs(Path(root)):
        try:
            states.append(status(folder.path))
        except (EvomergeError, OSError, ValueError, KeyError) as error:
            states.append(Unreadable(folder, " ".join(str(error).split())))
    return states
