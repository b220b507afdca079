"""The study's trials in an Optuna storage, the only truth of a run (Optuna, JournalStorage).

A trial is written when it starts, with its genome and recipe, and again when it ends, with its scores or the reason
of its failure. Floors and ranks are derived from the scores on reading, so they can change without an evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from evomerge.errors import InputError, Where
from evomerge.interrupts import deferred
from evomerge.optimize.optuna_samplers import distribution
from evomerge.recipe.recipe import Recipe, to_data
from evomerge.study.run.evaluation import TrialResult
from evomerge.study.run.trial import Kind, State, Trial
from evomerge.types import Dimension, Genome

_STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


class Store:
    """One study in one storage. Only the process that holds the run's lock may write. Interruptions wait for writes."""

    def __init__(self, storage: BaseStorage, study_id: int, dimensions: Sequence[Dimension] = ()) -> None:
        self._storage, self._id = storage, study_id
        self._distributions = {d.key: distribution(d) for d in dimensions}

    @classmethod
    @deferred()
    def create(cls, storage: BaseStorage, name: str, dimensions: Sequence[Dimension]) -> Store:
        """A new study."""
        study_id = storage.create_new_study([StudyDirection.MAXIMIZE], name)
        return cls(storage, study_id, dimensions)

    @classmethod
    def open(cls, storage: BaseStorage, name: str, dimensions: Sequence[Dimension] = ()) -> Store | None:
        """The study of that name, or None."""
        try:
            return cls(storage, storage.get_study_id_from_name(name), dimensions)
        except KeyError:
            return None

    # Facts of the whole study (settled floors, holdout scores).

    @property
    def facts(self) -> dict[str, Any]:
        return self._storage.get_study_user_attrs(self._id)

    @deferred()
    def record(self, key: str, value: Any) -> None:
        self._storage.set_study_user_attr(self._id, key, value)

    # Trials.

    def trials(self) -> list[Trial]:
        """All trials by number, those in flight included. A stopped one that was scored in full later is complete."""
        facts = self.facts
        later = [(t, facts.get(promotion_key(t.number))) for t in self.told()]
        return [replace(t, state="complete", reason=None, by="", **full) if full else t for t, full in later]

    def told(self) -> list[Trial]:
        """All trials as they ended in the search, which is what its optimizer was told."""
        frozen = self._storage.get_all_trials(self._id, deepcopy=False)
        return [_trial(f) for f in sorted(frozen, key=lambda f: f.number) if "recipe_id" in f.user_attrs]

    @deferred()
    def start(
        self,
        kind: Kind,
        label: str,
        genome: Genome,
        recipe: Recipe,
        seed: int,
        told: int | None = None,
        sloped: bool = False,
    ) -> Trial:
        """Write down a trial before it is evaluated."""
        attributes = {
            "kind": kind,
            "label": label,
            "genome": genome,
            "recipe": to_data(recipe),
            "recipe_id": recipe.id,
            "seed": seed,
            **({} if told is None else {"told": told}),
            **({"sloped": True} if sloped else {}),
        }
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(genome),
            distributions={k: self._distributions[k] for k in genome},
            user_attrs=attributes,
        )
        trial_id = self._storage.create_new_trial(self._id, template_trial=template)
        return _trial(self._storage.get_trial(trial_id))

    @deferred()
    def complete(
        self,
        trial: Trial,
        measured: TrialResult,
        seconds: Mapping[str, float],
        constraints: Iterable[float] | None,
        stopped: tuple[str, str] | None = None,
        place: int | None = None,
    ) -> Trial:
        """Write down a trial's scores and end it. `constraints` (one per floor, at most 0 where it is met) make the
        study's feasible trials visible to Optuna's own tools, `stopped` (by what, and why) says that the scores are
        predicted: the trial was pruned, as Optuna calls it."""
        trial_id = self._trial_id(trial.number)
        about = {"by": stopped[0], "reason": stopped[1]} if stopped else {}
        for key, value in {**measured.to_data(), "seconds": dict(seconds), **about, **_placed(place)}.items():
            self._storage.set_trial_user_attr(trial_id, key, value)
        if constraints is not None:
            self._storage.set_trial_system_attr(trial_id, "constraints", list(constraints))
        state = TrialState.PRUNED if stopped else TrialState.COMPLETE
        self._storage.set_trial_state_values(trial_id, state, [measured.objective])
        return _trial(self._storage.get_trial(trial_id))

    @deferred()
    def note_slopes(self, trial: Trial, slopes: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float]) -> Trial:
        """Write down the slopes of a trial in flight."""
        trial_id = self._trial_id(trial.number)
        for key, value in {"slopes": slopes, "seconds": dict(seconds)}.items():
            self._storage.set_trial_user_attr(trial_id, key, value)
        return _trial(self._storage.get_trial(trial_id))

    @deferred()
    def note(self, trial: Trial, digest: str, seconds: Mapping[str, float]) -> None:
        """Write down how far a trial in flight has come."""
        for key, value in {"digest": digest, "seconds": dict(seconds)}.items():
            self._storage.set_trial_user_attr(self._trial_id(trial.number), key, value)

    @deferred()
    def fail(self, trial: Trial, reason: str, seconds: Mapping[str, float], place: int | None = None) -> Trial:
        """End a trial that could not be evaluated."""
        trial_id = self._trial_id(trial.number)
        for key, value in {"reason": reason, "seconds": dict(seconds), **_placed(place)}.items():
            self._storage.set_trial_user_attr(trial_id, key, value)
        self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        return _trial(self._storage.get_trial(trial_id))

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def _trial(frozen: FrozenTrial) -> Trial:
    attributes = frozen.user_attrs
    value = frozen.value if frozen.state in (TrialState.COMPLETE, TrialState.PRUNED) else None
    return Trial(
        number=frozen.number,
        kind=attributes["kind"],
        label=attributes["label"],
        genome=dict(attributes["genome"]),
        recipe_data=attributes["recipe"],
        recipe_id=attributes["recipe_id"],
        seed=attributes["seed"],
        state=_STATES.get(frozen.state, "failed"),
        scores=attributes.get("scores", {}),
        stderr=attributes.get("stderr", {}),
        bounds=attributes.get("bounds", {}),
        objective=value,
        digest=attributes.get("digest"),
        seconds=attributes.get("seconds", {}),
        reason=attributes.get("reason"),
        by=attributes.get("by", ""),
        evaluated=attributes.get("evaluated", 0),
        items=attributes.get("items", 0),
        told=attributes.get("told"),
        place=attributes.get("place"),
        sloped=attributes.get("sloped", False),
        slopes=attributes.get("slopes"),
    )


