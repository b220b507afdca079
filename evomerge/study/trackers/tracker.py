"""What a tracker is, and the trackers by name."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, Where, suggestion
from evomerge.escape import shortened
from evomerge.registry import load


class Tracker:
    """Receives a search's trials. Every method may be overridden; none has to be.

    Whatever one raises ends no search: it is a warning, and the tracker is told no more.

    Attributes:
        name: in warnings, and of the record that a resumed search goes on with.
        record: what finds the record again, such as an id. A tracker sets it in `start`; it is kept in the run's
            folder, and stands here before `start` when the search is resumed.
    """

    name = ""
    record: str | None = None

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """The search begins or goes on.

        Args:
            run: the run's folder. Its name is the run's.
            config: the space file ("space"), the fitness file ("fitness") and "versions", as launched.
        """

    def trial(self, number: int, numbers: Mapping[str, float]) -> None:
        """A trial has ended.

        Args:
            number: of the trial. With several workers trials do not end in the order of their numbers.
            numbers: "objective" (higher is better), "score.SLICE" (in the metric's own direction), "margin.SLICE"
                (above the floor), "feasible" (0 or 1), "predicted" (1 where the trial was pruned), "items",
                "seconds", "gene.KEY". A trial that failed has "failed" in place of scores.
        """

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The session has ended.

        Args:
            summary: "state" ("finished", "interrupted" or "failed") and the number of "trials"; of a finished search
                also "winner" (the trial's number, or None) and, where there is one, its "score.SLICE" and
                "holdout.SLICE".
        """


TRACKERS: Mapping[str, tuple[str, str]] = {
    "mlflow": ("mlflow", "evomerge.study.trackers.to_mlflow:ToMlflow"),
    "wandb": ("wandb", "evomerge.study.trackers.to_wandb:ToWandb"),
    "tensorboard": ("tensorboard", "evomerge.study.trackers.to_tensorboard:ToTensorBoard"),
    "trackio": ("trackio", "evomerge.study.trackers.to_trackio:ToTrackio"),
}
"""Name -> the package that it needs, and the tracker."""

_FLAG = Where("--track")


def make_trackers(chosen: Iterable[str | Tracker]) -> list[Tracker]:
    """The trackers that are named, and those that are given. InputError for what is neither, and where a package is
    not installed."""
    if isinstance(chosen, str):
        raise InputError(f"trackers is the text {chosen[:60]!r}", "give a list of names and trackers", _FLAG)
    chosen = list(chosen)
    for one in chosen:
        if not isinstance(one, str | Tracker):
            raise InputError(f"{shortened(repr(one), 60)} is no tracker", "give names and objects of Tracker", _FLAG)
    names = {one: _target(one) for one in tracker_names(chosen)}  # all of them, before one is made
    return [one if isinstance(one, Tracker) else load(names[one])() for one in dict.fromkeys(chosen)]


def tracker_names(chosen: Iterable[str | Tracker]) -> list[str]:
    """The names among them, which a run remembers."""
    return [one for one in dict.fromkeys(chosen) if isinstance(one, str)]


def _target(name: str) -> str:
    if name not in TRACKERS:
        raise InputError(f"there is no tracker {name[:60]!r}", suggestion(name, TRACKERS), _FLAG)
    package, target = TRACKERS[name]
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{name} is not installed", "pip install 'evomerge[trackers]'", _FLAG)
    return target


def metric_name(key: str) -> str:
    """A number's name with the characters that every tool takes."""
    return re.sub(r"[^\w./ -]", "_", key)


def flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested mapping, by dotted keys."""
    for key, value in config.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            yield from flat(value, name)
        else:
            yield name, list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
