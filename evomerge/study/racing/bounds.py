"""What can become of a candidate that was seen on a part of the items."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evomerge.errors import TrialError
from evomerge.scoring.gates import Verdict, feasible, judge, lower_bound, shortfall
from evomerge.scoring.stats.aggregation import ItemWeights
from evomerge.study.racing.rungs import Items
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.types import Outcome, SliceScore

_SLACK = 1e-7
"""How far below a floor, relative to it, the best case has to lie: more than sums in another order differ by."""


class ScoreBounds:
    """Holds predicted scores, and what is still possible, to the floors.

    `margins` is the distance of each slice's confidence bound from its score, as the control has it: 0 without
    confidence.
    """

    def __init__(
        self,
        floors: Leaderboard,
        objective: Callable[[Mapping[str, float]], float],
        compositions: Mapping[str, ItemWeights],
        margins: Mapping[str, float],
        confidence: float | None,
    ) -> None:
        self._floors, self._objective, self._compositions = floors, objective, compositions
        self.margins, self._confidence = margins, confidence

    def verdicts(self, values: Mapping[str, float]) -> list[Verdict]:
        """What the gates would say to these scores (oriented)."""
        held = {name: SliceScore(value - self.margins.get(name, 0.0), None) for name, value in values.items()}
        return judge(held, self._floors.gates, self._floors.scale)

    def outcome(self, values: Mapping[str, float]) -> Outcome:
        """Where a candidate with these scores would stand."""
        verdicts = self.verdicts(values)
        try:
            return Outcome(False, feasible(verdicts), self._objective(values), shortfall(verdicts))
        except TrialError:
            return Outcome(failed=True)

    def hopeless(self, items: Items, totals: Mapping[str, SliceScore]) -> str | None:
        """Which floor is missed whatever the candidate makes of the items to go, in words; None where none is sure to
        be. `items` and `totals` (the slices that were scored whole) are what is known."""
        for name, gate in self._floors.gates.items():
            if gate.floor is None or not (items.get(name) or name in totals):
                continue
            best = totals[name] if name in totals else self._compositions[name].best_case(items[name])
            bound = self._bound(best, gate.sign)
            if bound < gate.floor - _SLACK * max(1.0, abs(gate.floor)):
                at_best = "" if name in totals else "at best "
                return f"misses the floor of {name}: {at_best}{gate.sign * bound:.4g}"
        return None

    def ceiling(self, name: str, items: Items) -> tuple[float, float]:
        """The best score that a slice can still have, and the best confidence bound (the same without confidence)."""
        best = self._compositions[name].best_case(items.get(name, {}))
        return best.value, self._bound(best, self._floors.gates[name].sign)

    def _bound(self, score: SliceScore, sign: int) -> float:
        return score.value if self._confidence is None else lower_bound(score, sign, self._confidence)
