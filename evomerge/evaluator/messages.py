"""Messages between the process that drives a pool and its workers. They are pickled, and nothing else ever is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evomerge.errors import InputError
from evomerge.evaluator.shares import Share
from evomerge.files.objects import FitnessSpec, SpaceSpec
from evomerge.scoring.slices import SuiteInfo

# To a worker: a `Setup`, `Load`, then jobs.


@dataclass(frozen=True)
class Setup:
    """Says what a worker evaluates, on which share of the machine, and how often it says that it is `Alive`, in
    seconds. `allow_pickle`: whether it may read pickled weights. `elsewhere`: reference -> where that model is on the
    worker's machine, if it is not where the reference says."""

    spec: SpaceSpec
    fitness: FitnessSpec
    share: Share
    memory: str | None
    beat: float
    allow_pickle: bool = False
    elsewhere: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """All workers have planned their memory: it may be taken now."""


# From a worker.


@dataclass(frozen=True)
class Alive:
    """The worker's process runs, whatever its job does."""


@dataclass(frozen=True)
class Placed:
    """The worker has planned its memory."""


@dataclass(frozen=True)
class Ready:
    """The worker has loaded, and takes jobs."""

    info: SuiteInfo
    digests: Mapping[str, str]
    devices: str


@dataclass(frozen=True)
class Failed:
    """The worker could not load."""

    error: InputError


@dataclass(frozen=True)
class Refused:
    """The worker's node cannot be used."""

    error: InputError


@dataclass(frozen=True)
class Ended:
    """The worker's process has ended: how, in words."""

    how: str


@dataclass(frozen=True)
class Finished:
    """The worker's job ended with a result or an exception."""

    result: Any


@dataclass(frozen=True)
class Logged:
    """A line for the run's log."""

    logger: str
    level: int
    text: str


@dataclass(frozen=True)
class PhaseStarted:
    message: str


@dataclass(frozen=True)
class Noted:
    message: str


@dataclass(frozen=True)
class Warned:
    message: str


@dataclass(frozen=True)
class Progressed:
    message: str
    done: float


@dataclass(frozen=True)
class SliceStarted:
    name: str


Reported = PhaseStarted | Noted | Warned | Progressed | SliceStarted
"""Calls of the worker's `Progress`."""

FromWorker = Alive | Placed | Ready | Failed | Refused | Ended | Finished | Logged | Reported
