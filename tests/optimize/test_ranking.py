import math

from hypothesis import given
from hypothesis import strategies as st

from evomerge.optimize.ranking import rank_key, ranks
from evomerge.types import Outcome

GOOD = Outcome(feasible=True, objective=0.9, shortfall=0.0)
POOR = Outcome(feasible=True, objective=-5.0, shortfall=0.0)
CLOSE = Outcome(objective=0.1, shortfall=0.01)
FAR = Outcome(objective=9.0, shortfall=0.5)
FAILED = Outcome(failed=True)

outcomes = st.builds(
    Outcome,
    failed=st.booleans(),
    feasible=st.booleans(),
    objective=st.floats(),
    shortfall=st.floats(min_value=0.0),
)


def test_the_order() -> None:
    assert ranks([FAILED, FAR, POOR, GOOD, CLOSE]) == [4, 3, 1, 0, 2]


def test_equal_keys_share_a_rank() -> None:
    assert ranks([GOOD, FAILED, GOOD, Outcome(failed=True, feasible=True, objective=3.0)]) == [0, 1, 0, 1]
    assert ranks([]) == []


def test_equally_infeasible_candidates_are_ordered_by_objective() -> None:
    assert rank_key(Outcome(objective=0.2, shortfall=0.01)) < rank_key(CLOSE)


def test_nan_never_wins() -> None:
    nan = math.nan
    assert ranks([Outcome(feasible=True, objective=nan), FAR]) == [1, 0]
    assert ranks([Outcome(objective=nan, shortfall=0.5), FAR]) == [1, 0]
    assert ranks([Outcome(objective=9.0, shortfall=nan), FAR]) == [1, 0]
    assert ranks([Outcome(objective=nan, shortfall=nan), FAILED]) == [0, 1]


@given(st.lists(outcomes))
def test_ranks_follow_the_keys(found: list[Outcome]) -> None:
    places = ranks(found)
    keys = [rank_key(outcome) for outcome in found]
    assert not any(math.isnan(part) for key in keys for part in key)
    for i, key in enumerate(keys):
        for j, other in enumerate(keys):
            assert (places[i] < places[j]) == (key < other)
