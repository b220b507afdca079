"""`evomerge.search`, `resume` and `open_run` as notebooks and programs use them: each returns a `Study`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from evomerge.escape import printable
from evomerge.numbers import number
from evomerge.recipe.mergekit import write_recipe
from evomerge.report import plots
from evomerge.report.results import closest
from evomerge.report.tables import describe, directed
from evomerge.report.verdicts import verdict
from evomerge.scoring.slices import SliceInfo
from evomerge.study import search as launching
from evomerge.study.after.status import status
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.trial import Trial

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

P = ParamSpec("P")


@dataclass(frozen=True)
class ScoredTrial:
    """One trial, in the metrics' own directions.

    Attributes:
        number: of the trial.
        name: a reference's name, or "trial N".
        state: "complete", "pruned" or "failed".
        genome: its values by key; empty for a reference.
        scores: by slice, on the search items; predicted where it was pruned.
        holdout: by slice, on the holdout items; empty where it was not scored there.
        margins: by slice, the distance above the floor in the good direction, where there is one.
        feasible: whether it passes every floor, on the holdout items where it has scores there.
        objective: the number that is searched for; higher is better.
        recipe: as mergekit YAML.
    """

    number: int
    name: str
    state: str
    genome: Mapping[str, Any]
    scores: Mapping[str, float]
    holdout: Mapping[str, float]
    margins: Mapping[str, float]
    feasible: bool
    objective: float | None
    recipe: str


@dataclass(frozen=True)
class Study(launching.Result):
    """A run: its best merges, tables and figures. `search`, `holdout` and `winner` hold scores as the optimizer sees
    them (higher is better); all that is named below has the metrics' own directions."""

    @classmethod
    def of(cls, result: launching.Result) -> Study:
        return cls(**{field.name: getattr(result, field.name) for field in fields(result)})

    @property
    def best(self) -> ScoredTrial | None:
        """The winner; before there is one, the best merge so far that passes every floor on the search items."""
        found = self.winner if self.release is not None else self.search.best()
        return None if found is None else self.trial(found.number)

    @property
    def front(self) -> list[ScoredTrial]:
        """The merges that no other one dominates, where the objective is `pareto`; else none."""
        return [self.trial(trial.number) for trial in self.search.front()]

    @property
    def trials(self) -> list[ScoredTrial]:
        """All trials that have ended."""
        return [self.trial(trial.number) for trial in self.search.trials if trial.state != "running"]

    def trial(self, number: int) -> ScoredTrial:
        """One trial. KeyError where there is none of that number."""
        trial = _numbered(self.search, number)
        if trial is None:
            raise KeyError(number)
        asked = _numbered(self.holdout, number)
        board, judged = (self.search, trial) if asked is None else (self.holdout, asked)
        verdicts = board.verdicts(judged) if board.settled else []
        return ScoredTrial(
            number=number,
            name=trial.name,
            state=trial.state,
            genome=dict(trial.genome),
            scores=self.metrics(trial),
            holdout={} if asked is None else self.metrics(asked),
            margins={v.slice: v.bound - v.floor for v in verdicts if v.floor is not None},
            feasible=board.outcome(judged).feasible,
            objective=trial.objective,
            recipe=write_recipe(trial.recipe),
        )

    # Figures

    def plot_objective(self) -> Figure:
        """The objective of each trial, and the best so far (plotly)."""
        return plots.objective_figure(self.search, self.winner)

    def plot_slices(self, x: str | None = None, y: str | None = None) -> Figure:
        """One slice's score against another's; by default the first two."""
        names = [*self.search.gates]
        return plots.slices_figure(self.search, x or names[0], y or names[-1 if len(names) == 1 else 1], self.winner)

    def plot_parallel(self, genes: Sequence[str] | None = None) -> Figure:
        """The genes of all trials as parallel coordinates, coloured by the objective."""
        return plots.parallel_figure(self.search, genes)

    def plot_weights(self, number: int | None = None, gene: str = "weight") -> Figure:
        """The values of a gene of one trial (default: the best one) as a heat map."""
        if number is not None:
            return plots.weights_figure(self.trial(number).genome, gene)
        return plots.weights_figure({} if self.best is None else self.best.genome, gene)

    # In a notebook

    def _repr_html_(self) -> str:
        """The verdict, and a table of the references and the best merge under the floors."""
        board = self.holdout if self.release is not None else self.search
        split = "holdout" if self.release is not None else "search"
        lines = verdict(self) if self.release is not None else self._so_far()
        head = "".join(f"<th>{_html(n)}<br><small>{_html(self._metric(n))}</small></th>" for n in board.gates)
        shown = self._shown(board)
        decimals = board.decimals(shown)
        rows = [_row("floor", [_floor(board, name, decimals[name]) for name in board.gates], "")]
        rows += [self._trial_row(board, trial, decimals) for trial in shown]
        words = "<br>".join(map(_html, lines))
        return (
            f"<p><b>{_html(self.folder.name)}</b><br>{words}</p>"
            f"<table><thead><tr><th>{split} items</th>{head}<th>floors</th></tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )

    def _so_far(self) -> list[str]:
        best = self.search.best()
        leads = "no merge passes every floor so far" if best is None else f"best so far: {describe(best)}"
        return [f"{self.search.n_finished} trials have ended; {leads}"]

    def _metric(self, name: str) -> str:
        info = self.slices.get(name)
        return "" if info is None else directed(info.metric, info.sign)

    def _shown(self, board: Leaderboard) -> list[Trial]:
        """The references, then the best merge; where none passes on the holdout items, the closest one."""
        references = [trial for trial in board.trials if trial.kind == "reference" and trial.scores]
        best = board.best() if self.release is None else self.winner or closest(board)
        return [*references, *([best] if best is not None and best.kind != "reference" else [])]

    def _trial_row(self, board: Leaderboard, trial: Trial, decimals: Mapping[str, int]) -> str:
        missed = {v.slice for v in board.verdicts(trial) if not v.passed}
        cells = []
        for name, gate in board.gates.items():
            text = number(gate.sign * trial.scores[name], decimals[name]) if name in trial.scores else "-"
            cells.append(f"{text} ✗" if name in missed else text)
        label = describe(trial)
        if self.winner is not None and trial.number == self.winner.number:
            label = f"winner: {label}"
        elif self.release is not None and self.winner is None and trial.kind != "reference":
            label = f"closest: {label}"
        return _row(label, cells, "" if not board.settled else "misses" if missed else "passes")


def _row(label: str, cells: Sequence[str], last: str) -> str:
    values = "".join(f"<td>{_html(cell)}</td>" for cell in (*cells, last))
    return f"<tr><th>{_html(label)}</th>{values}</tr>"


def _floor(board: Leaderboard, name: str, decimals: int) -> str:
    gate = board.gates[name]
    return "-" if gate.floor is None else number(gate.sign * gate.floor, decimals)


def _html(text: str) -> str:
    return escape(printable(text))


def _numbered(board: Leaderboard, number: int) -> Trial | None:
    return next((trial for trial in board.trials if trial.number == number), None)


def _returns_study(function: Callable[P, launching.Result]) -> Callable[P, Study]:
    @wraps(function)
    def call(*arguments: P.args, **settings: P.kwargs) -> Study:
        return Study.of(function(*arguments, **settings))

    return call


search = _returns_study(launching.search)
resume = _returns_study(launching.resume)


def open_run(run: str | Path) -> Study:
    """A run, finished or going on, as `search` returns it. Reads its folder, and loads no model.

    Args:
        run: its name (in ``./runs``) or path.

    Raises:
        InputError: there is no such run, or it is damaged.
    """
    state = status(run)
    slices = {
        name: SliceInfo(
            name,
            fact["sign"],
            fact["metric"],
            fact["weight"],
            None,
            (),
            None,
            "",
            is_measure=fact.get("measure", False),
        )
        for name, fact in state.slices.items()
    }
    signs = {name: info.sign for name, info in slices.items()}
    release = state.release
    return Study(
        folder=state.folder,
        search=state.search,
        holdout=Leaderboard(Floors.unsettled(signs)) if release is None else release.leaderboard,
        winner=state.winner,
        slices=slices,
        confidence=None if release is None else release.confidence,
        gained=state.gained,
        release=release,
    )
