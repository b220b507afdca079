"""What the tables show, as JSON: scores in the metrics' own direction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.report.gains import gained_data
from evomerge.report.items_scored import ItemsScored
from evomerge.report.results import CarriedOver, better_parent, carried_over, closest
from evomerge.scoring.gates import Verdict, interval
from evomerge.study.after.status import Status, Unreadable
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.recorded import intervals
from evomerge.study.run.trial import Trial
from evomerge.types import SplitName

if TYPE_CHECKING:
    from evomerge.examine.evaluate import Evaluated
    from evomerge.study.after.compare import Compared
    from evomerge.study.after.rank import Ranked
    from evomerge.study.search import Result

_STEEPEST = 5
"""Genes whose slopes are shown of a trial; the run's journal has all."""


def trial_data(leaderboard: Leaderboard, trial: Trial, kept: tuple[Path, SplitName] | None = None) -> dict[str, Any]:
    """One trial. With `kept` (the folder of per-item scores, and the split of the trial's scores), its 95 % intervals,
    too."""
    signs = {name: gate.sign for name, gate in leaderboard.gates.items()}
    outcome = leaderboard.outcome(trial)
    spans = {"interval": intervals(kept[0], trial, kept[1], signs)} if kept else {}
    return {
        "trial": trial.number,
        "label": trial.name,
        "state": trial.state,
        "scores": {name: signs.get(name, 1) * value for name, value in trial.scores.items()},
        "stderr": dict(trial.stderr),
        **spans,
        "objective": trial.objective,
        "feasible": outcome.feasible if leaderboard.settled and not outcome.failed else None,
        "missed": [v.slice for v in leaderboard.verdicts(trial) if not v.passed],
        "items": {"scored": trial.evaluated, "all": trial.items},
        "genome": trial.genome,
        "recipe_id": trial.recipe_id,
        "digest": trial.digest,
        "reason": trial.reason,
        **({"surrogates": surrogates_data(trial)} if trial.slopes else {}),
    }


def surrogates_data(trial: Trial) -> dict[str, Any]:
    """Each slice's surrogate on the items of the slopes and on those for checking, and its steepest genes."""
    found = {}
    for name, about in (trial.slopes or {}).items():
        pairs = sorted(zip(trial.genome, about["slopes"], strict=True), key=lambda pair: -abs(pair[1]))
        steepest = {key: slope for key, slope in pairs[:_STEEPEST] if slope}
        norm = math.hypot(*about["slopes"])
        found[name] = {"loss": about["loss"], "checked": about["checked"], "norm": norm, "steepest": steepest}
    return found


def leaderboard_data(leaderboard: Leaderboard, kept: tuple[Path, SplitName] | None = None) -> dict[str, Any]:
    return {"floors": _floors(leaderboard), "trials": [trial_data(leaderboard, t, kept) for t in leaderboard.trials]}


def _floors(leaderboard: Leaderboard) -> dict[str, float | None]:
    return {n: None if g.floor is None else g.sign * g.floor for n, g in leaderboard.gates.items()}


def result_data(result: Result) -> dict[str, Any]:
    items = result.folder.items
    closest_trial, parent = closest(result.holdout), better_parent(result)
    near = None if result.winner else closest_trial
    return {
        "run": str(result.folder.path),
        "winner": trial_data(result.holdout, result.winner, (items, "holdout")) if result.winner else None,
        "closest": trial_data(result.holdout, near, (items, "holdout")) if near else None,
        "better_parent": parent.label if parent else None,
        "carried_over": carried_data(carried_over(result.search, result.holdout, result.winner)),
        "front": front_data(result.search, result.holdout),
        "gradient": gained_data(result.gained),
        **both_data(items, result.search, result.holdout),
        "items": account_data(result.search),
        "trials": len(result.search.trials),
        "confidence": result.confidence,
    }


def front_data(search: Leaderboard, holdout: Leaderboard | None) -> list[dict[str, Any]] | None:
    """The points of a front by the search items, with their scores on both splits (None: not scored there); None where
    one number was followed."""
    if not search.floors.traded:
        return None
    again = {t.number: t for t in holdout.trials} if holdout else {}
    still = {t.number for t in holdout.front()} if holdout else set()

    def shown(leaderboard: Leaderboard, trial: Trial | None) -> dict[str, Any] | None:
        if trial is None:
            return None
        scores = {
            name: gate.sign * trial.scores[name] for name, gate in leaderboard.gates.items() if name in trial.scores
        }
        return {"scores": scores, "feasible": leaderboard.outcome(trial).feasible}

    return [
        {
            "trial": t.number,
            "label": t.name,
            "recipe_id": t.recipe_id,
            "search": shown(search, t),
            "holdout": shown(holdout, again.get(t.number)) if holdout else None,
            "on_holdout_front": t.number in still if t.number in again else None,
        }
        for t in search.front()
    ]


def account_data(leaderboard: Leaderboard) -> dict[str, Any]:
    """What the search spent on scoring its candidates, and by what it was spared how much."""
    account = ItemsScored.of(leaderboard.trials)
    spared = {"early_stop": account.early_stop, "racing": account.racing}
    return {
        "scored": account.scored,
        "in_full": account.in_full,
        **{by: {"trials": trials, "spared": items} for by, (trials, items) in spared.items()},
    }


