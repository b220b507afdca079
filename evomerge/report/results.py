"""Shows the end of a search: both splits side by side, how much of the gain carried over, the winner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from evomerge.report.items_scored import ItemsScored
from evomerge.report.tables import describe, mark, number, span
from evomerge.scoring.gates import Gate, Verdict
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.recorded import Interval, intervals
from evomerge.study.run.trial import Trial
from evomerge.types import SplitName

if TYPE_CHECKING:
    from evomerge.study.search import Result

_SPLITS = "search\nholdout"


def result_table(result: Result) -> Table:
    """Builds a table of both splits: parents, uniform average, the other re-scored candidates, and the winner (without
    one, the closest)."""
    metrics = {name: info.metric for name, info in result.slices.items()}
    title = "Scores with 95 % intervals; the search never saw the holdout items"
    if result.confidence is not None:
        title += f"\nfloors are held against {result.confidence:.0%} lower bounds"
    return both_splits(title, result.folder.items, result.search, result.holdout, metrics)


def both_splits(
    title: str, items: Path, search: Leaderboard, holdout: Leaderboard, metrics: Mapping[str, str]
) -> Table:
    """Builds a table with one row a trial of `holdout`, two lines a row: its search and its holdout scores.

    items: the folder of per-item scores.
    """
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    table.caption, table.caption_justify = _relative_floors(holdout), "left"
    table.add_column("model")
    table.add_column("split", style="dim")
    for name in holdout.gates:
        table.add_column(f"{name}\n{metrics.get(name, '')}", justify="right")
    table.add_column("objective", justify="right")
    table.add_column("floors", justify="center")
    floors = (_both(_floor(search.gates[name]), _floor(holdout.gates[name])) for name in holdout.gates)
    table.add_row("floor", _SPLITS, *floors, "", "", style="dim", end_section=True)
    known = {trial.number: trial for trial in search.trials}
    for label, trial in _rows(holdout):
        pair = [(search, known[trial.number]), (holdout, trial)]
        sides = [_cells(items, *pair[0], "search"), _cells(items, *pair[1], "holdout")]
        scores = (_both(*cells) for cells in zip(*sides, strict=True))
        marks = _both(*(mark(leaderboard, side) for leaderboard, side in pair))
        objectives = _both(*(Text(number(side.objective)) for _, side in pair))
        table.add_row(label, _SPLITS, *scores, objectives, marks)
    return table


def _rows(leaderboard: Leaderboard) -> list[tuple[str, Trial]]:
    """Returns the trials with their names, the winner or the closest at the end."""
    best, near = leaderboard.best(), closest(leaderboard)
    last = best or near
    rows = [(describe(t), t) for t in leaderboard.trials if last is None or t.number != last.number]
    return rows if last is None else [*rows, (f"{'winner' if best else 'closest'}:\n{describe(last)}", last)]


def _both(search: Text, holdout: Text) -> Text:
    return Text("\n").join([search, holdout])


def _floor(gate: Gate) -> Text:
    if gate.floor is None:
        return Text("none")
    return Text(f"{'≥' if gate.sign > 0 else '≤'} {gate.sign * gate.floor:.{_decimals(gate.floor)}f}")


def _relative_floors(leaderboard: Leaderboard) -> str | None:
    floors = [f"{n} {'≥' if g.sign > 0 else '≤'} {g.text}" for n, g in leaderboard.gates.items() if " " in g.text]
    return f"floors on the holdout: {', '.join(floors)}" if floors else None


def _cells(items: Path, leaderboard: Leaderboard, trial: Trial, split: SplitName) -> list[Text]:
    signs = {name: gate.sign for name, gate in leaderboard.gates.items()}
    missed = {v.slice for v in leaderboard.verdicts(trial) if not v.passed}
    spans = intervals(items, trial, split, signs)
    cells = []
    for name, sign in signs.items():
        if name not in trial.scores:
            cells.append(Text("-"))
            continue
        text = score(sign * trial.scores[name], spans.get(name))
        cells.append(Text(f"✗ {text}", style="red") if name in missed else Text(text))
    return cells


def score(value: float, interval: Interval) -> str:
    """Writes a score with its interval, short: ``0.984 (0.94–1.00)``."""
    decimals = _decimals(value)
    if interval is None:
        return f"{value:.{decimals}f}"
    fewer = max(0, decimals - 1)
    narrow = f"{interval[0]:.{fewer}f}" == f"{interval[1]:.{fewer}f}"
    return f"{value:.{decimals}f} ({span(interval, decimals if narrow else fewer)})"


def _decimals(value: float) -> int:
    """Returns the number of decimals with which about four digits are shown."""
    return max(0, 4 - len(f"{abs(value):.0f}"))


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


def verdict(result: Result) -> str:
    """Says how a search ended, how many items it scored, and what to do next."""
    items = ItemsScored.of(result.search.trials)
    scored = [str(items)] if items.in_full else []
    return "\n".join([*scored, _outcome(result), *front_words(result)])


def front_words(result: Result) -> list[str]:
    """Lists the points of a front with their search scores and their places on the holdout split; empty without one."""
    points = result.search.front()
    if not points:
        return []
    scored, still = {t.number for t in result.holdout.trials}, {t.number for t in result.holdout.front()}
    able = {t.number for t in result.holdout.trials if result.holdout.outcome(t).feasible}
    count = f"{len(points)} trade-off{'s' if len(points) > 1 else ''}"
    lines = [f"front: {count} by the search items; `evomerge export {result.folder.handle} --trial N` takes any"]
    for trial in points:
        holdout = "not scored on the holdout items"
        if trial.number in scored:
            passes = "another is as good" if trial.number in able else "misses a floor"
            holdout = f"holdout: {'on the front' if trial.number in still else passes}"
        lines.append(f"  {result.search.floors.describe(trial)} ({holdout})")
    return lines


def _outcome(result: Result) -> str:
    name = result.folder.handle
    if result.winner is not None:
        parent, gain = better_parent(result), carried_over(result.search, result.holdout, result.winner)
        lines = [f"winner: {describe(result.winner)} passes every floor; `evomerge export {name} -o best.yaml`"]
        lines += [str(gain)] if gain else []
        if parent is not None:
            lines.append(f"note: {parent.label} itself passes every floor and scores better; no merge beat it")
        return "\n".join(lines)
    last = closest(result.holdout)
    if last is None:
        return "no winner: no merge could be scored"
    missed = missed_floors(result.holdout, last)
    return f"no winner: no candidate passes every floor on the holdout split; closest is {describe(last)}: {missed}"


def better_parent(result: Result) -> Trial | None:
    """Returns the base or source that passes every floor and scores better than the winner."""
    parents = [t for t in result.holdout.trials if t.is_parent and result.holdout.outcome(t).feasible]
    best = max(parents, key=lambda t: t.objective or 0.0, default=None)
    if best is None or result.winner is None or best.objective is None or result.winner.objective is None:
        return None
    return best if best.objective > result.winner.objective else None


def closest(leaderboard: Leaderboard) -> Trial | None:
    """Returns the best-ranked merge, feasible or not."""
    return next(iter(leaderboard.merges()), None)


def missed_floors(leaderboard: Leaderboard, trial: Trial) -> str:
    """Says which floors a trial missed."""
    return "; ".join(_missed(leaderboard, trial, v) for v in leaderboard.verdicts(trial) if not v.passed)


def _missed(leaderboard: Leaderboard, trial: Trial, verdict: Verdict) -> str:
    sign, name = leaderboard.gates[verdict.slice].sign, verdict.slice
    floor = sign * verdict.floor if verdict.floor is not None else float("nan")
    bound = f" (confidence bound {sign * trial.bounds[name]:.4f})" if name in trial.bounds else ""
    return f"{name} {sign * trial.scores[name]:.4f}{bound}, floor {floor:.4f}"
