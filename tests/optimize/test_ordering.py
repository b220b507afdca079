import math

from hypothesis import given
from hypothesis import strategies as st

from evomerge.optimize.ordering import front, spread

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
