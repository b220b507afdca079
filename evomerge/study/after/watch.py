"""`evomerge status --watch`: tells an observer what a run does, by what stands in its folder."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

from evomerge.study.after.status import Status, status
from evomerge.study.observer import Observer
from evomerge.study.run.driver import driver
from evomerge.study.run.folder import RunFolder

_PAUSE = 0.5
"""Seconds between two looks at the files of a run."""

_SHARE = 4
"""A run is read so seldom that reading it takes no more than one part in so many of the time."""


def watch(run: str | Path, observer: Observer) -> Status:
    """Tells `observer` of a run's trials as they end, until no process drives it: a finished run ends at once. Returns
    its last state.

    Raises:
        InputError: there is no such run, or it is damaged.
    """
    folder, told = RunFolder.existing(run), _Told(observer)
    read, state = _mark(folder), status(run)
    told.tell(state)
    while state.state == "running":
        started = time.monotonic()
        mark, process = _mark(folder), driver(folder)
        if mark is None or mark != read or process is None:
            read, state = mark, status(run)
            told.tell(state)
        else:
            state = replace(state, driver=process)
        time.sleep(max(_PAUSE, _SHARE * (time.monotonic() - started)))
    return state


def _mark(folder: RunFolder) -> Hashable:
    """Differs once the journal was written; None where another storage stands in its place."""
    try:
        known = folder.journal.stat()
    except OSError:
        return None
    return known.st_mtime_ns, known.st_size


class _Told:
    """What an observer was told of a run."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._ended: set[int] | None = None
        self._begun: set[int] = set()
        self._stages: dict[str, tuple[int, int | None]] = {}

    def tell(self, state: Status) -> None:
        """Tells what is new in a state."""
        observer, board = self._observer, state.search
        ended = [trial for trial in board.trials if trial.state != "running"]
        if self._ended is None:
            seconds = state.budget.get("seconds")
            left = None if seconds is None else max(0.0, seconds - state.seconds)
            signs = {name: fact["sign"] for name, fact in state.slices.items()}
            observer.launched(state.folder.name, state.budget.get("trials"), left, signs, state.seconds)
        references = sum(trial.kind == "reference" for trial in ended)
        self._stage("references", references, references if board.settled else None)
        if board.settled and "search" not in self._stages:
            self._stage("search", len(ended), state.budget.get("trials"))
        if self._ended is None:
            observer.recorded(board)
            self._ended = {trial.number for trial in ended}
        for trial in board.trials:
            if trial.state == "running" and trial.number not in self._begun:
                self._begun.add(trial.number)
                observer.trial_started(trial)
        for trial in ended:
            if trial.number not in self._ended:
                self._ended.add(trial.number)
                observer.trial_finished(trial, board)
        if state.rescored:
            self._stage("holdout", len(state.rescored), len(state.rescored) if state.finished else None)

    def _stage(self, name: str, done: int, total: int | None) -> None:
        if self._stages.get(name) != (done, total):
            self._stages[name] = done, total
            self._observer.stage(name, done, total)  # type: ignore[arg-type]
