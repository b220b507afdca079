"""Items of a run that were damaged or lost: they are scored again when it is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from evomerge.errors import InputError, TrialError
from evomerge.evaluator.executor import run_all
from evomerge.evaluator.jobs import EvalTask
from evomerge.study.racing.rungs import ItemNames
from evomerge.study.run.items import count_files, item_files, load_items, remove_items
from evomerge.study.run.release import with_holdout_scores
from evomerge.study.run.trial import Trial
from evomerge.study.session import Session
from evomerge.types import SplitName

Lost = tuple[Trial, SplitName]
"""A trial, with its scores on the split whose items are lost."""


def restore_items(session: Session) -> None:
    """Reads the items of finished trials that are damaged or missing from their copy, or scores them again, on the
    weights of their digest. A trial in flight loses damaged items, and is then scored as if it had none."""
    folder = session.folder.items
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder", "remove it, and resume: its items are scored again")
    folder.mkdir(exist_ok=True)
    lost = list(_lost(session))
    if lost and session.trials.items_copy is not None:
        for trial, split in lost:
            session.trials.items_copy.fetch(trial.number, split)
        lost = list(_lost(session))
    if not lost:
        return
    names = ", ".join(f"{trial.name} ({split})" for trial, split in lost[:8])
    more = f" and {len(lost) - 8} more" if len(lost) > 8 else ""
    session.observer.warn(f"items are damaged or missing, and are scored again: {names}{more}")
    for trial, split in lost:
        if trial.state == "running":
            remove_items(session.folder.items, trial.number, split)
    # Those of complete trials first: a race goes by the references' items.
    _score_again(session, [(trial, split, None) for trial, split in lost if _is_whole(trial, split)])
    pruned = [trial for trial, split in lost if trial.state == "pruned" and split == "search"]
    if pruned:
        racer = session.make_racer()
        rungs = [racer.schedule.rung(share) for share in racer.schedule.rungs] if racer else []
        _score_again(session, [(trial, "search", _asked(session, trial, rungs)) for trial in pruned])


def _lost(session: Session) -> Iterator[Lost]:
    files = count_files(session.folder.items)
    for ended in session.store.as_ended():
        trial = session.store.promoted(ended)
        if trial.state != "failed" and not _sound(session, trial, "search", files):
            yield trial, "search"
        rescored = with_holdout_scores(session.store, trial)
        if rescored is not None and not _sound(session, rescored, "holdout", files):
            yield rescored, "holdout"


def _sound(session: Session, trial: Trial, split: SplitName, files: Mapping[tuple[int, str], int]) -> bool:
    """Whether a trial has its items; one in flight needs none."""
    folder, count = session.folder.items, session.trials.criteria.info.count
    if files.get((trial.number, split), 0) != len(item_files(folder, trial.number, split)):
        return False
    try:
        items = load_items(folder, trial.number, split, raw=False)
    except InputError:
        return False
    return trial.state == "running" or count(items) >= trial.evaluated


def _is_whole(trial: Trial, split: SplitName) -> bool:
    return trial.state == "complete" or (split == "holdout" and trial.state == "pruned")


def _asked(session: Session, trial: Trial, rungs: Sequence[ItemNames]) -> ItemNames | None:
    """The items that a pruned trial was scored on: those of a rung; else, as an early stop asks for parts by what is
    known meanwhile, all."""
    count = session.trials.criteria.info.count
    return next((rung for rung in rungs if count(rung) == trial.evaluated), None)


def _score_again(session: Session, lost: Sequence[tuple[Trial, SplitName, ItemNames | None]]) -> None:
    for problem in run_all(session.executor, (_scored_again(session, *one) for one in lost)):
        if problem:
            session.observer.warn(problem)


def _scored_again(session: Session, trial: Trial, split: SplitName, names: ItemNames | None) -> EvalTask[str]:
    """What went wrong; empty if nothing did."""
    trials = session.trials
    try:
        evaluation = yield from trials.score(trial, split, names, trial.digest)
    except (TrialError, InputError) as error:
        return f"the items of {trial.name} cannot be scored again: {error}"
    remove_items(session.folder.items, trial.number, split)
    trials.keep_items(trial, split, {name: score.items for name, score in evaluation.scores.items()})
    return ""
