"""Which jobs hold up a generation, and what their second answers are good for."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

from evomerge.evaluator.cluster.stragglers import Stragglers
from evomerge.evaluator.jobs import Job, ScoreJob


def job(count: int | None = None) -> Job:
    items = None if count is None else {"a": frozenset(map(str, range(count)))}
    return ScoreJob(cast(Any, None), "search", items)


def test_a_job_is_late_by_jobs_of_its_kind() -> None:
    known, long_ago = Stragglers(), time.monotonic() - 60
    assert not known.is_late(job(), long_ago)
    for _ in range(3):
        known.learn(job(), 10.0)
        known.learn(job(8), 100.0)
    assert known.is_late(job(), long_ago)
    assert not known.is_late(job(), time.monotonic() - 15)
    assert not known.is_late(job(8), long_ago)
    assert not known.is_late(job(9), long_ago)


def test_jobs_of_moments_are_not_late() -> None:
    known = Stragglers()
    for _ in range(3):
        known.learn(job(), 0.01)
    assert not known.is_late(job(), time.monotonic() - 1)


def test_the_first_answer_counts_and_the_second_has_to_agree() -> None:
    known, once, twice = Stragglers(), job(), job()
    for _ in range(3):
        known.learn(once, 1.0)
    known.repeat(twice)
    assert not known.is_late(twice, time.monotonic() - 60)  # a third try is none
    assert not known.is_answered(twice)
    assert known.first(once, SimpleNamespace(digest="x"))
    assert known.first(twice, SimpleNamespace(digest="x"))
    assert known.is_answered(twice)
    assert not known.first(twice, SimpleNamespace(digest="x"))
    assert known.agrees(twice, SimpleNamespace(digest="x"))
    assert not known.agrees(twice, SimpleNamespace(digest="y"))
    assert known.agrees(twice, ValueError("says nothing of weights"))
