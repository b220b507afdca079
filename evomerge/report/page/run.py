"""A run as its page reads it: its state, the models by name, and per-item scores, each read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from evomerge.errors import InputError
from evomerge.numbers import Interval
from evomerge.report.page.places import Places
from evomerge.report.results import closest
from evomerge.study.after.status import Status, status
from evomerge.study.run.documents import read_documents
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.items import load_items
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.manifest import Environment
from evomerge.study.run.recorded import intervals
from evomerge.study.run.trial import Trial
from evomerge.types import Document, ItemScore, SplitName

SPLITS: tuple[SplitName, ...] = ("holdout", "search")


class Run:
    """One run. Nothing in its folder is changed.

    Attributes:
        state: what its storage holds.
        environment: what it was launched with.
        places: what its models are called, and how paths of this machine are kept out of the page.
    """

    def __init__(self, run: str | Path | Status) -> None:
        """`run`: its name or path, or the run as it was read. InputError where there is no such run, or it is
        damaged."""
        self.state = run if isinstance(run, Status) else status(run)
        self.environment = Environment.read(self.folder)
        space = self.environment.identity.get("space file", {})
        models = {"base": str(space.get("base", "")), **{n: str(m) for n, m in _sources(space).items()}}
        self.places = Places(
            models, [Path.cwd(), Path(self.environment.launch.folder), self.folder.path], self.folder.aligned
        )

    @property
    def folder(self) -> RunFolder:
        return self.state.folder

    @property
    def space(self) -> Mapping[str, Any]:
        """The space file as it was launched."""
        space: Mapping[str, Any] = self.environment.identity.get("space file", {})
        return space

    @cached_property
    def slices(self) -> list[str]:
        return list(self.state.search.gates)

    @cached_property
    def signs(self) -> dict[str, int]:
        """-1 where lower is better."""
        return {name: gate.sign for name, gate in self.state.search.gates.items()}

    @cached_property
    def metrics(self) -> dict[str, str]:
        return {name: str(fact["metric"]) for name, fact in self.state.slices.items()}

    def board(self, split: SplitName) -> Leaderboard | None:
        """The leaderboard of a split; None where nothing was scored on the holdout."""
        if split == "search":
            return self.state.search
        return self.state.release.leaderboard if self.state.release else None

    def on(self, split: SplitName, number: int) -> Trial | None:
        """A trial with its scores on a split; None where it has none there."""
        board = self.board(split)
        trials = board.trials if board else ()
        return next((t for t in trials if t.number == number and t.ranked and t.scores), None)

    def best_known(self, number: int) -> tuple[SplitName, Trial] | None:
        """A trial's scores on the holdout where they are known, else on the search split."""
        found = ((split, self.on(split, number)) for split in SPLITS)
        return next(((split, trial) for split, trial in found if trial is not None), None)

    @cached_property
    def subject(self) -> Trial | None:
        """The trial that the page is about: the winner; without one, the closest on the holdout; before there was a
        release, the best so far, feasible or not."""
        if self.state.winner is not None:
            return self.state.winner
        boards = (board for split in SPLITS if (board := self.board(split)) is not None)
        return next((trial for board in boards if (trial := closest(board)) is not None), None)

    @cache  # noqa: B019  one run is one page, and then gone
    def intervals(self, number: int, split: SplitName) -> dict[str, Interval]:
        """The 95 % intervals of a trial's scores; empty where its items are not there."""
        trial = self.on(split, number)
        return {} if trial is None else dict(intervals(self.folder.items, trial, split, self.signs))

    @cache  # noqa: B019
    def items(self, number: int, split: SplitName) -> dict[str, dict[str, ItemScore]]:
        """Slice -> item -> score of a trial; empty where they are damaged or missing."""
        try:
            return load_items(self.folder.items, number, split, raw=False)
        except (InputError, OSError):
            return {}

    @cached_property
    def documents(self) -> dict[str, dict[str, Document]]:
        """Slice -> item -> its texts; empty where the run has none."""
        try:
            return read_documents(self.folder.items)
        except (InputError, OSError):
            return {}

    def references(self) -> list[Trial]:
        """Base, sources and uniform average, as far as they are scored."""
        return [t for t in self.state.search.trials if t.kind == "reference" and t.ranked]

    def searched(self) -> Sequence[Trial]:
        return [t for t in self.state.search.trials if t.kind == "search"]


def _sources(space: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> reference; a source that is aligned or has a revision is a mapping with a path."""
    return {
        name: source.get("path", "") if isinstance(source, Mapping) else source
        for name, source in space.get("sources", {}).items()
    }
