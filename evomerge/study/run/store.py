"""The study's trials in an Optuna storage, the only truth of a run (Optuna, JournalStorage).

A trial is written when it starts, with its genome and recipe, and again when it ends, with its scores or the reason
of its failure. Floors and ranks are derived from the scores on reading, so they can change without an evaluation.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from evomerge.errors import InputError
from evomerge.escape import shortened
from evomerge.optimize.optuna_samplers import distribution
from evomerge.recipe.recipe import Recipe, to_data
from evomerge.study.run.checks import attribute_fault, content_fault, fact_fault, is_own
from evomerge.study.run.database import cause_of, is_of_storage, open_database
from evomerge.study.run.evaluation import TrialResult
from evomerge.study.run.holding import Hold
from evomerge.study.run.journal import DamagedJournal, Journal, cut, replayed
from evomerge.study.run.notes import write_note
from evomerge.study.run.stored import OPEN, read_trial
from evomerge.study.run.trial import Kind, Trial
from evomerge.types import Dimension, Genome

T = TypeVar("T")

_NOTES = "notes"
"""The fact that holds the versions of the notes as they were written here."""


class Store:
    """One study in one storage, read once when it is opened. InputError if it is damaged; with its dimensions, also the
    content of its trials is checked.

    Only the process that holds the run's lock may write, by its `hold` of the study. It keeps the trials that it writes
    in memory, so that no step reads the others again. Interruptions wait for writes.
    """

    def __init__(
        self,
        storage: BaseStorage,
        study_id: int,
        dimensions: Sequence[Dimension] = (),
        hold: Hold | None = None,
    ) -> None:
        self._storage, self._study = storage, study_id
        self._hold = hold or Hold()
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
    def create(
        cls, storage: BaseStorage, name: str, dimensions: Sequence[Dimension], hold: Hold | None = None
    ) -> Store:
        """A new study."""

        def write() -> Store:
            return cls(storage, storage.create_new_study([StudyDirection.MAXIMIZE], name), dimensions, hold)

        store = (hold or Hold()).write(write, lambda: cls.open(storage, name, dimensions, hold))
        store.take()
        return store

    @classmethod
    def open(
        cls, storage: BaseStorage, name: str, dimensions: Sequence[Dimension] = (), hold: Hold | None = None
    ) -> Store | None:
        """The study of that name, or None. InputError where it cannot be read, or is not one of a search."""
        try:
            study_id = storage.get_study_id_from_name(name)
            if storage.get_study_directions(study_id) != [StudyDirection.MAXIMIZE]:
                problem = f"the study {name!r} in the storage is none of evomerge's"
                raise InputError(problem, "restore the run's study, or launch under another --run NAME")
            return cls(storage, study_id, dimensions, hold)
        except KeyError:
            return None
        except Exception as error:
            if not is_of_storage(error):
                raise
            raise InputError(f"the storage cannot be read ({cause_of(error)})", "see that it is whole") from error

    def take(self) -> None:
        """Marks the study as this process's, which holds it."""
        self._hold.mark(self._storage, self._study)

    # Facts of the whole study (settled floors, holdout scores).

    @property
    def facts(self) -> Mapping[str, Any]:
        return self._facts

    def record(self, key: str, value: Any) -> None:
        """Writes a fact down, unless it stands there already."""
        as_read = json.loads(json.dumps(value))
        if key in self._facts and self._facts[key] == as_read:
            return

        def write() -> None:
            self._storage.set_study_user_attr(self._study, key, value)
            self._facts[key] = as_read

        self._write(write)

    def name_metric(self, name: str) -> None:
        """Names the objective in Optuna's tools."""
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            study_name = self._storage.get_study_name_from_id(self._study)
            study = optuna.load_study(study_name=study_name, storage=self._storage)
            self._write(lambda: study.set_metric_names([name]))

    def annotate(self, text: str, trial: Trial | None = None) -> None:
        """Writes the note of the study, or of a trial, that optuna-dashboard shows (`notes.write_note`)."""
        trial_id = None if trial is None else self._ids[trial.number]
        known = self._facts.get(_NOTES, {})
        version = self._write(lambda: write_note(self._storage, self._study, trial_id, text, known))
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

        def write() -> Trial:
            trial_id = self._storage.create_new_trial(self._study, template_trial=template)
            return self._keep(self._storage.get_trial(trial_id))

        return self._write(write, self._begun)

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
        constraints = list(constraints)

        def write() -> Trial:
            with self._together():
                self._set(trial_id, attributes)
                if result.failed:
                    self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
                else:
                    assert result.objective is not None
                    self._end(trial_id, result.objective, constraints, result.pruned_by is not None)
            return self._keep(self._storage.get_trial(trial_id))

        return self._write(write, lambda: self._ended(trial_id))

    @property
    def unclosed(self) -> list[Trial]:
        """The references that have ended here, and not yet in the storage."""
        return [self._trials[number] for number in self._unclosed]

    def close(self, trial: Trial, constraints: Iterable[float], numbers: Mapping[str, float]) -> None:
        """Ends such a reference in the storage, too."""
        trial_id = self._ids[trial.number]
        objective, constraints = trial.objective, list(constraints)
        assert objective is not None

        def write() -> Trial:
            with self._together():
                self._set(trial_id, numbers)
                self._end(trial_id, objective, constraints)
            return trial

        self._write(write, lambda: self._ended(trial_id))
        self._unclosed.remove(trial.number)

    def _end(self, trial_id: int, objective: float, constraints: Iterable[float], pruned: bool = False) -> None:
        self._storage.set_trial_system_attr(trial_id, "constraints", list(constraints))
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        self._storage.set_trial_state_values(trial_id, state, [objective])

    def note(self, trial: Trial, digest: str, seconds: Mapping[str, float]) -> None:
        """Writes down how far a trial in flight has come. The digest comes last: with it, the trial's items count."""
        self._update(trial, {"seconds": dict(seconds), "digest": digest})

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

        def write() -> Trial:
            with self._together():
                self._set(trial_id, attributes)
            return self._keep(self._storage.get_trial(trial_id))

        return self._write(write)

    def _write(self, write: Callable[[], T], written: Callable[[], T | None] = lambda: None) -> T:
        """Does a write, with the study held (`Hold.write`)."""
        return self._hold.write(write, written)

    def _begun(self) -> Trial | None:
        """The trial that was written down while the connection was lost: no other process begins any."""
        frozen = self._storage.get_all_trials(self._study, deepcopy=False)
        new = (f for f in frozen if is_own(f) and f.number not in self._ids)
        return next(map(self._keep, new), None)

    def _ended(self, trial_id: int) -> Trial | None:
        """The trial, if it has ended in the storage."""
        frozen = self._storage.get_trial(trial_id)
        return self._keep(frozen) if frozen.state.is_finished() else None

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
        return open_database(url)
    if warn is None:
        return replayed(journal)
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    try:
        return replayed(journal)
    except DamagedJournal as damage:
        if not damage.intact or damage.lost > 1:
            raise
        copy = cut(damage, journal)
        warn(f"{damage.problem}: what stood behind line {damage.intact} is evaluated again ({copy.name} keeps it)")
    return replayed(journal)
