"""`evomerge.rank`: the trials of a run under another fitness file, by the scores that were recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, TrialError, Where, suggestion
from evomerge.files.fitness_file import read_fitness
from evomerge.files.objects import FitnessSpec, FloorSpec, SliceSpec
from evomerge.files.resolved import fitness_data
from evomerge.recipe.mergekit import write_recipe
from evomerge.registry import OBJECTIVES, load
from evomerge.safety.durable import write_whole
from evomerge.scoring.gates import lower_bound, scales, settle
from evomerge.scoring.preflight import check_floors, check_objective
from evomerge.scoring.stats.standard_errors import weighted_mean_stderr
from evomerge.study.after.export import portable_recipe
from evomerge.study.after.status import NothingFeasible, Status, status
from evomerge.study.finalists import TOP, gate_confidence
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.manifest import Environment
from evomerge.study.run.recorded import recorded_scores
from evomerge.study.run.trial import Trial
from evomerge.types import SliceScore, SplitName

_FREE = ("floor", "weight", "cluster", "range", "timeout", "direction")
"""The keys of a slice that do not change how its items are scored. A direction may be left out; see `_check_slice`."""
_MEND = "a ranking evaluates nothing: give it as the run has it, leave the slice out, or launch another search"


@dataclass(frozen=True)
class Ranked:
    """A run's trials under another fitness file.

    Attributes:
        fitness: the file.
        slices: by name: "metric", "sign" and "weight".
        search, holdout: rank the trials by their scores on either split; `holdout` is None before a search has ended.
        before: the winner under the run's own fitness file.
        winner: the best merge that passes every floor, on the holdout split where there are scores of it.
        unscored: trials that have come to the top of the search and have no holdout scores.
    """

    folder: RunFolder
    fitness: Path
    slices: Mapping[str, Mapping[str, Any]]
    confidence: float | None
    search: Leaderboard
    holdout: Leaderboard | None
    before: Trial | None
    winner: Trial | None
    unscored: tuple[Trial, ...]

    @property
    def pruned(self) -> list[Trial]:
        """The trials without a certain rank, as they were pruned and their scores are predicted; best first."""
        return [t for t in self.search.ranked() if t.state == "pruned"]

    @property
    def ahead(self) -> list[Trial]:
        """The pruned trials that would rank above every merge that was scored in full."""
        first = next(iter(self.search.merges()), None)
        order = self.search.ranked()
        return [t for t in order[: order.index(first) if first else None] if t.state == "pruned"]


@dataclass(frozen=True)
class _SliceFloor:
    """The parts of a slice that `settle` needs."""

    sign: int
    floor: FloorSpec | None


def rank(run: str | Path, fitness: str | Path, output: str | Path | None = None) -> Ranked:
    """Ranks a run's trials, finished or going on, as if it had been launched with another fitness file: other weights,
    floors, confidence or objective, some slices left out. The new winner's recipe is written to `output`, if given.

    Raises:
        InputError: there is no such run, or the file asks for what was not measured.
        NothingFeasible: the run has not scored its references yet.
    """
    state, spec = status(run), read_fitness(Path(fitness))
    if not state.search.settled:
        raise NothingFeasible(f"the run {state.folder.name!r} has not scored all its references yet")
    launched = Environment.read(state.folder).identity["fitness file"]
    _check(state, spec, launched)
    view = _View(state, spec, launched)
    search = view.leaderboard(state.search.trials, "search")
    front = [t for t in search.front() if t.kind == "search"]
    top, most = front or [t for t in search.merges() if t.kind == "search"], len(front) or TOP
    rescored = {t.number: t for t in (*state.rescored, *(state.release.leaderboard.trials if state.release else ()))}
    scored = [t for t in top if t.number in rescored][:most]
    references = [t for t in rescored.values() if t.kind == "reference"]
    # Those that the run passed over do not count: its finalists were chosen among them.
    before = {t.number for t in [t for t in state.search.merges() if t.kind == "search"][:TOP]}
    holdout = view.leaderboard([*references, *(rescored[t.number] for t in scored)], "holdout") if references else None
    winner = (holdout or search).best()
    ranked = Ranked(
        folder=state.folder,
        fitness=Path(fitness),
        slices={name: {**state.slices[name], "weight": slice_spec.weight} for name, slice_spec in spec.slices.items()},
        confidence=spec.confidence,
        search=search,
        holdout=holdout,
        before=state.winner if state.release else state.search.best(),
        winner=winner,
        unscored=tuple(t for t in top[:most] if t.number not in rescored.keys() | before) if holdout else (),
    )
    if output is not None:
        try:
            write_winner(ranked, Path(output))
        except OSError as error:
            problem = f"cannot write {output} ({error.strerror})"
            raise InputError(problem, "give another file", Where("--output")) from None
    return ranked


class _View:
    """Puts recorded trials under a fitness file."""

    def __init__(self, state: Status, spec: FitnessSpec, launched: Mapping[str, Any]) -> None:
        self._items, self._spec = state.folder.items, spec
        self._signs = {name: state.slices[name]["sign"] for name in spec.slices}
        self._weights = {name: slice_spec.weight for name, slice_spec in spec.slices.items()}
        self._objective = load(OBJECTIVES[spec.objective])
        clusters = {name: launched["slices"][name].get("cluster") for name in spec.slices}
        self._release = state.release
        self._bounds_stand = spec.confidence == launched["confidence"] and all(
            slice_spec.cluster == clusters[name] for name, slice_spec in spec.slices.items()
        )

    def leaderboard(self, trials: Sequence[Trial], split: SplitName) -> Leaderboard:
        """The trials, which carry their scores on `split`, under floors that the parents' scores settle."""
        ranked = [self._under_file(trial, split) for trial in trials]
        parents = {t.label: t.slice_scores for t in ranked if t.is_parent and t.state == "complete"}
        floors = {name: _SliceFloor(self._signs[name], s.floor) for name, s in self._spec.slices.items()}
        gates = settle(floors, parents)
        return Leaderboard(Floors(gates, scales(parents, gates), traded=self._spec.traded), ranked)

    def _under_file(self, trial: Trial, split: SplitName) -> Trial:
        """The trial with the slices, the objective and the confidence bounds of the fitness file."""
        if not trial.ranked:
            return trial
        scores = {name: trial.scores[name] for name in self._spec.slices}
        kept = replace(trial, scores=scores, stderr={name: trial.stderr.get(name) for name in scores})
        try:
            objective = float(self._objective(scores, self._weights))
        except TrialError as error:
            if trial.is_parent:
                problem = f"the objective {self._spec.objective} cannot be made of the scores of {trial.label}: {error}"
                raise InputError(problem, "use another objective", self._spec.at("objective")) from None
            return replace(kept, state="failed", reason=str(error), objective=None)
        return replace(kept, objective=objective, bounds=self._bounds(kept, split))

    def _bounds(self, trial: Trial, split: SplitName) -> dict[str, float]:
        confidence = self._spec.confidence
        if confidence is None:
            return {}
        release = self._release if split == "holdout" and not trial.is_parent else None
        if release is None or release.confidence is None:
            level = confidence
        elif self._bounds_stand:
            level = release.confidence
        else:
            n_floors = sum(slice_spec.floor is not None for slice_spec in self._spec.slices.values())
            level = gate_confidence(confidence, release.n_asked, n_floors)
        # Only an earlier release's trials have other bounds than the last one's.
        recorded = level == confidence or (release is not None and trial.number in release.numbers)
        if (self._bounds_stand and recorded) or trial.state == "pruned":
            return {name: trial.bounds[name] for name in trial.scores if name in trial.bounds}
        scores = recorded_scores(self._items, trial, split)
        for name, slice_spec in self._spec.slices.items():
            scores[name] = scores[name] if slice_spec.cluster else _independent(scores[name])
        return {name: lower_bound(score, self._signs[name], level) for name, score in scores.items()}


