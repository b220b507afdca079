"""All trials of a run: the objective over time, and the slices' scores against each other."""

from __future__ import annotations

from typing import Any

from evomerge.report.page.run import Run
from evomerge.report.tables import describe
from evomerge.study.run.trial import Trial

MOST, CELLS = 1000, 8000
"""The most trials of a page, and the most scores: a page has at most six megabytes."""

KINDS = {
    "reference": "reference",
    "feasible": "passes every floor",
    "infeasible": "misses a floor",
    "open": "floors not settled",
    "predicted": "pruned: its score is a prediction",
    "failed": "failed",
}
"""What a trial is -> in words."""


def trials_data(run: Run) -> dict[str, Any]:
    """Returns the trials that have ended, and the best so far after each. Of very many trials those are there that
    changed the best, and others at even steps."""
    ended = [t for t in run.state.search.trials if t.state != "running"]
    best = run.state.search.improvements()
    most = max(1, min(MOST, CELLS // max(1, len(run.slices))))
    shown = _thinned(ended, {t.number for t in best} | _front(run), most)
    return {
        "count": len(ended),
        "left_out": len(ended) - len(shown),
        "running": sum(t.state == "running" for t in run.state.search.trials),
        "trials": [_trial(run, trial) for trial in shown],
        "best_so_far": [{"trial": t.number, "objective": t.objective} for t in best],
        "front": sorted(_front(run)),
        "traded": list(run.state.search.floors.traded),
        "floors": {n: None if g.floor is None else g.sign * g.floor for n, g in run.state.search.gates.items()},
    }


def _front(run: Run) -> set[int]:
    return {t.number for t in run.state.search.front()}


def _thinned(trials: list[Trial], kept: set[int], most: int) -> list[Trial]:
    if len(trials) <= most:
        return trials
    subject = [t for t in trials if t.kind == "reference" or t.number in kept][:most]
    numbers, left = {t.number for t in subject}, most - len(subject)
    others = [t for t in trials if t.number not in numbers]
    spread = [others[i * len(others) // left] for i in range(left)] if left else []
    return sorted([*subject, *spread], key=lambda t: t.number)


def _trial(run: Run, trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "label": describe(trial),
        "kind": kind(run, trial),
        "objective": trial.objective if trial.ranked else None,
        "scores": {n: run.signs[n] * v for n, v in trial.scores.items() if n in run.signs} if trial.ranked else {},
        "duplicate_of": trial.duplicate_of,
    }


def kind(run: Run, trial: Trial) -> str:
    """One of `KINDS`."""
    if trial.state == "failed" or not trial.ranked:
        return "failed"
    if trial.kind == "reference":
        return "reference"
    if trial.state == "pruned":
        return "predicted"
    if not run.state.search.settled:
        return "open"
    return "feasible" if run.state.search.outcome(trial).feasible else "infeasible"
