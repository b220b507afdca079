"""The content of the tables as JSON. Scores are in the direction of their metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.report.gains import gained_data
from evomerge.report.items_scored import ItemsScored
from evomerge.report.models.replies import replies_data
from evomerge.report.results import CarriedOver, carried_over, closest
from evomerge.scoring.gates import Verdict, interval
from evomerge.study.after.differences import Difference, Differences
from evomerge.study.after.status import Status, Unreadable
from evomerge.study.run.leaderboard import Leaderboard, better_parent
from evomerge.study.run.recorded import intervals
from evomerge.study.run.release import Advice, Release
from evomerge.study.run.trial import Trial
from evomerge.types import ItemScore, SplitName

if TYPE_CHECKING:
    from evomerge.examine.eval_results import EvalResults
    from evomerge.examine.evaluate import Evaluated
    from evomerge.scoring.stats.paired import Comparison
    from evomerge.study.after.compare import Compared
    from evomerge.study.after.rank import Ranked
    from evomerge.study.search import Result

_STEEPEST = 5
"""Genes whose slopes are shown of a trial; the run's journal has all."""


def as_json(data: Any) -> str:
    """The data as a JSON text of letters that print. JSON has no infinity (the loss of an answer of probability 0) and
    no NaN: they become null."""
    return json.dumps(_finite(data), indent=2, allow_nan=False).replace("\x7f", "\\u007f")


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def trial_data(leaderboard: Leaderboard, trial: Trial, kept: tuple[Path, SplitName] | None = None) -> dict[str, Any]:
    """Returns one trial. With `kept` (the folder of per-item scores, and the split of the trial's scores) its 95 %
    intervals are included."""
    signs = {name: gate.sign for name, gate in leaderboard.gates.items()}
    outcome = leaderboard.outcome(trial)
    spans = {"interval": intervals(kept[0], trial, kept[1], signs)} if kept else {}
    return {
        "trial": trial.number,
        "label": trial.name,
        "state": trial.state,
        "predicted": trial.state == "pruned",
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
        **({"surrogates": proxy_losses_data(trial)} if trial.slopes else {}),
    }


def proxy_losses_data(trial: Trial) -> dict[str, Any]:
    """Returns each slice's proxy loss on the items of the gradient and on the items for checking, and its steepest
    genes."""
    proxies = {}
    for name, proxy in (trial.slopes or {}).items():
        pairs = sorted(zip(trial.genome, proxy["slopes"], strict=True), key=lambda pair: -abs(pair[1]))
        steepest = {key: slope for key, slope in pairs[:_STEEPEST] if slope}
        norm = math.hypot(*proxy["slopes"])
        proxies[name] = {"loss": proxy["loss"], "checked": proxy["checked"], "norm": norm, "steepest": steepest}
    return proxies


def leaderboard_data(leaderboard: Leaderboard, kept: tuple[Path, SplitName] | None = None) -> dict[str, Any]:
    return {"floors": _floors(leaderboard), "trials": [trial_data(leaderboard, t, kept) for t in leaderboard.trials]}


def _floors(leaderboard: Leaderboard) -> dict[str, float | None]:
    return {n: None if g.floor is None else g.sign * g.floor for n, g in leaderboard.gates.items()}


def result_data(result: Result) -> dict[str, Any]:
    items = result.folder.items
    closest_trial, parent = closest(result.holdout), better_parent(result.holdout, result.winner)
    near = None if result.winner else closest_trial
    return {
        "run": str(result.folder.path),
        "winner": trial_data(result.holdout, result.winner, (items, "holdout")) if result.winner else None,
        "closest": trial_data(result.holdout, near, (items, "holdout")) if near else None,
        "better_parent": parent.label if parent else None,
        "carried_over": carried_over_data(carried_over(result.search, result.holdout, result.winner)),
        "advice": advice_data(result.release.advice, result.holdout) if result.release else None,
        "finalists": finalists_data(result.release) if result.release else [],
        "front": front_data(result.search, result.holdout),
        "gradient": gained_data(result.gained),
        **both_data(items, result.search, result.holdout),
        "items": items_scored_data(result.search),
        "trials": len(result.search.trials),
        "confidence": result.confidence,
    }


