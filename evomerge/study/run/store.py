"""The study's trials in an Optuna storage, the only truth of a run (Optuna, JournalStorage).

A trial is written when it starts, with its genome and recipe, and again when it ends, with its scores or the reason
of its failure. Floors and ranks are derived from the scores on reading, so they can change without an evaluation.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from evomerge.errors import InputError, Where
from evomerge.escape import shortened
from evomerge.interrupts import deferred
from evomerge.optimize.optuna_samplers import distribution
from evomerge.recipe.recipe import Recipe, to_data
from evomerge.safety.paths import absolute
from evomerge.study.run.checks import attribute_fault, content_fault, fact_fault, is_own
from evomerge.study.run.evaluation import TrialResult
from evomerge.study.run.journal import DamagedJournal, Journal, cut
from evomerge.study.run.notes import write_note
from evomerge.study.run.stored import OPEN, read_trial
from evomerge.study.run.trial import Kind, Trial
from evomerge.types import Dimension, Genome

_NOTES = "notes"
"""The fact that holds the versions of the notes as they were written here."""

_FLAG, _SQLITE = Where("--storage"), "sqlite:///"


class Store:
    """One study in one storage, read once when it is opened. InputError if it is damaged; with its dimensions, also the
    content of its trials is checked.

    Only the process that holds the run's lock may write. It keeps the trials that it writes in memory, so that no step
    reads the others again. Interruptions wait for writes.
    """

    def __init__(self, storage: BaseStorage, study_id: int, dimensions: Sequence[Dimension] = ()) -> None:
        self._storage, self._study = storage, study_id
        self.engines: Mapping[str, str] = {}
        """Slice -> what answers it, where that is not the resident model: every trial that ends says so."""
        self._distributions = {d.key: distribution(d) for d in dimensions}
        self._ids: dict[int, int] = {}
        self._trials: dict[int, Trial] = {}
        self._unclosed: set[int] = set()
        try:
            self._facts: dict[str, Any] = dict(storage.get_study_user_attrs(study_id))
            frozen = storage.get_all_trials(study_id, deepcopy=False)
        except (ValueError, KeyError, TypeError) as error:  # a database gives what stands in it to Optuna unchecked
            raise self._damage(f"it cannot be read ({shortened(error)})") from None
        for trial in sorted(filter(is_own, frozen), key=lambda f: f.number):
            fault = attribute_fault(trial)
            kept = None if fault else self._keep(trial)
            if kept is not None and dimensions:
                fault = content_fault(kept, dimensions)
            if fault:
                raise self._damage(f"trial {trial.number}: {fault}")
        if fault := fact_fault(self._facts):
            raise self._damage(fault)
        self._find_duplicates_by_label()

    def _damage(self, fault: str) -> InputError:
        name = self._storage.get_study_name_from_id(self._study)
        return InputError(f"the study {name!r} is damaged: {fault}", "restore its storage from a copy")

    @classmethod
    @deferred()
    def create(cls, storage: BaseStorage, name: str, dimensions: Sequence[Dimension]) -> Store:
        """A new study."""
        return cls(storage, storage.create_new_study([StudyDirection.MAXIMIZE], name), dimensions)

    @classmethod
    def open(cls, storage: BaseStorage, name: str, dimensions: Sequence[Dimension] = ()) -> Store | None:
        """The study of that name, or None."""
        try:
            study_id = storage.get_study_id_from_name(name)
        except KeyError:
            return None
        return cls(storage, study_id, dimensions)

    # Facts of the whole study (settled floors, holdout scores).

    @property
    def facts(self) -> Mapping[str, Any]:
        return self._facts

    @deferred()
    def record(self, key: str, value: Any) -> None:
        """Writes a fact down, unless it stands there already."""
        as_read = json.loads(json.dumps(value))
        if key not in self._facts or self._facts[key] != as_read:
            self._storage.set_study_user_attr(self._study, key, value)
            self._facts[key] = as_read

    def name_metric(self, name: str) -> None:
        """Names the objective in Optuna's tools."""
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            study_name = self._storage.get_study_name_from_id(self._study)
            optuna.load_study(study_name=study_name, storage=self._storage).set_metric_names([name])

    def annotate(self, text: str, trial: Trial | None = None) -> None:
        """Writes the note of the study, or of a trial, that optuna-dashboard shows (`notes.write_note`)."""
        trial_id = None if trial is None else self._ids[trial.number]
        version = write_note(self._storage, self._study, trial_id, text, self._facts.get(_NOTES, {}))
        self.record(_NOTES, {**self._facts.get(_NOTES, {}), **version})

    # Trials.

    def as_ended(self) -> list[Trial]:
        """All trials by number as they ended in the search, which is what its optimizer was told."""
        return list(self._trials.values())

    def trials(self) -> list[Trial]:
        """All trials by number, those in flight included. A pruned one that was scored in full later is complete."""
        return [self.promoted(trial) for trial in self._trials.values()]

    def trial(self, number: int) -> Trial:
        """One trial as it ended in the search."""
        return self._trials[number]

    def promoted(self, trial: Trial) -> Trial:
        """The trial with the scores that it got after the search, where it got some."""
        scores = self._facts.get(_promotion_key(trial.number))
        return replace(trial, state="complete", reason=None, pruned_by=None, **scores) if scores else trial

    @deferred()
    def start(
        self,
        kind: Kind,
        label: str,
        genome: Genome,
        recipe: Recipe,
        seed: int,
        *,
        n_told: int | None = None,
        needs_gradient: bool = False,
        duplicate_of: int | None = None,
        generation: int | None = None,
        polished: int | None = None,
        numbers: Mapping[str, float] | None = None,
    ) -> Trial:
        """Writes a trial down before it is evaluated (see `Trial`). `numbers` come to stand in front of what is long
        (`numbers.unknown`)."""
        attributes = {
            "kind": kind,
            "label": label,
            **(numbers or {}),
            "recipe_id": recipe.id,
            "seed": seed,
            "genome": genome,
            "recipe": json.dumps(to_data(recipe)),
            **({} if n_told is None else {"told": n_told}),
            **({"sloped": True} if needs_gradient else {}),
            **({} if duplicate_of is None else {"duplicate_of": duplicate_of}),
            **({} if generation is None else {"generation": generation}),
            **({} if polished is None else {"polished": polished}),
        }
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(genome),
            distributions={k: self._distributions[k] for k in genome},
            user_attrs=attributes,
        )
        trial_id = self._storage.create_new_trial(self._study, template_trial=template)
        return self._keep(self._storage.get_trial(trial_id))

    @deferred()
    def end(
        self,
        trial: Trial,
        result: TrialResult,
        constraints: Iterable[float] = (),
        order: int | None = None,
        numbers: Mapping[str, float] | None = None,
        settled: bool = True,
    ) -> Trial:
        """Writes a trial's result down and ends it.

        Args:
            trial: in flight.
            result: its scores or the reason of its failure.
            constraints: one per floor, at most 0 where it is met; they make the study's feasible trials visible to
                Optuna's own tools.
            order: see `Trial`.
            numbers: for people (`study.run.numbers`).
            settled: whether the floors are. Nothing can be added to a trial that has ended in the storage, so a
                reference, which has ended here, ends there once its constraints are known (`close`).
        """
        trial_id = self._ids[trial.number]
        attributes: dict[str, Any] = {} if result.failed else {**(numbers or {}), **result.to_data()}
        attributes["seconds"] = dict(result.seconds)
        if self.engines:
            attributes["engines"] = dict(self.engines)
        if result.errors:
            attributes["errors"] = dict(result.errors)
        if result.pruned_by is not None:
            attributes["by"] = result.pruned_by
        if result.reason is not None:
            attributes["reason"] = result.reason
        if order is not None:
            attributes["place"] = order
        if not settled and not result.failed:
            attributes[OPEN] = result.objective  # with it, the trial has ended: last
            return self._update(trial, attributes)
        with self._together():
            self._set(trial_id, attributes)
            if result.failed:
                self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
            else:
                assert result.objective is not None
                self._end(trial_id, result.objective, constraints, result.pruned_by is not None)
        return self._keep(self._storage.get_trial(trial_id))

    @property
    def unclosed(self) -> list[Trial]:
        """The references that have ended here, and not yet in the storage."""
        return [self._trials[number] for number in self._unclosed]

    @deferred()
    def close(self, trial: Trial, constraints: Iterable[float], numbers: Mapping[str, float]) -> None:
        """Ends such a reference in the storage, too."""
        trial_id = self._ids[trial.number]
        assert trial.objective is not None
        with self._together():
            self._set(trial_id, numbers)
            self._end(trial_id, trial.objective, constraints)
        self._unclosed.remove(trial.number)

    def _end(self, trial_id: int, objective: float, constraints: Iterable[float], pruned: bool = False) -> None:
        self._storage.set_trial_system_attr(trial_id, "constraints", list(constraints))
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        self._storage.set_trial_state_values(trial_id, state, [objective])

    @deferred()
    def note(self, trial: Trial, digest: str, seconds: Mapping[str, float]) -> None:
        """Writes down how far a trial in flight has come. The digest comes last: with it, the trial's items count."""
        self._update(trial, {"seconds": dict(seconds), "digest": digest})

    @deferred()
    def note_slopes(self, trial: Trial, slopes: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float]) -> Trial:
        """Writes down the slopes of a trial in flight."""
        return self._update(trial, {"slopes": slopes, "seconds": dict(seconds)})

    def promote(self, trial: Trial, result: TrialResult) -> Trial:
        """Gives a pruned trial its scores on all items."""
        self.record(_promotion_key(trial.number), {**result.to_data(), "objective": result.objective})
        return self.promoted(self._trials[trial.number])

    def _find_duplicates_by_label(self) -> None:
        """Older runs named a duplicate's original in its label only."""
        scored = {(t.name, t.recipe_id): t.number for t in self._trials.values() if t.state == "complete"}
        for trial in list(self._trials.values()):
            _, marker, name = trial.label.rpartition(_DUPLICATE)
            original = scored.get((name, trial.recipe_id)) if marker else None
            if trial.duplicate_of is None and original is not None:
                self._trials[trial.number] = replace(trial, duplicate_of=original)

    def _update(self, trial: Trial, attributes: Mapping[str, Any]) -> Trial:
        trial_id = self._ids[trial.number]
        with self._together():
            self._set(trial_id, attributes)
        return self._keep(self._storage.get_trial(trial_id))

    def _together(self) -> AbstractContextManager[None]:
        """Entries that belong together: a journal has them on the disk at once."""
        backend = getattr(self._storage, "_backend", None)
        return backend.together() if isinstance(backend, Journal) else nullcontext()

    def _set(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self._storage.set_trial_user_attr(trial_id, key, value)

    def _keep(self, frozen: FrozenTrial) -> Trial:
        trial, before = read_trial(frozen), self._trials.get(frozen.number)
        if before is not None and trial.duplicate_of != before.duplicate_of:
            trial = replace(trial, duplicate_of=before.duplicate_of)
        if before is not None and trial.state == "running" and "recipe" in before.__dict__:
            trial.__dict__["recipe"] = before.recipe  # parsed once, and dropped when the trial ends
        self._ids[frozen.number] = frozen._trial_id
        if frozen.state is TrialState.RUNNING and trial.state != "running":
            self._unclosed.add(frozen.number)
        self._trials[frozen.number] = trial
        return trial


_DUPLICATE = "same recipe as "


def duplicate_label(label: str, of: Trial) -> str:
    """The label of a trial that takes over the scores of another one, for people."""
    return ", ".join(filter(None, (label, f"{_DUPLICATE}{of.name}")))


def _promotion_key(number: int) -> str:
    """The fact that holds a pruned trial's scores on all items."""
    return f"promoted.{number}"


def absolute_url(url: str | None) -> str | None:
    """An SQLite URL with a path relative to the current folder, as one that means the same everywhere."""
    if url is None or not url.startswith(_SQLITE) or url.startswith(_SQLITE + "/"):
        return url
    return _SQLITE + str(Path(url.removeprefix(_SQLITE)).absolute())


def check_storage(url: str | None) -> bool:
    """Whether there is a storage to look into: an SQLite file that is not there yet is not made for that.

    Raises:
        InputError: there is no folder for that file, or it is no file at all.
    """
    if url == "sqlite://":
        raise InputError("it keeps the study in memory only", "name a file: sqlite:///study.db", _FLAG)
    if url is None or not url.startswith(_SQLITE):
        return url is not None
    file = absolute(url.removeprefix(_SQLITE).partition("?")[0], where=_FLAG)
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"there is no folder {file.parent} that can be written", "create it", _FLAG)
    return file.exists()


