"""Bounds of a candidate's scores while a part of its items is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from evomerge.errors import TrialError
from evomerge.optimize.ordering import RankKey, rank_key
from evomerge.scoring.gates import Verdict, judge, lower_bound, shortfalls
from evomerge.scoring.stats.aggregation import ItemWeights
from evomerge.scoring.stats.anchors import Matrix, Vector
from evomerge.study.run.items import Items
from evomerge.study.run.leaderboard import Floors
from evomerge.types import Outcome, SliceScore

_SLACK = 1e-7
"""How far below a floor, relative to it, the best case has to lie: more than sums in another order differ by."""


class ScoreBounds:
    """Holds predicted scores, and the best scores that are still possible, to the floors."""

    def __init__(
        self,
        floors: Floors,
        objective: Callable[[Mapping[str, float]], float],
        item_weights: Mapping[str, ItemWeights],
        margins: Mapping[str, float],
        confidence: float | None,
        errors: Mapping[str, float] | None = None,
    ) -> None:
        """Args:
        floors: of the study.
        objective: of oriented scores by slice.
        item_weights: of the slices whose score is a mean of their items.
        margins: how far each slice's confidence bound lies below its score, as the control has it; empty without
            confidence.
        confidence: of the bounds that are held to the floors; None: the scores are.
        errors: `Trial.errors` of a candidate like these, by which a study aims above its floors.
        """
        self._floors, self._objective, self._item_weights = floors, objective, item_weights
        self.margins, self._confidence, self.errors = margins, confidence, errors or {}

    @property
    def scale(self) -> Mapping[str, float]:
        """The unit of each slice's shortfall."""
        return self._floors.scale

    def verdicts(self, scores: Mapping[str, float]) -> list[Verdict]:
        """The verdicts on oriented scores, of the gates that the study aims at."""
        gated = {name: SliceScore(score - self._below(name), None) for name, score in scores.items()}
        return judge(gated, self._floors.gates, self._floors.scale)

    def _below(self, name: str) -> float:
        """How far below its score a slice's bound lies, by which the study aims."""
        return self.margins.get(name, 0.0) + self._floors.aim * self.errors.get(name, 0.0)

    def keys(self, scores: Mapping[str, Matrix]) -> list[list[RankKey]]:
        """The ranks of many candidates: of each entry of arrays [rows, candidates] of oriented scores, by slice."""
        names, tables = list(scores), np.array(list(scores.values()))
        short = np.zeros_like(tables[0])
        for name, values in zip(names, tables, strict=True):
            gate = self._floors.gates[name]
            if gate.floor is not None:
                short += shortfalls(values - self._below(name), gate, self._floors.scale.get(name, 1.0))
        return [
            [self._key(names, tables[:, row, at], missed) for at, missed in enumerate(misses)]
            for row, misses in enumerate(short)
        ]

    def _key(self, names: Sequence[str], scores: Vector, missed: float) -> RankKey:
        try:
            objective = self._objective(dict(zip(names, scores.tolist(), strict=True)))
            return rank_key(Outcome(False, missed == 0.0, objective, float(missed)))
        except TrialError:
            return rank_key(Outcome(failed=True))

    def missed_floor(self, items: Items, totals: Mapping[str, SliceScore]) -> str | None:
        """Says which floor is missed even if every item to go is answered perfectly; None where none is.

        Args:
            items: that were scored.
            totals: scores of the slices that were scored whole.
        """
        for name, gate in self._floors.gates.items():
            if gate.floor is None or not (items.get(name) or name in totals):
                continue
            best = totals[name] if name in totals else self._item_weights[name].best_case(items[name])
            bound = self._bound(best, gate.sign)
            if bound < gate.floor - _SLACK * max(1.0, abs(gate.floor)):
                at_best = "" if name in totals else "at best "
                return f"misses the floor of {name}: {at_best}{gate.sign * bound:.4g}"
        return None

    def ceiling(self, name: str, items: Items) -> tuple[float, float]:
        """The best score that a slice can still have, and the best confidence bound (the same without confidence)."""
        best = self._item_weights[name].best_case(items.get(name, {}))
        return best.value, self._bound(best, self._floors.gates[name].sign)

    def _bound(self, score: SliceScore, sign: int) -> float:
        return score.value if self._confidence is None else lower_bound(score, sign, self._confidence)
