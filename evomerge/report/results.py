"""Shows the end of a search: both splits side by side, how much of the gain carried over, the winner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.report.items_scored import ItemsScored
from evomerge.report.numbers import behind, number, shortest, telling
from evomerge.report.shown import Cell, Column, Row, Sheet
from evomerge.report.tables import (
    INTERVALS,
    by_bounds,
    describe,
    directions,
    floor_decimals,
    limit,
    mark,
    misses,
    origins,
    scored,
    slice_columns,
)
from evomerge.scoring.gates import Verdict
from evomerge.study.advice import MOST_TIMES
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.recorded import Interval, intervals
from evomerge.study.run.release import Advice
from evomerge.study.run.trial import Trial
from evomerge.types import SplitName

if TYPE_CHECKING:
    from evomerge.study.search import Result


def result_table(result: Result) -> Sheet:
    """Builds a table of both splits: parents, uniform average, the other re-scored candidates, and the winner (without
    one, the closest)."""
    metrics = {name: info.metric for name, info in result.slices.items()}
    title = "Scores on both splits; the search never saw the holdout items"
    legend = by_bounds(result.confidence)
    return both_splits(title, result.folder.items, result.search, result.holdout, metrics, legend)


def both_splits(
    title: str,
    items: Path,
    search: Leaderboard,
    holdout: Leaderboard,
    metrics: Mapping[str, str],
    legend: Sequence[str] = (),
) -> Sheet:
    """Builds a table with two rows for each trial of `holdout`: its search and its holdout scores.

    items: the folder of per-item scores.
    """
    known = {trial.number: trial for trial in search.trials}
    labelled = [(label, known[trial.number], trial) for label, trial in _rows(holdout)]
    sides = [(search, t) for _, t, _ in labelled] + [(holdout, t) for *_, t in labelled]
    decimals = {name: _decimals(name, sides) for name in holdout.gates}
    rows = [
        Row(["floor", name], [*_floors(board, decimals), Cell(""), Cell("")], "dim", ends=name == "holdout")
        for name, board in (("search", search), ("holdout", holdout))
    ]
    unknown = []
    for label, found, trial in labelled:
        places: list[tuple[SplitName, Leaderboard, Trial]]
        places = [("search", search, found), ("holdout", holdout, trial)]
        for split, board, side in places:
            spans = intervals(items, side, split, {name: gate.sign for name, gate in board.gates.items()})
            unknown += [f"{side.name} ({split})"] if side.scores and not spans else []
            rows.append(_row(label, split, board, side, spans, decimals))
    columns = [*slice_columns(holdout.gates, metrics), Column("objective"), Column("floors", numbers=False)]
    notes = [*directions(g.sign for g in holdout.gates.values()), *misses(sides), *origins(holdout, "holdout"), *legend]
    notes += [f"no intervals, as items are damaged or missing: {', '.join(unknown)}"] if unknown else []
    return Sheet(title, ["model", "split"], columns, rows, notes, more=INTERVALS)


def _rows(leaderboard: Leaderboard) -> list[tuple[str, Trial]]:
    """Returns the trials with their names, the winner or the closest at the end."""
    best, near = leaderboard.best(), closest(leaderboard)
    last = best or near
    rows = [(describe(t), t) for t in leaderboard.trials if last is None or t.number != last.number]
    return rows if last is None else [*rows, (f"{'winner' if best else 'closest'}: {describe(last)}", last)]


def _decimals(name: str, sides: list[tuple[Leaderboard, Trial]]) -> int:
    """The decimals of a slice's column, with which each score is on the right side of its split's floor."""
    signs = [(board.gates[name].sign, trial) for board, trial in sides]
    decimals = shortest(sign * trial.scores[name] for sign, trial in signs if name in trial.scores)
    for board, trial in sides * 2:  # more decimals for one score can make another one's too few
        verdicts = [v for v in board.verdicts(trial) if v.slice == name]
        decimals = floor_decimals(board.gates[name].floor, board.gates[name].sign, verdicts, decimals)
    return decimals


def _floors(leaderboard: Leaderboard, decimals: Mapping[str, int]) -> list[Cell]:
    return [
        Cell(limit(leaderboard.gates[name].floor, leaderboard.gates[name].sign, decimals[name])) for name in decimals
    ]


def _row(
    label: str,
    split: SplitName,
    leaderboard: Leaderboard,
    trial: Trial,
    spans: Mapping[str, Interval],
    decimals: Mapping[str, int],
) -> Row:
    missed = {v.slice for v in leaderboard.verdicts(trial) if not v.passed}
    cells = []
    for name, gate in leaderboard.gates.items():
        if name not in trial.scores:
            cells.append(Cell("-"))
            continue
        value = gate.sign * trial.scores[name]
        after = behind(value, spans.get(name), decimals[name])
        cells.append(scored(number(value, decimals[name]), after, trial, name in missed))
    objective = scored(number(trial.objective), "", trial, missed=False)
    return Row([label, split], [*cells, objective, mark(leaderboard, trial)], ends=split == "holdout")


# What the table says


@dataclass(frozen=True)
class CarriedOver:
    """How much of the winner's gain carried over to the holdout split.

    A score that was selected for is partly luck (the winner's curse). The base was not selected, so that a holdout
    split which is harder for both is no loss.

    winner, base: the objective on the search and on the holdout split.
    """

    winner: tuple[float, float]
    base: tuple[float, float]

    @property
    def gains(self) -> tuple[float, float]:
        """The winner's objective minus the base's, on the search and on the holdout split."""
        return self.winner[0] - self.base[0], self.winner[1] - self.base[1]

    @property
    def lost(self) -> float:
        """The part of the gain that the holdout split does not show; negative where it shows more."""
        return self.gains[0] - self.gains[1]

    def __str__(self) -> str:
        gains = f"gain over the base: search {self.gains[0]:+.3f}, holdout {self.gains[1]:+.3f}"
        if self.gains[0] <= 0:
            return f"{gains}: there was none to carry over"
        if self.lost <= 0:
            return f"{gains}: all of it carried over"
        return f"{gains}: {self.lost:.3f}{self._share} did not carry over"

    @property
    def _share(self) -> str:
        share = self.lost / self.gains[0]
        return f" ({100 * share:.0f} %)" if share >= 0.01 else " (less than 1 %)"


def carried_over(search: Leaderboard, holdout: Leaderboard, winner: Trial | None) -> CarriedOver | None:
    """Compares the winner's gain over the base on both splits; None where one of them was not scored."""
    if winner is None:
        return None
    base = next((t.number for t in holdout.trials if t.label == "base"), None)
    objectives = [_objective(s, n) for n in (winner.number, base) for s in (search, holdout)]
    if any(value is None for value in objectives):
        return None
    w_search, w_holdout, b_search, b_holdout = (value for value in objectives if value is not None)
    return CarriedOver((w_search, w_holdout), (b_search, b_holdout))


def _objective(leaderboard: Leaderboard, number: int | None) -> float | None:
    return next((t.objective for t in leaderboard.trials if t.number == number), None)


def verdict(result: Result) -> list[str]:
    """Says how a search ended, how many items it scored, and what to do next."""
    items = ItemsScored.of(result.search.trials)
    counts = [str(items)] if items.in_full else []
    return [*counts, *_outcome(result), *front_words(result)]


def front_words(result: Result) -> list[str]:
    """Lists the points of a front with their search scores and their places on the holdout split; empty without one."""
    points = result.search.front()
    if not points:
        return []
    known, still = {t.number for t in result.holdout.trials}, {t.number for t in result.holdout.front()}
    able = {t.number for t in result.holdout.trials if result.holdout.outcome(t).feasible}
    count = f"{len(points)} trade-off{'s' if len(points) > 1 else ''}"
    words = [f"front: {count} by the search items; `evomerge export {result.folder.handle} --trial N` takes any"]
    for trial in points:
        holdout = "not scored on the holdout items"
        if trial.number in known:
            passes = "another is as good" if trial.number in able else "misses a floor"
            holdout = f"holdout: {'on the front' if trial.number in still else passes}"
        words.append(f"  {result.search.floors.describe(trial)} ({holdout})")
    return words


def _outcome(result: Result) -> list[str]:
    name = result.folder.handle
    if result.winner is not None:
        parent, gain = (
            better_parent(result.holdout, result.winner),
            carried_over(result.search, result.holdout, result.winner),
        )
        words = [f"winner: {describe(result.winner)} passes every floor; `evomerge export {name} -o best.yaml`"]
        words += [str(gain)] if gain else []
        words += _asked(result)
        if parent is not None:
            words.append(f"note: {parent.label} itself passes every floor and scores better; no merge beat it")
        return words
    last = closest(result.holdout)
    if last is None:
        return ["no winner: no merge could be scored"]
    missed = missed_floors(result.holdout, last)
    words = [f"no winner: no candidate passes every floor on the holdout split; closest is {describe(last)}: {missed}"]
    advice = result.release.advice if result.release else None
    return words if advice is None else [*words, *advice_words(advice, result.holdout)]


def _asked(result: Result) -> list[str]:
    """Says how many finalists the holdout was asked about, and what chance the winner had."""
    chances = result.release.chances if result.release else {}
    known = {t.number for t in result.holdout.trials}
    n_asked = sum(number in known for number in chances)
    if not chances or result.winner is None:
        return []
    chance = chances.get(result.winner.number)
    # The uniform average is scored as a reference, whether it is a finalist or not.
    words = "the winner is none of them" if chance is None else f"the search items gave the winner {chance:.0%} to pass"
    return [f"the holdout was asked about {n_asked} of {len(chances)} finalists; {words}"]


def advice_words(advice: Advice, holdout: Leaderboard) -> list[str]:
    """Says what would help: lower floors, more items, more trials."""
    name = next((describe(t) for t in holdout.trials if t.number == advice.trial), f"trial {advice.trial}")
    lower = []
    for slice_, bound in advice.floors.items():
        sign = holdout.gates[slice_].sign
        # Rounded to the side on which the trial passes.
        shown = sign * math.floor(bound * 1e4) / 1e4
        lower.append(f"{slice_} {shown:.6g}")
    words = [f"lower floors: {name} passes with {', '.join(lower)} (`evomerge rank` shows it)"] if lower else []
    if advice.items is not None and advice.items > MOST_TIMES:
        words.append(f"more items: {name} needs more than {MOST_TIMES} times as many in each split")
    elif advice.items is not None:
        many = f"{advice.items:g} times as many in each split" if advice.items > 1 else "as many others in each split"
        words.append(f"more items: with {many}, {name} passes with 80 % probability")
    elif lower:
        words.append(f"more items: no number of them helps {name}, which lies below a floor on both splits together")
    if advice.chances is not None:
        before, now = advice.chances
        so_far = f"the best chance by the search items was {before:.0%} after half of the trials, and is {now:.0%}"
        more = f"; at this pace it is 80 % after {advice.trials} trials" if advice.trials else ""
        words.append(f"more trials: {so_far}{more}")
    return ["what would help:", *(f"  {line}" for line in words)] if words else []


def better_parent(holdout: Leaderboard, winner: Trial | None) -> Trial | None:
    """Returns the base or source that passes every floor and scores better than the winner."""
    parents = [t for t in holdout.trials if t.is_parent and holdout.outcome(t).feasible]
    best = max(parents, key=lambda t: t.objective or 0.0, default=None)
    if best is None or winner is None or best.objective is None or winner.objective is None:
        return None
    return best if best.objective > winner.objective else None


def closest(leaderboard: Leaderboard) -> Trial | None:
    """Returns the best-ranked merge, feasible or not."""
    return next(iter(leaderboard.merges()), None)


def missed_floors(leaderboard: Leaderboard, trial: Trial) -> str:
    """Says which floors a trial missed."""
    return "; ".join(_missed(leaderboard, trial, v) for v in leaderboard.verdicts(trial) if not v.passed)


def _missed(leaderboard: Leaderboard, trial: Trial, verdict: Verdict) -> str:
    sign, name = leaderboard.gates[verdict.slice].sign, verdict.slice
    floor = None if verdict.floor is None else sign * verdict.floor
    decimals = telling(floor, [(sign * verdict.bound, False)], sign, 4)
    bound = f" (confidence bound {number(sign * trial.bounds[name], decimals)})" if name in trial.bounds else ""
    return f"{name} {number(sign * trial.scores[name], decimals)}{bound}, floor {number(floor, decimals)}"