def finalists_data(release: Release) -> list[dict[str, Any]]:
    """Returns the finalists in their order: chance to pass every floor on the holdout by the search items, and whether
    they were asked there."""
    asked = {t.number for t in release.leaderboard.trials}
    return [{"trial": number, "chance": chance, "asked": number in asked} for number, chance in release.chances.items()]


def advice_data(advice: Advice | None, holdout: Leaderboard) -> dict[str, Any] | None:
    """Returns what would help where there is no winner, floors in the metrics' own directions."""
    if advice is None:
        return None
    floors = {name: holdout.gates[name].sign * bound for name, bound in advice.floors.items()}
    return {"trial": advice.trial, "floors": floors, "times_items": advice.items, "trials": advice.trials}


def front_data(search: Leaderboard, holdout: Leaderboard | None) -> list[dict[str, Any]] | None:
    """Returns the points of a front by the search items, with their scores on both splits (None: not scored there);
    None where the objective is one number."""
    if not search.floors.traded:
        return None
    rescored = {t.number: t for t in holdout.trials} if holdout else {}
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
            "holdout": shown(holdout, rescored.get(t.number)) if holdout else None,
            "on_holdout_front": t.number in still if t.number in rescored else None,
        }
        for t in search.front()
    ]


def items_scored_data(leaderboard: Leaderboard) -> dict[str, Any]:
    """Returns the number of items that the search scored, and how many each pruner saved."""
    items_scored = ItemsScored.of(leaderboard.trials)
    saved = {"early_stop": items_scored.early_stop, "racing": items_scored.racing}
    return {
        "scored": items_scored.scored,
        "in_full": items_scored.in_full,
        **{by: {"trials": trials, "spared": items} for by, (trials, items) in saved.items()},
    }


def both_data(items: Path, search: Leaderboard, holdout: Leaderboard) -> dict[str, Any]:
    """Returns the trials that were scored on the holdout split, with their scores on both splits."""
    numbers = {trial.number for trial in holdout.trials}
    searched = [trial_data(search, t, (items, "search")) for t in search.trials if t.number in numbers]
    return {
        "search": {"floors": _floors(search), "trials": searched},
        "holdout": leaderboard_data(holdout, (items, "holdout")),
    }


def carried_over_data(gain: CarriedOver | None) -> dict[str, Any] | None:
    if gain is None:
        return None
    pairs = {"winner": gain.winner, "base": gain.base, "gain": gain.gains}
    return {
        **{name: {"search": search, "holdout": holdout} for name, (search, holdout) in pairs.items()},
        "lost": gain.lost,
        "share_lost": gain.lost / gain.gains[0] if gain.gains[0] > 0 else None,
    }


def status_data(state: Status | Unreadable) -> dict[str, Any]:
    if not isinstance(state, Status):
        return {"run": str(state.folder.path), "problem": state.problem}
    return {
        "run": str(state.folder.path),
        **_state_data(state),
        "budget": dict(state.budget),
        "winner": state.winner.number if state.winner else None,
        "front": front_data(state.search, state.release.leaderboard if state.release else None),
        "gradient": gained_data(state.gained),
        "search": leaderboard_data(state.search),
        "holdout": leaderboard_data(state.release.leaderboard) if state.release else None,
    }


def _state_data(state: Status) -> dict[str, Any]:
    """Returns "running", "stopped" or "finished", and the process that drives the run."""
    process = asdict(state.driver) if state.driver else None
    return {"state": state.state, "driver": process, "finished": state.finished}