def _independent(score: SliceScore) -> SliceScore:
    """The score with a standard error for independent items."""
    if all(item.cluster is None for item in score.items):
        return score
    pairs = [(item.score, item.weight) for item in score.items if item.score is not None and item.weight > 0]
    error = weighted_mean_stderr([s for s, _ in pairs], [w for _, w in pairs])
    return replace(score, stderr=error, items=tuple(replace(item, cluster=None) for item in score.items))


# What a fitness file may ask of recorded scores.


def _check(state: Status, spec: FitnessSpec, launched: Mapping[str, Any]) -> None:
    """InputError, naming slice and key, where the file asks for scores that were not recorded."""
    asked = json.loads(json.dumps(fitness_data(spec)))
    _check_same("model", asked.get("model"), launched.get("model"), spec.at("model"))
    for key, value in asked["split"].items():
        _check_same(f"split.{key}", value, launched["split"][key], spec.at(f"split.{key}"))
    for name, slice_spec in spec.slices.items():
        if name not in state.slices or name not in launched["slices"]:
            problem = f"the run {state.folder.name!r} has no slice {name!r}, so there are no scores of it"
            raise InputError(problem, suggestion(name, state.slices), slice_spec.where)
        _check_slice(slice_spec, asked["slices"][name], launched["slices"][name], state.slices[name]["sign"])
        _check_cluster(slice_spec, launched["slices"][name].get("cluster"), spec.confidence)
    check_floors(spec, [t.label for t in state.search.trials if t.is_parent and t.label != "base"])
    check_objective(spec, {name: state.slices[name]["sign"] for name in spec.slices})


def _check_slice(slice_spec: SliceSpec, asked: Mapping[str, Any], launched: Mapping[str, Any], sign: int) -> None:
    for key in sorted({*asked, *launched} - set(_FREE)):
        _check_same(key, asked.get(key), launched.get(key), slice_spec.at(key))
    if slice_spec.direction is not None:
        _check_same("direction", slice_spec.direction, "higher" if sign > 0 else "lower", slice_spec.at("direction"))


def _check_same(key: str, asked: Any, launched: Any, where: Where) -> None:
    if asked != launched:
        problem = f"{key} is {_shown(asked)} here, and was {_shown(launched)} when the run's items were scored"
        raise InputError(problem, _MEND, where)


def _shown(value: Any) -> str:
    return "not given" if value is None else repr(value)


def _check_cluster(slice_spec: SliceSpec, launched: str | None, confidence: float | None) -> None:
    """Clusters decide nothing but confidence bounds; of the documents, only the field that was named was kept."""
    if confidence is not None and slice_spec.cluster not in (None, launched):
        problem = f"the run's items were kept without their {slice_spec.cluster!r}, which their confidence bounds need"
        raise InputError(
            problem, "leave out `cluster` or `confidence`, or launch another search", slice_spec.at("cluster")
        )


def write_winner(ranked: Ranked, file: Path) -> None:
    """Writes the new winner's recipe, if there is a winner. Raises OSError."""
    winner = ranked.winner
    if winner is None:
        return
    split = "holdout" if ranked.holdout else "search"
    header = f"evomerge run {ranked.folder.name}, {winner.name}, recipe {winner.recipe_id[:16]}"
    reason = f"the best on the {split} items under {ranked.fitness.name}"
    write_whole(file, write_recipe(portable_recipe(winner.recipe, file), f"{header}\n{reason}"))
