"""Searches in which several candidates are scored at once and end in another order than they were asked, in one
process: what is asked, told and kept must not depend on that, or be written down."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

import evomerge
from evomerge.errors import InputError, TrialError
from evomerge.evaluator.executor import InProcess, run_all, run_job
from evomerge.evaluator.jobs import Job
from evomerge.study import executors
from evomerge.study.after.status import Status
from evomerge.study.observer import Observer
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.trial import Trial

Study = Callable[..., Path]


class Juggler(InProcess):
    """Takes three jobs at a time, and ends them in any order."""

    num_workers = 3

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self._jobs: list[Job] = []
        self._draw = random.Random(0)

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def result(self) -> tuple[Job, Any]:
        job = self._jobs.pop(self._draw.randrange(len(self._jobs)))
        return job, run_job(job, self._evaluator, self._progress.slice_started)


class StopAfter(Observer):
    """Ctrl-C when so many trials have ended, or (`begun`) so many pieces of work were begun, with others in flight."""

    def __init__(self, count: int, begun: bool = False) -> None:
        self.left, self.begun = count, begun

    def trial_started(self, trial: Trial) -> None:
        self._count(self.begun)

    def trial_finished(self, trial: Trial, leaderboard: Any) -> None:
        self._count(not self.begun)

    def _count(self, counts: bool) -> None:
        self.left -= counts
        if self.left < 0:
            raise KeyboardInterrupt


def facts(run: str) -> list[tuple[Any, ...]]:
    trials = evomerge.status(run).search.trials
    about = ("number", "label", "genome", "digest", "scores", "stderr", "state", "reason", "pruned_by", "evaluated")
    return [tuple(getattr(trial, name) for name in about) for trial in trials]


def with_pruning(pruning: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda space, fitness: fitness.update(pruning=pruning)


@pytest.mark.slow
@pytest.mark.parametrize("pruning", [True, False])
def test_with_generations_nothing_depends_on_who_ends_first(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch, pruning: bool
) -> None:
    space = tiny_study(with_pruning(pruning))
    one = evomerge.search(space, run="one", trials=36)
    monkeypatch.setattr(executors, "InProcess", Juggler)
    many = evomerge.search(space, run="many", trials=36)
    assert facts("many") == facts("one")
    on_holdout = [[(t.number, t.scores, t.state) for t in r.holdout.trials] for r in (many, one)]
    assert on_holdout[0] == on_holdout[1]
    with pytest.raises(KeyboardInterrupt):
        evomerge.search(space, run="parts", trials=36, observer=StopAfter(7))
    for count, begun in ((4, True), (2, False), (3, True)):
        with pytest.raises(KeyboardInterrupt):
            evomerge.resume("parts", observer=StopAfter(count, begun))
    evomerge.resume("parts")
    assert facts("parts") == facts("one")


@pytest.mark.parametrize(("optimizer", "pruning"), [("tpe", True), ("random", False)])
def test_an_asynchronous_search_goes_on_as_it_was_wherever_it_was_cut(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch, optimizer: str, pruning: bool
) -> None:
    monkeypatch.setattr(executors, "InProcess", Juggler)
    space = tiny_study(with_pruning(pruning))
    with pytest.raises(KeyboardInterrupt):
        evomerge.search(space, optimizer=optimizer, asynchronous=True, trials=30, observer=StopAfter(9))
    for count in (0, 3, 7):
        before = {row[0]: row for row in facts("space")}
        with pytest.raises(KeyboardInterrupt):
            evomerge.resume("space", observer=StopAfter(count))
        now = facts("space")
        kept = [row for number, row in before.items() if row[6] != "running"]
        assert all(now[row[0]] == row for row in kept)
    evomerge.resume("space")
    check_record(evomerge.status("space"), 30)
    order = [t.order for t in evomerge.status("space").search.trials if t.kind == "search"]
    assert order != sorted(order)
    evomerge.resume("space", trials=33)  # which replays all of it
    check_record(evomerge.status("space"), 33)


def check_record(state: Status, count: int) -> None:
    """Every trial ended once, all is told in one order, and nobody was told what had not ended."""
    trials = [t for t in state.search.trials if t.kind == "search"]
    assert len(state.search.trials) == count
    assert [t.number for t in state.search.trials] == list(range(count))
    assert all(t.state in ("complete", "pruned") for t in trials)
    assert sorted(t.order for t in trials if t.order is not None) == list(range(len(trials)))
    assert all(t.n_told is not None and t.order is not None and t.n_told <= t.order for t in trials)
    assert [t.n_told for t in trials] == sorted(t.n_told for t in trials if t.n_told is not None)
    assert state.finished


def test_one_at_a_time_asynchronous_and_not_are_the_same(tiny_study: Study) -> None:
    space = tiny_study(with_pruning(["early_stop"]))
    for run, asynchronous in (("a", True), ("b", False)):
        evomerge.search(space, run=run, optimizer="tpe", asynchronous=asynchronous, trials=16)
    assert facts("a") == facts("b")


def test_budgets_hold_for_what_is_in_flight(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "InProcess", Juggler)
    space = tiny_study()
    for trials in (5, 8):
        evomerge.search(space, run=f"r{trials}", optimizer="random", asynchronous=True, trials=trials)
        check_record(evomerge.status(f"r{trials}"), trials)


def test_the_time_of_several_is_the_time_that_passes(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "InProcess", Juggler)
    space = tiny_study(lambda space, fitness: space.update(budget={"time": "1s"}))
    result = evomerge.search(space, optimizer="random", asynchronous=True)
    trials = sorted(result.search.trials, key=lambda t: -1 if t.order is None else t.order)
    assert sum(t.seconds["elapsed"] for t in trials) >= 1
    assert sum(t.seconds["elapsed"] for t in trials[:-3]) < 1  # two others were in flight when it was over
    check_record(evomerge.status("space"), len(trials))


def test_candidates_without_a_generation_cannot_race(tiny_study: Study) -> None:
    space = tiny_study(with_pruning(["racing", "early_stop"]))
    with pytest.raises(InputError, match=r"pruning: racing compares .* asynchronous search has none; leave it out"):
        evomerge.search(space, asynchronous=True)
    assert not Path("runs").exists()


def test_asynchronous_is_part_of_the_space_file(tiny_study: Study) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["optimizer"] = {"name": "random", "asynchronous": True}

    evomerge.search(tiny_study(change), trials=5, optimizer="tpe")  # which takes its place keeps it
    trials = evomerge.status("space").search.trials
    assert trials[-1].n_told == 0
    assert "asynchronous: true" in RunFolder.named("space").space.read_text()


@dataclass(frozen=True, eq=False)
class Saying:
    """A job that needs no model."""

    word: str
    recipe: Any = None

    def run(self, evaluator: Any, on_slice: Any) -> str:
        if self.word == "no":
            raise TrialError("no")
        return self.word


class Shuffled:
    """Runs jobs in any order."""

    num_workers = 3

    def __init__(self) -> None:
        self._jobs: list[Any] = []
        self._draw = random.Random(1)
        self.most = 0

    def submit(self, job: Any) -> None:
        self._jobs.append(job)
        self.most = max(self.most, len(self._jobs))

    def result(self) -> tuple[Any, Any]:
        job = self._jobs.pop(self._draw.randrange(len(self._jobs)))
        return job, run_job(job, cast(Any, None), lambda name: None)


def test_a_task_gets_the_results_of_several_jobs_in_their_order() -> None:
    def together(words: str) -> Generator[Any, Any, list[str]]:
        results = yield [Saying(word) for word in words.split()]
        return [str(result) for result in results]

    def one(word: str) -> Generator[Any, Any, list[str]]:
        try:
            return [(yield Saying(word))]
        except TrialError as error:
            return [f"{error}!"]

    executor = Shuffled()
    ended = list(run_all(cast(Any, executor), [together("a no b"), one("c"), one("no"), together(""), one("d")]))
    assert sorted(ended) == [[], ["a", "no", "b"], ["c"], ["d"], ["no!"]]
    assert executor.most == 5  # a task's jobs run side by side, three tasks do