def _placed(place: int | None) -> dict[str, int]:
    return {} if place is None else {"place": place}


def promotion_key(number: int) -> str:
    """The fact that holds a stopped trial's scores on all items."""
    return f"promoted.{number}"


def absolute_url(url: str | None) -> str | None:
    """An SQLite URL with a path relative to the current folder, as one that means the same everywhere."""
    start = "sqlite:///"
    if url is None or not url.startswith(start) or url.startswith(start + "/"):
        return url
    return start + str(Path(url.removeprefix(start)).absolute())


def open_storage(journal: Path, url: str | None, writing: bool = False) -> BaseStorage:
    """The run's own journal, or any Optuna storage by URL. A writer, who holds the run's lock, first mends what a
    killed process left: a half-written last line, a lock file of the journal."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    if url is not None:
        try:
            return optuna.storages.get_storage(url)
        except Exception as error:
            problem = f"cannot open {url!r} ({error})"
            raise InputError(problem, "give an Optuna storage URL", Where("--storage")) from None
    if writing:
        journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
        _mend(journal)
    try:
        return JournalStorage(JournalFileBackend(str(journal)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{journal} is damaged ({type(error).__name__}: {error})"
        raise InputError(problem, "restore it from a copy, or launch another run") from None


def _mend(journal: Path) -> None:
    """Cut a last line that was not written whole: the next append would otherwise make it unreadable."""
    if not journal.is_file():
        return
    with journal.open("rb+") as stream:
        text = stream.read()
        whole = text.rfind(b"\n") + 1
        if whole != len(text):
            stream.truncate(whole)
