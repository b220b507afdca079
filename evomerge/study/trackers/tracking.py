"""Passes what a search reports of its trials on to trackers."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from evomerge.errors import InputError
from evomerge.safety.durable import write_whole
from evomerge.safety.read import read_object
from evomerge.study.observer import Observer
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.numbers import of_holdout, of_search
from evomerge.study.run.trial import Trial
from evomerge.study.trackers.tracker import Tracker
from evomerge.study.trials import Trials

FILE = "trackers.json"
"""In the run's folder: name of a tracker -> its `record`, and how many trials it has been told."""


class Tracking(Observer):
    """Tells trackers of trials, and another observer of everything that it is told itself.

    A tracker that a resumed search has had before is told what it has not been told yet, a new one all trials.
    """

    def __init__(self, trackers: Sequence[Tracker], folder: Path, observer: Observer) -> None:
        self._trackers, self._folder, self._observer = list(trackers), folder, observer
        self._told: dict[str, dict[str, Any]] = _read(folder / FILE)
        self._signs: Mapping[str, int] = {}
        self._waiting: list[Trial] = []  # references, until their margins are known

    def start(self, config: Mapping[str, Any], signs: Mapping[str, int], leaderboard: Leaderboard) -> None:
        """The search begins or goes on. `leaderboard` has the trials of earlier sessions."""
        self._signs = signs
        ended = [trial for trial in leaderboard.trials if trial.state != "running"]
        ended.sort(key=lambda t: (t.kind == "search", t.number if t.order is None else t.order))
        for tracker in self._trackers:
            tracker.record = self._told.get(tracker.name, {}).get("record")
        self._tell(lambda tracker: tracker.start(self._folder, config))
        for tracker in list(self._trackers):
            for trial in ended[self._told.get(tracker.name, {}).get("trials", 0) :]:
                self._tell_trial(trial, leaderboard, [tracker])
        if self._trackers:
            self._keep()

    def finish(self, state: str, leaderboard: Leaderboard, winner: Trial | None = None) -> None:
        """The session has ended."""
        self._tell_waiting(leaderboard)
        summary: dict[str, Any] = {"state": state, "trials": leaderboard.n_finished}
        if state == "finished":
            summary["winner"] = None if winner is None else winner.number
        if winner is not None:
            searched = next(t for t in leaderboard.trials if t.number == winner.number)
            summary |= of_search(searched, self._signs, leaderboard.floors) | of_holdout(winner, self._signs)
        self._tell(lambda tracker: tracker.finish(summary))

    def trial_started(self, trial: Trial) -> None:
        self._observer.trial_started(trial)

    def trial_finished(self, trial: Trial, leaderboard: Leaderboard) -> None:
        self._observer.trial_finished(trial, leaderboard)
        self._waiting.append(trial)
        if leaderboard.settled:
            self._tell_waiting(leaderboard)

    def _tell_waiting(self, leaderboard: Leaderboard) -> None:
        waiting, self._waiting = self._waiting, []
        for trial in waiting:
            self._tell_trial(trial, leaderboard, self._trackers)
        if waiting and self._trackers:
            self._keep()

    def _tell_trial(self, trial: Trial, leaderboard: Leaderboard, trackers: Sequence[Tracker]) -> None:
        numbers = trial_numbers(trial, leaderboard, self._signs)

        def tell(tracker: Tracker) -> None:
            tracker.trial(trial.number, numbers)
            told = self._told.setdefault(tracker.name, {})
            told["trials"] = told.get("trials", 0) + 1

        self._tell(tell, trackers)

    def _tell(self, tell: Callable[[Tracker], None], trackers: Sequence[Tracker] | None = None) -> None:
        """Tells each tracker. One that fails is told no more."""
        for tracker in list(self._trackers if trackers is None else trackers):
            if not any(tracker is other for other in self._trackers):
                continue
            try:
                with redirect_stdout(sys.stderr):  # stdout is for results
                    tell(tracker)
            except (Exception, SystemExit) as error:  # a library may end the program
                name = tracker.name or type(tracker).__name__
                self._observer.warn(f"{name} records no more: {type(error).__name__}: {error}")
                self._trackers = [other for other in self._trackers if other is not tracker]

    def _keep(self) -> None:
        """Writes down what a resumed search needs to know. Without it trials would be told twice, no more."""
        for tracker in self._trackers:
            self._told.setdefault(tracker.name, {})["record"] = tracker.record
        try:
            write_whole(self._folder / FILE, json.dumps(self._told))
        except OSError as error:
            self._observer.warn(f"{self._folder / FILE} cannot be written: {error.strerror}")


@contextmanager
def tracked(trials: Trials, trackers: Sequence[Tracker], config: Mapping[str, Any]) -> Iterator[Tracking]:
    """Until the end, trackers are told of a run's trials. One that is interrupted or fails ends for them, too."""
    observer = trials.observer
    tracking = Tracking(trackers, trials.folder.path, observer)
    trials.observer = tracking
    try:
        tracking.start(config, {n: s.sign for n, s in trials.criteria.info.slices.items()}, trials.leaderboard)
        yield tracking
    except BaseException as error:
        tracking.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", trials.leaderboard)
        raise
    finally:
        trials.observer = observer


def trial_numbers(trial: Trial, leaderboard: Leaderboard, signs: Mapping[str, int]) -> dict[str, float]:
    """The numbers that trackers get of a trial that has ended (`Tracker.trial`)."""
    genes = {f"gene.{k}": float(v) for k, v in trial.genome.items() if isinstance(v, int | float)}
    seconds = {"seconds": float(trial.seconds.get("total", math.nan))}
    if trial.objective is None:
        return {"failed": 1.0, **seconds, **genes}
    return {
        "objective": trial.objective,
        **of_search(trial, signs, leaderboard.floors),
        **({"feasible": float(leaderboard.outcome(trial).feasible)} if leaderboard.settled else {}),
        "predicted": float(trial.state == "pruned"),
        "items": float(trial.evaluated),
        **seconds,
        **genes,
    }


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """What an earlier session wrote down; nothing where that cannot be read."""
    if not file.is_file():
        return {}
    try:
        data = read_object(file)
    except InputError:
        return {}
    fits = all(isinstance(told, dict) and isinstance(told.get("trials", 0), int) for told in data.values())
    return data if fits else {}
