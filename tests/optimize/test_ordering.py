import math

from hypothesis import given
from hypothesis import strategies as st

from evomerge.optimize.ordering import front, rank_key, ranks, spread
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


rows = st.lists(st.tuples(*[st.integers(0, 4).map(float)] * 3), max_size=25)


@given(rows)
def test_a_front_is_what_nobody_dominates(values: list[tuple[float, ...]]) -> None:
    def dominated(row: tuple[float, ...]) -> bool:
        return any(other != row and all(o >= r for o, r in zip(other, row, strict=True)) for other in values)

    found = front(values)
    assert [values[at] for at in found] == list(dict.fromkeys(row for row in values if not dominated(row)))
    assert all(values.index(values[at]) == at for at in found)


def test_what_is_no_number_is_on_no_front_and_keeps_nobody_off() -> None:
    assert front([(math.nan, 9.0), (0.0, 1.0), (1.0, 0.0)]) == [1, 2]
    assert front([]) == []


@given(rows, st.integers(1, 8))
def test_some_that_stand_for_all(values: list[tuple[float, ...]], most: int) -> None:
    values = list(dict.fromkeys(values))
    found = spread(values, most)
    assert found == sorted(set(found))
    assert len(found) == min(most, len(values))
    assert not values or found[0] == 0


def test_the_ends_come_first_whatever_the_units() -> None:
    line = [(0.5, 500.0), *[(at / 10, 1000.0 - 100 * at) for at in range(11)]]
    assert spread(line, 3) == [0, 1, 11]
