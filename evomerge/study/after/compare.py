"""`evomerge.compare`: two trials of a run, item by item. No model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evomerge.deprecated import renamed
from evomerge.errors import InputError, Where, suggestion
from evomerge.files.objects import LENGTHS
from evomerge.scoring.stats import paired
from evomerge.scoring.stats.paired import Comparison
from evomerge.study.after.differences import Differences, Lengths, differences
from evomerge.study.after.status import Status, status
from evomerge.study.run.documents import read_documents
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.items import items_file
from evomerge.study.run.manifest import Environment
from evomerge.study.run.recorded import mean_kind_of, recorded_scores
from evomerge.study.run.trial import Trial
from evomerge.types import SliceScore

Side = Literal["search", "holdout"]
WINNER = "winner"

MOST, IN_ALL = 10, 20
"""Items of a slice that are listed, and of all slices, where nobody says how many: a few screens."""


@dataclass(frozen=True)
class Compared:
    """Two trials, compared on the items of `split` that both were scored on.

    Attributes:
        slices: those compared, by name: "metric", "sign" and "weight".
        totals: slice -> the number of items that it has on the split.
        differences: slice -> the items on which the two differ, where these were asked for.
        without_answers: the slices that `differences` leaves out, since nobody named them and no answers were kept.
    """

    folder: RunFolder
    split: Side
    first: Trial
    second: Trial
    slices: Mapping[str, Mapping[str, Any]]
    comparisons: Mapping[str, Comparison]
    totals: Mapping[str, int]
    differences: Mapping[str, Differences] | None = None
    without_answers: Sequence[str] = ()


@renamed(items="answers")
def compare(
    run: str | Path,
    first: str | int,
    second: str | int | None = None,
    *,
    split: Side | None = None,
    answers: bool = False,
    slices: Sequence[str] = (),
    most: int | None = None,
) -> Compared:
    """Compares two trials of a run on the items that both were scored on (`scoring.stats.paired.compare`).

    Args:
        run: its name in ``./runs``, or its path.
        first, second: a trial's number, a reference's label ("base", a source's name, "uniform"), or "winner".
            Default of the second: the winner, or before there is one the best trial so far.
        split: default: the holdout split where both were scored there, else the search split.
        answers: also list the items on which scores or answers differ, of each slice that has answers or is named.
        slices: only these; default: all.
        most: so many items of a slice are listed; default: ten, and fewer where there are more than two slices.

    Raises:
        InputError: there is no such run, trial or slice, or no items of it on that split.
    """
    if most is not None and most < 0:
        raise InputError(f"{most} is no number of items", "give 0 or more", Where("--most"))
    if most is not None and not answers:
        raise InputError("says how many items are listed, and none are", "ask for --answers, too", Where("--most"))
    state = status(run)
    facts = _named(state, slices)
    numbers = [_number(state, name) for name in (first, WINNER if second is None else second)]
    if numbers[0] == numbers[1]:
        raise InputError(f"trial {numbers[0]} would be compared with itself", "name two trials")
    side = split or ("holdout" if all(_scored(state, n, "holdout") for n in numbers) else "search")
    a, b = (_trial(state, number, side) for number in numbers)
    scores = [recorded_scores(state.folder.items, t, side) for t in (a, b, *_whole(state, side))]
    comparisons = between(a, b, scores, facts)
    totals = {name: max(len(s[name].items) for s in scores if name in s) for name in comparisons}
    if not answers:
        return Compared(state.folder, side, a, b, facts, comparisons, totals)
    without = [] if slices else [name for name in facts if not any(_answered(s, name) for s in scores[:2])]
    listed = {name: fact for name, fact in facts.items() if name not in without}
    found = _differences(state.folder, scores, listed, most)
    return Compared(state.folder, side, a, b, facts, comparisons, totals, found, without)


def _named(state: Status, names: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """The slices of these names; all where none is named."""
    for name in names:
        if name not in state.slices:
            problem = f"the run {state.folder.name!r} has no slice {name!r}"
            raise InputError(problem, suggestion(name, state.slices), Where("--slice"))
    return {name: fact for name, fact in state.slices.items() if name in names} if names else state.slices


def _answered(scores: Mapping[str, SliceScore], name: str) -> bool:
    return any(item.answer is not None for item in _of(scores, name).items)


def _differences(
    folder: RunFolder,
    scores: Sequence[Mapping[str, SliceScore]],
    facts: Mapping[str, Mapping[str, Any]],
    most: int | None,
) -> dict[str, Differences]:
    documents, measured = read_documents(folder.items), _measured(folder)
    number = max(1, min(MOST, IN_ALL // max(1, len(facts)))) if most is None else most
    found = {}
    for name, fact in facts.items():
        a, b = ({item.item: item for item in _of(s, name).items} for s in scores[:2])
        lengths = _lengths(scores[0], measured.get(name, {})), _lengths(scores[1], measured.get(name, {}))
        found[name] = differences(a, b, fact["sign"], documents.get(name, {}), number, lengths)
    return found


def _measured(folder: RunFolder) -> dict[str, dict[str, str]]:
    """Slice -> measure -> the slice that measures the answers of that one."""
    specs = Environment.read(folder).identity.get("fitness file", {}).get("slices", {})
    measured: dict[str, dict[str, str]] = {}
    for name, spec in specs.items():
        if spec.get("of") is not None and spec.get("metric") in LENGTHS:
            measured.setdefault(spec["of"], {})[spec["metric"]] = name
    return measured


def _lengths(scores: Mapping[str, SliceScore], measured: Mapping[str, str]) -> Lengths:
    lengths: dict[str, dict[str, float]] = {}
    for measure, name in measured.items():
        for item in _of(scores, name).items:
            if item.score is not None:
                lengths.setdefault(item.item, {})[measure] = item.score
    return lengths


def between(
    first: Trial,
    second: Trial,
    scores: Sequence[Mapping[str, SliceScore]],
    slices: Mapping[str, Mapping[str, Any]],
) -> dict[str, Comparison]:
    """Compares two trials on each slice.

    Args:
        first, second: the trials.
        scores: of both, with their items, and of others that were scored in full.
        slices: by name: "sign", and "measure" where it is a size.
    """
    return {name: _compared(fact, name, first, second, scores) for name, fact in slices.items()}


def _compared(
    fact: Mapping[str, Any], name: str, first: Trial, second: Trial, scores: Sequence[Mapping[str, SliceScore]]
) -> Comparison:
    sign, (a, b) = fact["sign"], (_of(s, name) for s in scores[:2])
    if fact.get("measure"):
        return paired.exact(a, b, sign)
    whole = [t.state == "complete" for t in (first, second)]
    full = [s for s, complete in zip((a, b), whole, strict=True) if complete] + [s[name] for s in scores[2:]]
    kind = mean_kind_of(full, sign) if full else None
    if kind is not None:
        return paired.compare(kind, {i.item: i for i in a.items}, {i.item: i for i in b.items})
    if all(whole):
        return paired.unpaired(a, b, sign)
    return Comparison(sign * a.value, sign * b.value, sign * (a.value - b.value), None, None, "none", 0)


def _of(scores: Mapping[str, SliceScore], name: str) -> SliceScore:
    return scores.get(name, SliceScore(float("nan"), None))


def _whole(state: Status, side: Side) -> list[Trial]:
    """A reference that was scored in full: it shows which mean of its items a score is."""
    trials = state.rescored if side == "holdout" else state.search.trials
    return [t for t in trials if t.is_parent and t.state == "complete"][:1]


def _number(state: Status, name: str | int) -> int:
    """The number of the trial of this name."""
    known = {str(t.number): t.number for t in state.search.trials}
    known.update({t.label: t.number for t in state.search.trials if t.kind == "reference"})
    leader = state.winner or state.search.best()
    if leader is not None:
        known.setdefault(WINNER, leader.number)
    if str(name) in known:
        return known[str(name)]
    if name == WINNER:
        raise InputError(f"the run {state.folder.name!r} has no feasible trial yet", "name two trials")
    if name in state.slices:
        raise InputError(f"{name!r} is a slice, and no trial", f"name it with `--slice {name}`")
    names = [n for n in known if not n.isdigit()]
    count = len(state.search.trials)
    problem = f"the run {state.folder.name!r} has no trial {name!r}"
    if str(name).isdigit():
        raise InputError(problem, f"it has {count}, from 0")
    raise InputError(problem, suggestion(str(name), names))


def _scored(state: Status, number: int, side: Side) -> Trial | None:
    trials = state.rescored if side == "holdout" else state.search.trials
    trial = next((t for t in trials if t.number == number and t.scores), None)
    return trial if trial and (trial.evaluated or items_file(state.folder.items, number, side).is_file()) else None


def _trial(state: Status, number: int, side: Side) -> Trial:
    trial = _scored(state, number, side)
    if trial is None:
        other: Side = "search" if side == "holdout" else "holdout"
        mend = f"compare on the {other} split" if _scored(state, number, other) else "name a trial that was scored"
        raise InputError(f"trial {number} has no scores on the {side} split", mend, Where("--split"))
    return trial
