"""A source file that changes while a search runs: the search ends with a line, nothing that was scored is lost, and no
trial is of two models."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.errors import InputError, StoppedError
from evomerge.study.observer import Observer, StageName
from evomerge.study.run.trial import Trial
from tests.conftest import INTERRUPTIBLE
from tests.evaluator.test_executor import facts

Study = Callable[..., Path]
WEIGHTS = Path("models/one/model.safetensors")
OTHER = Path("models/two/model.safetensors")


def overwrite() -> None:
    shutil.copyfile(OTHER, WEIGHTS)


def truncate() -> None:
    os.truncate(WEIGHTS, WEIGHTS.stat().st_size // 2)


class Changes(Observer):
    """Changes a file in the middle of the search: when trials or finalists have been scored, or one is being scored."""

    def __init__(self, change: Callable[[], None], trials: int = -1, finalists: int = -1, started: int = -1) -> None:
        self.change, self.left = change, {"finished": trials, "finalists": finalists, "started": started}

    def _count(self, what: str) -> None:
        self.left[what] -= 1
        if not self.left[what]:
            self.change()

    def trial_started(self, trial: Trial) -> None:
        self._count("started")

    def trial_finished(self, trial: Trial, leaderboard: Any) -> None:
        self._count("finished")

    def stage(self, name: StageName, done: int, total: int | None, last: str = "") -> None:
        if name == "holdout" and done:
            self._count("finalists")


def kept(run: str) -> dict[int, Any]:
    return {row[0]: row for row in facts(run) if row[6] != "running"}


@pytest.fixture
def whole(tiny_study: Study) -> dict[int, Any]:
    """The trials of an undisturbed search; the files of its models are kept in `saved`."""
    evomerge.search(tiny_study(), run="whole", trials=16)
    shutil.copytree("models", "saved")
    return kept("whole")


def put_back() -> None:
    shutil.copytree("saved", "models", dirs_exist_ok=True, copy_function=shutil.copyfile)


@pytest.mark.parametrize("change", [overwrite, truncate])
def test_a_changed_file_ends_the_search_and_loses_nothing(whole: dict[int, Any], change: Callable[[], None]) -> None:
    with pytest.raises(StoppedError, match=r"has changed while the search was using it.*`evomerge resume space`"):
        evomerge.search("space.yaml", trials=16, memory="1MB", observer=Changes(change, started=7))
    assert 0 < len(kept("space")) < len(whole)
    assert all(whole[number] == row for number, row in kept("space").items())
    with pytest.raises(InputError, match=r"models|checkpoints"):  # whatever is wrong now, it is said
        evomerge.resume("space")
    put_back()
    evomerge.resume("space")
    assert kept("space") == whole


def test_finalists_are_not_scored_on_other_models(whole: dict[int, Any]) -> None:
    finalists = [(t.number, t.digest, t.scores) for t in evomerge.resume("whole").holdout.trials]
    with pytest.raises(StoppedError, match="has changed while the search was using it"):
        evomerge.search("space.yaml", trials=16, observer=Changes(overwrite, finalists=3))
    put_back()
    evomerge.resume("space")
    resumed = evomerge.resume("space")
    assert [(t.number, t.digest, t.scores) for t in resumed.holdout.trials] == finalists


def test_a_run_is_not_written_down_with_other_files_than_it_loaded(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ChangesWhileLoading(Observer):
        def phase(self, message: str) -> None:
            if message == "building the tasks":
                overwrite()

    with pytest.raises(StoppedError, match="has changed since it was opened; run the same command again"):
        evomerge.search(tiny_study(), observer=ChangesWhileLoading())
    assert not Path("runs/space/environment.json").exists()


@pytest.mark.slow
def test_a_running_process_ends_with_one_line(whole: dict[int, Any]) -> None:
    command = [*INTERRUPTIBLE, "search", "space.yaml", "--trials", "400", "--memory", "1MB", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[9/"):
            truncate()
            break
    output, rest = process.communicate(timeout=120)
    assert process.returncode == 2
    assert output == ""
    [last] = [line for line in rest.splitlines() if line.startswith("error: ")]
    assert "models/one/model.safetensors has changed" in last
    assert "Traceback" not in rest
    put_back()
    before = kept("space")
    evomerge.resume("space", trials=len(before) + 2)
    now = kept("space")
    for rows in (before, whole):  # number, label, genome, digest: the models
        assert all(now[number][:4] == rows[number][:4] for number in rows.keys() & now.keys())
    assert len(now) == len(before) + 2
