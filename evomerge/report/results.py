"""Shows the end of a search: both splits side by side, how much of the gain carried over, the winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.numbers import behind, number, shortest, telling, usual
from evomerge.report.shown import Cell, Column, Row, Sheet
from evomerge.report.tables import (
    INTERVALS,
    by_bounds,
    describe,
    directions,
    limit,
    mark,
    misses,
    origins,
    scored,
    slice_columns,
)
from evomerge.scoring.gates import Verdict, floor_decimals
from evomerge.space.reference_genomes import SOUP, equal_labels
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.recorded import Interval, intervals
from evomerge.study.run.release import Ended
from evomerge.study.run.trial import Trial
from evomerge.types import SplitName


def result_table(result: Ended) -> Sheet:
    """Builds a table of both splits: parents, uniform average, the best of the equal weights and of the soups, the
    other re-scored candidates, and the winner (without one, the closest)."""
    metrics = {name: str(fact["metric"]) for name, fact in result.facts.items()}
    title = "Scores on both splits; the search never saw the holdout items"
    legend = by_bounds(result.confidence)
    plain = plain_merges(result.search)
    return both_splits(title, result.folder.items, result.search, result.holdout, metrics, legend, plain)


def plain_merges(search: Leaderboard) -> list[Trial]:
    """The best merge with equal weights, and the best soup, where some were scored: what a search has to beat."""
    kinds = (equal_labels(), [SOUP])
    found = [next((t for t in search.merges_in_order() if t.kind == "search" and t.label in k), None) for k in kinds]
    return [trial for trial in found if trial is not None]


def both_splits(
    title: str,
    items: Path,
    search: Leaderboard,
    holdout: Leaderboard,
    metrics: Mapping[str, str],
    legend: Sequence[str] = (),
    others: Sequence[Trial] = (),
) -> Sheet:
    """Builds a table with two rows for each trial of `holdout`: its search and its holdout scores.

    items: the folder of per-item scores.
    others: trials that stand beside them, with their search scores alone where they have no others.
    """
    known = {trial.number: trial for trial in search.trials}
    labelled: list[tuple[str, Trial, Trial | None]]
    labelled = [(label, known[trial.number], trial) for label, trial in _rows(holdout)]
    rescored = {trial.number for trial in holdout.trials}
    labelled[-1:-1] = [(describe(t), t, None) for t in others if t.number not in rescored]
    sides = [(search, t) for _, t, _ in labelled] + [(holdout, t) for *_, t in labelled if t is not None]
    decimals = {name: _decimals(name, sides) for name in holdout.gates}
    rows = [
        Row(["floor", name], [*_floors(board, decimals), Cell(""), Cell("")], "dim", ends=name == "holdout")
        for name, board in (("search", search), ("holdout", holdout))
    ]
    unknown = []
    for label, found, trial in labelled:
        places: list[tuple[SplitName, Leaderboard, Trial]] = [("search", search, found)]
        places += [("holdout", holdout, trial)] if trial is not None else []
        for split, board, side in places:
            spans = intervals(items, side, split, {name: gate.sign for name, gate in board.gates.items()})
            unknown += [f"{side.name} ({split})"] if side.scores and not spans else []
            rows.append(_row(label, split, board, side, spans, decimals, ends=split == places[-1][0]))
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
    ends: bool,
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
    return Row([label, split], [*cells, objective, mark(leaderboard, trial)], ends=ends)


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


def closest(leaderboard: Leaderboard) -> Trial | None:
    """Returns the best-ranked merge, feasible or not."""
    return next(iter(leaderboard.merges()), None)


def missed_floors(leaderboard: Leaderboard, trial: Trial) -> str:
    """Says which floors a trial missed."""
    return "; ".join(_missed(leaderboard, trial, v) for v in leaderboard.verdicts(trial) if not v.passed)


def _missed(leaderboard: Leaderboard, trial: Trial, verdict: Verdict) -> str:
    sign, name = leaderboard.gates[verdict.slice].sign, verdict.slice
    floor = None if verdict.floor is None else sign * verdict.floor
    decimals = telling(floor, [(sign * verdict.bound, False)], sign, usual([sign * verdict.bound]))
    bound = f" (confidence bound {number(sign * trial.bounds[name], decimals)})" if name in trial.bounds else ""
    return f"{name} {number(sign * trial.scores[name], decimals)}{bound}, floor {number(floor, decimals)}"
