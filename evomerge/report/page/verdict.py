"""The verdict of a run: whether to promote its merge, and why, gate by gate."""

from __future__ import annotations

from typing import Any

from evomerge.report.page.run import SPLITS, Run
from evomerge.report.results import carried_over, missed_floors
from evomerge.report.runs import how_far
from evomerge.report.tables import describe
from evomerge.report.verdicts import advice_words
from evomerge.study.run.leaderboard import better_parent
from evomerge.study.run.trial import Trial
from evomerge.types import SplitName


def verdict_data(run: Run) -> dict[str, Any]:
    """Returns the answer ("promote", "do not promote", "not decided"), its reasons in words, and each gate's numbers on
    both splits."""
    answer, headline, reasons = _answer(run)
    subject = run.subject
    return {
        "answer": answer,
        "headline": headline,
        "reasons": [_first_upper(reason) for reason in reasons],
        "trial": subject.number if subject else None,
        "label": describe(subject) if subject else None,
        "confidence": run.state.release.confidence if run.state.release else None,
        "gates": [_gate(run, name, subject) for name in run.slices],
    }


def _answer(run: Run) -> tuple[str, str, list[str]]:
    state, winner = run.state, run.state.winner
    if not state.finished:
        return _unfinished(run)
    holdout = run.board("holdout")
    if winner is None or holdout is None:
        return "do not promote", _no_winner(run), _why_not(run)
    parent, gain = better_parent(holdout, winner), carried_over(state.search, holdout, winner)
    reasons = [f"{describe(winner)} passes every floor on items that the search never saw (the holdout)."]
    reasons += [f"{gain}."] if gain else []
    chance = state.release.chances.get(winner.number) if state.release else None
    if chance is not None:
        reasons.append(f"Before the holdout was asked, the search items gave it a chance of {chance:.0%} to pass.")
    if parent is not None:
        reasons.insert(0, f"{parent.label} alone passes every floor, and scores better: no merge beat it.")
        return "do not promote", f"Do not promote: {parent.label} alone is better than any merge", reasons
    return "promote", f"Promote {describe(winner)}: it passes every floor", reasons


def _unfinished(run: Run) -> tuple[str, str, list[str]]:
    state = run.state
    doing = "The search is still running" if state.state == "running" else "The search was stopped before its end"
    reasons = [f"{doing}: {how_far(state)} trials are done. The holdout items decide at its end."]
    if state.state == "stopped":
        reasons.append("`evomerge resume` goes on with it.")
    if state.winner is not None and state.release is not None:
        name, after = describe(state.winner), state.release.after
        reasons.append(f"After {after} trials {name} passed every floor on the holdout; the search has gone on since.")
    best = state.search.best()
    if best is not None:
        reasons.append(f"So far {describe(best)} is the best merge that passes every floor on the search items.")
    elif state.search.settled:
        reasons.append("So far no merge passes every floor on the search items.")
    return "not decided", "Not decided: the search has not ended", reasons


def _no_winner(run: Run) -> str:
    if run.subject is None:
        return "Do not promote: no merge could be scored"
    return "Do not promote: no merge passes every floor on the holdout"


def _why_not(run: Run) -> list[str]:
    holdout, subject = run.board("holdout"), run.subject
    if subject is None:
        return ["Only models as they are were scored: there is no merge to judge."]
    if holdout is None:
        return [f"{describe(subject)} came closest."]
    missed = missed_floors(holdout, subject)
    reasons = [f"{describe(subject)} came closest{f': {missed}' if missed else ''}."]
    advice = run.state.release.advice if run.state.release else None
    if advice is not None:
        reasons += [f"{line.strip()}." for line in advice_words(advice, holdout, run.state.folder.handle)[1:]]
    return reasons


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _gate(run: Run, name: str, subject: Trial | None) -> dict[str, Any]:
    """One slice: the floor, and how the trial does, on each split."""
    return {
        "slice": name,
        "metric": run.metrics.get(name, ""),
        "higher_is_better": run.signs[name] > 0,
        **{split: _side(run, name, subject, split) for split in SPLITS},
    }


def _side(run: Run, name: str, subject: Trial | None, split: SplitName) -> dict[str, Any] | None:
    board = run.board(split)
    if board is None or name not in board.gates:
        return None
    gate, sign = board.gates[name], run.signs[name]
    side: dict[str, Any] = {
        "floor": None if gate.floor is None else sign * gate.floor,
        "floor_from": gate.text,
        "score": None,
        "interval": None,
        "bound": None,
        "passed": None,
    }
    trial = run.on(split, subject.number) if subject else None
    verdict = next((v for v in board.verdicts(trial) if v.slice == name), None) if trial else None
    if trial is None or verdict is None:
        return side
    passed = verdict.passed if board.settled and gate.floor is not None else None
    bound = sign * trial.bounds[name] if name in trial.bounds else None
    span = run.intervals(trial.number, split).get(name)
    return {**side, "score": sign * trial.scores[name], "interval": span, "bound": bound, "passed": passed}