def run_data(state: Status | Unreadable) -> dict[str, Any]:
    """Returns one run of the list of runs."""
    if not isinstance(state, Status):
        return status_data(state)
    best = state.search.best()
    return {
        "run": str(state.folder.path),
        **_state_data(state),
        "trials": state.done,
        "budget": dict(state.budget),
        "best": best.number if best else None,
        "best_objective": best.objective if best else None,
        "winner": state.winner.number if state.winner else None,
    }


def evaluated_data(result: Evaluated) -> dict[str, Any]:
    def shown(verdict: Verdict) -> dict[str, Any]:
        slice_, score = result.slices[verdict.slice], result.scores[verdict.slice]
        return {
            "metric": slice_.metric,
            "higher_is_better": slice_.sign > 0,
            "score": slice_.show(score.value),
            "stderr": score.stderr,
            "interval": interval(score, slice_.sign),
            "items": 0 if slice_.is_measure else len(score.items),
            "loss": score.loss,
            "floor": None if verdict.floor is None else slice_.show(verdict.floor),
            "bound": slice_.show(verdict.bound),
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
        **({"replies": replies_data(result.replies)} if result.replies else {}),
        **({"eval_results": _eval_results_data(result.eval_results)} if result.eval_results else {}),
    }


def _eval_results_data(written: EvalResults) -> dict[str, Any]:
    return {"files": {n: str(f) for n, f in written.files.items()}, "left_out": dict(written.left_out)}


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
        "carried_over": carried_over_data(carried_over(ranked.search, ranked.holdout, ranked.winner))
        if ranked.holdout
        else None,
        "confidence": ranked.confidence,
    }


def compared_data(compared: Compared) -> dict[str, Any]:
    def better(comparison: Comparison, sign: int) -> str | None:
        """Which of the two has the better score, beyond chance or not; None where they are equal."""
        ahead = comparison.difference * sign
        return "first" if ahead > 0 else "second" if ahead < 0 else None

    def shown(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
        comparison = compared.comparisons[name]
        return {
            "metric": info["metric"],
            "higher_is_better": info["sign"] > 0,
            "first": comparison.first,
            "second": comparison.second,
            "difference": comparison.difference,
            "interval": comparison.interval,
            "p": comparison.p,
            "test": comparison.test,
            "items": comparison.items,
            "items_of_split": compared.totals[name],
            "better": better(comparison, info["sign"]),
        }

    a, b = compared.first, compared.second
    return {
        "run": str(compared.folder.path),
        "split": compared.split,
        "first": {"trial": a.number, "label": a.name, "objective": a.objective},
        "second": {"trial": b.number, "label": b.name, "objective": b.objective},
        "difference": "first minus second",
        "slices": {name: shown(name, info) for name, info in compared.slices.items()},
        **(_answers_data(compared, compared.differences) if compared.differences is not None else {}),
    }


def _answers_data(compared: Compared, found: Mapping[str, Differences]) -> dict[str, Any]:
    return {"items": differences_data(found), "without_answers": list(compared.without_answers)}


def differences_data(found: Mapping[str, Differences]) -> dict[str, Any]:
    """Returns on how many items of each slice either candidate is better, on how many the answers differ, and those
    where they differ most. Texts are whole, as far as a run keeps them."""

    def side(score: ItemScore, lengths: Mapping[str, float]) -> dict[str, Any]:
        return {"score": score.score, "answer": score.answer, "written": score.written, **lengths}

    def item(difference: Difference) -> dict[str, Any]:
        document = difference.document
        return {
            "item": difference.first.item,
            "number": document.number if document else None,
            "prompt": document.prompt if document else None,
            "choices": list(document.choices) if document else [],
            "right_answer": document.answer if document else None,
            "first": side(difference.first, difference.lengths[0]),
            "second": side(difference.second, difference.lengths[1]),
        }

    return {
        name: {
            "first_better": slice_.first_better,
            "second_better": slice_.second_better,
            "items": slice_.items,
            "answered": slice_.answered,
            "answers_differ": slice_.answers_differ,
            "differ": slice_.differ,
            "differ_most": [item(difference) for difference in slice_.most],
        }
        for name, slice_ in found.items()
    }
