"""The merge against the models that it has to beat: base, sources, soups, the best point of a grid."""

from __future__ import annotations

from typing import Any

from evomerge.report.page.run import Run
from evomerge.report.tables import describe
from evomerge.study.run.trial import Trial
from evomerge.types import SplitName

SOUPS = {"equal weights": "equal ", "greedy soup": "greedy soup"}
"""What a soup is called -> how the labels of its trials begin."""


def models_data(run: Run) -> list[dict[str, Any]]:
    """Returns each model with its scores on the holdout where they are known, else on the search split."""
    return [
        found for role, trial in _listed(run) if trial is not None and (found := _scored(run, role, trial)) is not None
    ]


def _listed(run: Run) -> list[tuple[str, Trial | None]]:
    roles: list[tuple[str, Trial | None]] = []
    for trial in run.references():
        role = "base" if trial.label == "base" else "uniform average" if not trial.is_parent else "source"
        roles.append((role, trial))
    for soup, label in SOUPS.items():
        roles.append((soup, _best(run, [t for t in run.searched() if t.label.startswith(label)])))
    if run.space.get("optimizer", {}).get("name") == "grid":
        roles.append(("grid", _best(run, run.searched())))
    holdout, subject = run.board("holdout"), run.subject
    known = {t.number for _, t in roles if t is not None}
    others = [t for t in holdout.trials if t.number not in known] if holdout else []
    roles += [("finalist", t) for t in others if subject is None or t.number != subject.number]
    roles = [(role, t) for role, t in roles if t is None or subject is None or t.number != subject.number]
    role = "winner" if run.state.winner is not None else "closest" if run.state.finished else "best so far"
    return [*roles, (role, subject)]


def _best(run: Run, trials: Any) -> Trial | None:
    """The best of these by the search items that was scored in full."""
    numbers = {t.number for t in trials}
    return next((t for t in run.state.search.merges_in_order() if t.number in numbers), None)


def _scored(run: Run, role: str, trial: Trial) -> dict[str, Any] | None:
    found = run.best_known(trial.number)
    if found is None:
        return None
    split, scored = found
    return {"role": role, "trial": trial.number, "label": describe(trial), **scores_data(run, scored, split)}


def scores_data(run: Run, trial: Trial, split: SplitName) -> dict[str, Any]:
    """Returns a trial's scores on a split, with intervals and floors."""
    board, spans = run.board(split), run.intervals(trial.number, split)
    verdicts = {v.slice: v for v in board.verdicts(trial)} if board and board.settled else {}
    return {
        "split": split,
        "objective": trial.objective,
        "feasible": all(v.passed for v in verdicts.values()) if verdicts else None,
        "scores": {
            name: {
                "score": run.signs[name] * value,
                "interval": spans.get(name),
                "passed": verdicts[name].passed if name in verdicts and verdicts[name].floor is not None else None,
            }
            for name, value in trial.scores.items()
            if name in run.signs
        },
    }