def open_storage(journal: Path, url: str | None, warn: Callable[[str], None] | None = None) -> BaseStorage:
    """Opens the run's own journal, or any Optuna storage by URL.

    Args:
        journal: the file.
        url: of the storage in its place.
        warn: given by a writer, which holds the run's lock. It first mends what a dead process left: the lock of the
            journal, and damaged lines at its end, as far as they hold no more than the last trial. `warn` is told.

    Raises:
        InputError: the storage cannot be opened, or is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    if url is not None:
        try:
            return optuna.storages.get_storage(url)
        except Exception as error:
            problem = f"cannot open {url!r} ({error})"
            raise InputError(problem, "give an Optuna storage URL", _FLAG) from None
    if warn is None:
        return _replayed(journal)
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    try:
        return _replayed(journal)
    except DamagedJournal as damage:
        if not damage.intact or damage.lost > 1:
            raise
        copy = cut(damage, journal)
        warn(f"{damage.problem}: what stood behind line {damage.intact} is evaluated again ({copy.name} keeps it)")
    return _replayed(journal)


def _replayed(file: Path) -> JournalStorage:
    journal = Journal(file)
    try:
        return JournalStorage(journal)
    except (InputError, OSError):
        raise
    except Exception as error:
        raise journal.damage(f"cannot be applied ({type(error).__name__})") from None
