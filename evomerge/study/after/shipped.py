"""What a run tells the checkpoint of its winner: the table of its card, and facts for its record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import InputError
from evomerge.escape import code, markdown
from evomerge.files.fitness_file import read_fitness
from evomerge.merging.disk.origin import Origin
from evomerge.numbers import behind, number
from evomerge.scoring.tasks.benchmarks import benchmark_doubts
from evomerge.study.after.status import Status
from evomerge.study.run.items import recorded_items
from evomerge.study.run.leaderboard import Leaderboard, better_parent
from evomerge.study.run.manifest import Environment
from evomerge.study.run.recorded import intervals
from evomerge.study.run.trial import UNIFORM, Trial
from evomerge.types import SplitName


def origin_of(state: Status, trial: Trial, leaderboard: Leaderboard, split: SplitName, header: str) -> Origin:
    """What a merge of a trial's recipe says of its run.

    Args:
        leaderboard: of the scores that the trial was chosen by, which are those of `split`.
        header: comments for the recipe.
    """
    environment = Environment.read(state.folder)
    told = _Told(state, trial, leaderboard, split, environment)
    return Origin("\n".join(told.lines()), told.facts(), header)


class _Told:
    def __init__(
        self, state: Status, trial: Trial, leaderboard: Leaderboard, split: SplitName, environment: Environment
    ) -> None:
        self._state, self._trial, self._leaderboard, self._split = state, trial, leaderboard, split
        self._environment = environment
        self._gates = leaderboard.gates
        self._models = [
            t for t in leaderboard.trials if t.kind == "reference" and t.number != trial.number and t.scores
        ]
        self._models.append(trial)
        self._decimals = leaderboard.decimals(self._models)

    # For the card

    def lines(self) -> Iterator[str]:
        """The part of the card, in Markdown."""
        yield "## Results"
        yield ""
        what = "which the search never saw" if self._split == "holdout" else "by which the search chose"
        yield f"Scores on the {self._split} items, {what}; in brackets 95 % intervals, ✗: misses the floor{self._by}."
        yield ""
        yield from self._table()
        yield ""
        yield from self._words()

    def _table(self) -> Iterator[str]:
        metrics = {name: fact["metric"] for name, fact in self._state.slices.items()}
        arrows = {name: "↑" if gate.sign > 0 else "↓" for name, gate in self._gates.items()}
        heads = [f"{markdown(name)} ({markdown(metrics.get(name))} {arrows[name]})" for name in self._gates]
        yield _row(["model", *heads, "objective", "floors"])
        yield _row(["---", *["---:"] * (len(heads) + 1), "---"])
        floors = {n: None if g.floor is None else g.sign * g.floor for n, g in self._gates.items()}
        signs = {name: "≥" if gate.sign > 0 else "≤" for name, gate in self._gates.items()}
        limits = [f"{signs[n]} {number(f, self._decimals[n])}" if f is not None else "-" for n, f in floors.items()]
        yield _row(["floor", *limits, "", ""])
        for trial in self._models:
            yield _row(list(self._cells(trial)))

    def _cells(self, trial: Trial) -> Iterator[str]:
        yield markdown(self._label(trial))
        gates = {name: gate.sign for name, gate in self._gates.items()}
        spans = intervals(self._state.folder.items, trial, self._split, gates)
        verdicts = self._leaderboard.verdicts(trial)
        missed = {v.slice for v in verdicts if not v.passed}
        for name, sign in gates.items():
            if name not in trial.scores:
                yield "-"
                continue
            score, decimals = sign * trial.scores[name], self._decimals[name]
            more = behind(score, spans.get(name), decimals)
            yield f"{'✗ ' if name in missed else ''}{number(score, decimals)}{more}"
        yield number(trial.objective)
        if trial.state == "pruned":
            yield "pruned"
        else:
            yield "pass" if verdicts and not missed else "miss"

    @property
    def _by(self) -> str:
        """What misses a floor, where that is not the score."""
        return "" if self._state.confidence is None else " by its confidence bound"

    def _label(self, trial: Trial) -> str:
        if trial.number == self._trial.number:
            winner = self._state.winner
            return "this merge" + (", the winner" if winner is not None and winner.number == trial.number else "")
        return "uniform average" if trial.label == UNIFORM else trial.name

    def _words(self) -> Iterator[str]:
        state, trial = self._state, self._trial
        counts = ", ".join(f"{markdown(name)} {count}" for name, count in self._counts(self._split).items())
        yield f"- Items of the {self._split} split: {counts or 'not kept'}. {_origins(self._leaderboard)}".rstrip()
        budget = state.budget
        limits = [f"{budget['trials']} trials"] if budget.get("trials") else []
        limits += [f"{budget['seconds']:.0f} s"] if budget.get("seconds") else []
        limits += [f"{budget['items']:,} items"] if budget.get("items") else []
        spent = f"{state.done} trials, {state.seconds:.0f} s, {state.items:,} items"
        yield f"- Search: run {code(state.folder.name)}, {code(trial.name)} of {spent} (budget: {', '.join(limits)})."
        optimizer = self._optimizer
        yield f"- Optimizer: {code(optimizer.get('name'))}, seed {code(optimizer.get('seed'))}."
        if state.confidence is not None:
            yield f"- Floors are held against {100 * state.confidence:g} % confidence bounds of the scores."
        parent = better_parent(self._leaderboard, trial)
        if parent is not None:
            yield f"- Note: {code(parent.name)} itself passes every floor and scores better."
        if trial.state == "pruned":
            yield f"- Its scores are predicted from {trial.evaluated} of {trial.items} items."
        versions = ((name, version) for name, version in self._environment.versions.items() if name != "platform")
        yield f"- Scored with {markdown(', '.join(' '.join(pair) for pair in versions))}."
        yield from (f"- Warning: {markdown(line)}." for line in self._doubts())
        for name, digest in self._environment.identity.get("items", {}).items():
            yield f"- Items of {markdown(name)} and their split: {code(str(digest)[:16])}."

    def _doubts(self) -> list[str]:
        """A line where slices are public benchmarks; none where the tasks of the run are not here any more."""
        try:
            return benchmark_doubts(read_fitness(self._state.folder.fitness))
        except InputError:
            return []

    # For the record

    def facts(self) -> dict[str, Any]:
        """Plain values for `reproduce.json`."""
        leaderboard, trial = self._leaderboard, self._trial
        winner = self._state.winner
        return {
            "run": self._state.folder.name,
            "trial": trial.number,
            "winner": winner is not None and winner.number == trial.number,
            "split": self._split,
            "confidence": self._state.confidence,
            "slices": {name: self._slice(name) for name in self._gates},
            "scores": {self._label(t): self._scores(t) for t in self._models},
            "missed": [v.slice for v in leaderboard.verdicts(trial) if not v.passed],
            "budget": dict(self._state.budget),
            "optimizer": dict(self._optimizer),
            "items": self._environment.identity.get("items", {}),
            "versions": self._environment.versions,
        }

    def _slice(self, name: str) -> dict[str, Any]:
        gate, spec = self._gates[name], self._specs.get(name, {})
        python = spec.get("python")
        return {
            "metric": self._state.slices.get(name, {}).get("metric"),
            "higher_is_better": gate.sign > 0,
            "floor": None if gate.floor is None else gate.sign * gate.floor,
            **({"task": spec["task"]} if "task" in spec else {}),
            **({"python": Path(str(python)).name} if python else {}),
        }

    def _scores(self, trial: Trial) -> dict[str, float]:
        return {name: gate.sign * trial.scores[name] for name, gate in self._gates.items() if name in trial.scores}

    @property
    def _specs(self) -> Mapping[str, Mapping[str, Any]]:
        """The slices of the fitness file."""
        specs: Mapping[str, Mapping[str, Any]] = self._environment.identity.get("fitness file", {}).get("slices", {})
        return specs

    @property
    def _optimizer(self) -> Mapping[str, Any]:
        optimizer: Mapping[str, Any] = self._environment.identity.get("space file", {}).get("optimizer", {})
        return optimizer

    def _counts(self, split: SplitName) -> Mapping[str, int]:
        """The number of a slice's items that the trial was scored on."""
        try:
            kept = recorded_items(self._state.folder.items, self._trial.number, split)
        except InputError:
            return {}
        return Counter({name: len(items) for name, items in kept.items()})


def _origins(leaderboard: Leaderboard) -> str:
    """Where floors come from that are relative to a model."""
    texts = [f"{markdown(n)}: {markdown(g.text)}" for n, g in leaderboard.gates.items() if " " in g.text]
    return f"Floors: {', '.join(texts)}." if texts else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
