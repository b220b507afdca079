import math

from hypothesis import given
from hypothesis import strategies as st

from evomerge.optimize.optuna_targets import optuna_targets
from evomerge.optimize.ordering import rank_key
from evomerge.types import Outcome

GOOD = Outcome(feasible=True, objective=0.9, shortfall=0.0, margins=(0.1, -1e-12), values=(0.8, 1.0))
POOR = Outcome(objective=0.5, shortfall=0.3, margins=(-0.3, 0.2), values=(0.2, 0.8))
NAN = Outcome(feasible=True, objective=math.nan, shortfall=0.0, margins=(0.1, 0.1), values=(math.nan, 1.0))

outcomes = st.builds(
    Outcome,
    failed=st.booleans(),
    feasible=st.booleans(),
    objective=st.floats(),
    shortfall=st.floats(min_value=1e-6, max_value=1e6),
)


def test_floors_are_constraints_that_a_feasible_one_never_violates() -> None:
    good, poor = optuna_targets([GOOD, POOR], 1)
    assert good.values == (0.9,)
    assert all(value <= 0 for value in good.constraints)
    assert poor.constraints == (0.3,)  # the floor that nobody misses is left out
    assert [target.values for target in optuna_targets([GOOD, POOR], 2)] == [(0.8, 1.0), (0.2, 0.8)]


def test_what_failed_has_no_value_of_its_own_and_violates_most() -> None:
    for objectives in (1, 2):
        good, poor, nan, failed = optuna_targets([GOOD, POOR, NAN, Outcome(failed=True)], objectives)
        assert nan == failed
        assert failed.values == poor.values
        assert sum(v for v in failed.constraints if v > 0) > sum(v for v in poor.constraints if v > 0) > 0
        assert max(good.constraints) <= 0
        assert len({len(target.constraints) for target in (good, poor, failed)}) == 1


def test_nothing_is_known_of_failures_alone() -> None:
    assert [target.values for target in optuna_targets([Outcome(failed=True)] * 2, 3)] == [(0.0, 0.0, 0.0)] * 2
    assert optuna_targets([], 1) == []


@given(st.lists(outcomes))
def test_the_order_is_the_feasibility_first_one(found: list[Outcome]) -> None:
    """As the samplers see it: feasible ones by value, behind them the others by the total violation."""
    targets = optuna_targets(found, 1)
    assert all(not math.isnan(number) for target in targets for number in (*target.values, *target.constraints))
    keys = [(sum(v for v in target.constraints if v > 0), target.values[0]) for target in targets]
    for first, one in zip(found, keys, strict=True):
        for second, other in zip(found, keys, strict=True):
            if rank_key(first)[:2] < rank_key(second)[:2]:
                assert one[0] < other[0]
            elif rank_key(first) < rank_key(second) and first.feasible:
                assert one[1] > other[1]