def both_data(items: Path, search: Leaderboard, holdout: Leaderboard) -> dict[str, Any]:
    """The trials that were scored on the holdout split, with their scores on either."""
    numbers = {trial.number for trial in holdout.trials}
    again = [trial_data(search, t, (items, "search")) for t in search.trials if t.number in numbers]
    return {
        "search": {"floors": _floors(search), "trials": again},
        "holdout": leaderboard_data(holdout, (items, "holdout")),
    }


def carried_data(found: CarriedOver | None) -> dict[str, Any] | None:
    if found is None:
        return None
    pairs = {"winner": found.winner, "base": found.base, "gain": found.gains}
    return {
        **{name: {"search": search, "holdout": holdout} for name, (search, holdout) in pairs.items()},
        "lost": found.lost,
        "share_lost": found.lost / found.gains[0] if found.gains[0] > 0 else None,
    }


def status_data(state: Status | Unreadable) -> dict[str, Any]:
    if not isinstance(state, Status):
        return {"run": str(state.folder.path), "problem": state.problem}
    return {
        "run": str(state.folder.path),
        "finished": state.finished,
        "budget": dict(state.budget),
        "winner": state.winner.number if state.winner else None,
        "front": front_data(state.search, state.release.leaderboard if state.release else None),
        "gradient": gained_data(state.gained),
        "search": leaderboard_data(state.search),
        "holdout": leaderboard_data(state.release.leaderboard) if state.release else None,
    }


def run_data(state: Status | Unreadable) -> dict[str, Any]:
    """One run of the list of runs."""
    if not isinstance(state, Status):
        return status_data(state)
    best = state.search.best()
    return {
        "run": str(state.folder.path),
        "finished": state.finished,
        "trials": state.done,
        "budget": dict(state.budget),
        "best": best.number if best else None,
        "best_objective": best.objective if best else None,
        "winner": state.winner.number if state.winner else None,
    }


def finite(loss: float | None) -> float | None:
    """JSON has no infinity, which is the loss of an answer of probability 0."""
    return loss if loss is not None and math.isfinite(loss) else None


def evaluated_data(result: Evaluated) -> dict[str, Any]:
    def shown(verdict: Verdict) -> dict[str, Any]:
        piece, score = result.slices[verdict.slice], result.scores[verdict.slice]
        return {
            "metric": piece.metric,
            "higher_is_better": piece.sign > 0,
            "score": piece.show(score.value),
            "stderr": score.stderr,
            "interval": interval(score, piece.sign),
            "items": len(score.items),
            "loss": finite(score.loss),
            "floor": None if verdict.floor is None else piece.show(verdict.floor),
            "bound": piece.show(verdict.bound),
            "passed": verdict.passed,
        }

    return {
        "model": result.model,
        "split": result.split,
        "digest": result.digest,
        "objective": result.objective,
        "feasible": result.feasible,
        "confidence": result.confidence,
        "slices": {v.slice: shown(v) for v in result.verdicts},
        "references": {
            model: {name: result.slices[name].show(s.value) for name, s in scores.items()}
            for model, scores in result.references.items()
        },
    }


def ranked_data(ranked: Ranked) -> dict[str, Any]:
    items = ranked.folder.items

    def named(trial: Trial | None) -> dict[str, Any] | None:
        return {"trial": trial.number, "label": trial.name, "recipe_id": trial.recipe_id} if trial else None

    holdout = both_data(items, ranked.search, ranked.holdout)["holdout"] if ranked.holdout else None
    return {
        "run": str(ranked.folder.path),
        "fitness": str(ranked.fitness),
        "winner": named(ranked.winner),
        "before": named(ranked.before),
        "stopped_early": [t.number for t in ranked.pruned],
        "stopped_early_but_ahead": [t.number for t in ranked.ahead],
        "without_holdout_scores": [t.number for t in ranked.unscored],
        "order": [t.number for t in ranked.search.merges()],
        "front": front_data(ranked.search, ranked.holdout),
        "search": leaderboard_data(ranked.search),
        "holdout": holdout,
        "carried_over": carried_data(carried_over(ranked.search, ranked.holdout, ranked.winner))
        if ranked.holdout
        else None,
        "confidence": ranked.confidence,
    }


def compared_data(compared: Compared) -> dict[str, Any]:
    def shown(name: str, about: Mapping[str, Any]) -> dict[str, Any]:
        found = compared.comparisons[name]
        return {
            "metric": about["metric"],
            "higher_is_better": about["sign"] > 0,
            "first": finite(found.first),
            "second": finite(found.second),
            "difference": finite(found.difference),
            "interval": found.interval,
            "p": found.p,
            "test": found.test,
            "items": found.items,
            "items_of_split": compared.totals[name],
        }

    return {
        "run": str(compared.folder.path),
        "split": compared.split,
        "first": {"trial": compared.first.number, "label": compared.first.name},
        "second": {"trial": compared.second.number, "label": compared.second.name},
        "slices": {name: shown(name, about) for name, about in compared.slices.items()},
    }
