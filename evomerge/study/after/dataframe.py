"""A run's trials as a table for analysis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import Trial

if TYPE_CHECKING:
    import pandas as pd


def trials_dataframe(leaderboard: Leaderboard) -> pd.DataFrame:
    """Returns one row a trial, by number.

    Columns are ``number``, ``kind``, ``label``, ``state``, ``objective``, ``feasible``, ``evaluated`` and ``items``
    (the number of items that the trial was scored on, and of all), ``reason``, ``recipe_id`` and ``digest``; then
    ``genes_KEY`` for each gene, ``scores_SLICE`` and ``bounds_SLICE`` (scores and lower confidence bounds in the
    metric's own direction), ``floors_SLICE`` (whether the floor is passed) and ``seconds_PHASE``. A value that a trial
    does not have is missing.
    """
    import pandas as pd

    rows = [_row(leaderboard, trial) for trial in leaderboard.trials]
    kinds = ("genes", "scores", "bounds", "floors", "seconds")
    columns = dict.fromkeys(key for row in rows for key in row)
    in_order = sorted(columns, key=lambda key: next((i for i, k in enumerate(kinds, 1) if key.startswith(f"{k}_")), 0))
    return pd.DataFrame(rows, columns=in_order)


def _row(leaderboard: Leaderboard, trial: Trial) -> dict[str, Any]:
    signs = {name: gate.sign for name, gate in leaderboard.gates.items()}
    passed = {verdict.slice: verdict.passed for verdict in leaderboard.verdicts(trial) if verdict.floor is not None}
    return {
        "number": trial.number,
        "kind": trial.kind,
        "label": trial.label,
        "state": trial.state,
        "objective": trial.objective,
        "feasible": leaderboard.outcome(trial).feasible if trial.ranked else None,
        "evaluated": trial.evaluated,
        "items": trial.items,
        "reason": trial.reason,
        "recipe_id": trial.recipe_id,
        "digest": trial.digest,
        **{f"genes_{key}": value for key, value in trial.genome.items()},
        **{f"scores_{name}": signs.get(name, 1) * value for name, value in trial.scores.items()},
        **{f"bounds_{name}": signs.get(name, 1) * value for name, value in trial.bounds.items()},
        **{f"floors_{name}": value for name, value in passed.items()},
        **{f"seconds_{phase}": value for phase, value in trial.seconds.items()},
    }
