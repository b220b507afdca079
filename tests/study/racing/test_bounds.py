"""Ranks of many candidates at once are those of each by itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import TrialError
from evomerge.optimize.ordering import rank_key
from evomerge.scoring.gates import Gate, feasible, shortfall
from evomerge.study.racing.bounds import ScoreBounds
from evomerge.study.run.leaderboard import Floors
from evomerge.types import Outcome

SCORES = st.sampled_from([-0.5, 0.0, 0.5, 0.7, 0.7 + 1e-12, 0.9, float("nan"), float("inf")])


def objective(scores: Mapping[str, float]) -> float:
    if any(score < 0 for score in scores.values()):
        raise TrialError("below 0")
    return sum(scores.values())


@given(st.lists(st.tuples(*[SCORES] * 6), min_size=1, max_size=5), st.sampled_from([0.0, 1.0]))
def test_ranks_of_many(rows: list[tuple[float, ...]], aim: float) -> None:
    gates = {"a": Gate("a", 0.7), "b": Gate("b", -0.2, sign=-1), "c": Gate("c", None)}
    floors = Floors(gates, {"a": 0.5, "b": 2.0, "c": 1.0}, aim=aim)
    bounds = ScoreBounds(floors, objective, {}, {"a": 0.1}, None, {"a": 0.05, "b": 0.2})
    table = np.array(rows).reshape(len(rows), 2, 3)
    keys = bounds.keys({name: table[..., at] for at, name in enumerate(gates)})
    for row, of_row in zip(table.tolist(), keys, strict=True):
        for scores, key in zip(row, of_row, strict=True):
            by_name = dict(zip(gates, scores, strict=True))
            verdicts = bounds.verdicts(by_name)
            try:
                alone = Outcome(False, feasible(verdicts), objective(by_name), shortfall(verdicts))
            except TrialError:
                alone = Outcome(failed=True)
            assert key == rank_key(alone)
