import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.space.vector import Encoding
from evomerge.types import Dimension


@st.composite
def dimensions(draw: st.DrawFn) -> list[Dimension]:
    def one(index: int) -> Dimension:
        key = f"gene[{index}]"
        kind = draw(st.sampled_from(["linear", "log", "choice"]))
        if kind == "choice":
            count = draw(st.integers(1, 5))
            return Dimension(key, choices=tuple("abcde"[:count]), init="a")
        if kind == "log":
            low = draw(st.floats(1e-6, 1.0))
            return Dimension(key, low, low * draw(st.floats(1.0, 1e6)), log=True)
        low = draw(st.floats(-1e3, 1e3))
        return Dimension(key, low, low + draw(st.floats(0.0, 1e3)))

    return [one(index) for index in range(draw(st.integers(1, 6)))]


@settings(deadline=None)
@given(dimensions(), st.data())
def test_decode_is_tidy_and_in_bounds_and_encode_inverts_it(dims: list[Dimension], data: st.DataObject) -> None:
    encoding = Encoding(dims)
    coordinate = st.floats(-2.0, 3.0)
    vector = np.array(data.draw(st.lists(coordinate, min_size=encoding.size, max_size=encoding.size)))
    genome = encoding.decode(vector)
    for dimension in dims:
        value = genome[dimension.key]
        assert value == dimension.tidy(value)
        if dimension.choices:
            assert value in dimension.choices
        else:
            assert dimension.low <= float(value) <= dimension.high
    encoded = encoding.encode(genome)
    assert ((encoded >= -1e-9) & (encoded <= 1 + 1e-9)).all()
    assert encoding.decode(encoded) == genome


@given(st.floats(0.0, 1.2))
def test_a_tidy_number_survives(value: float) -> None:
    dimension = Dimension("weight", 0.0, 1.2)
    genome = {"weight": dimension.tidy(value)}
    encoding = Encoding([dimension])
    assert encoding.decode(encoding.encode(genome)) == genome


def test_a_choice_takes_a_coordinate_for_each_option() -> None:
    encoding = Encoding([Dimension("w"), Dimension("method", choices=("x", "y", "z")), Dimension("v")])
    assert encoding.size == 5
    assert encoding.choice_coordinates == (slice(1, 4),)
    assert encoding.numeric_coordinates == (0, 4)
    assert encoding.encode({"w": 0.25, "method": "z", "v": 1.0}).tolist() == [0.25, 0.0, 0.0, 1.0, 1.0]
    assert encoding.decode(np.array([0.25, -3.0, -1.0, -2.0, 9.0])) == {"w": 0.25, "method": "y", "v": 1.0}


def test_log_scale_halves_the_ratio() -> None:
    encoding = Encoding([Dimension("d", 0.01, 1.0, log=True)])
    assert encoding.decode(np.array([0.5])) == {"d": 0.1}


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(ValueError, match="low > 0"):
        Encoding([Dimension("d", 0.0, 1.0, log=True)])
    with pytest.raises(ValueError, match="ordered"):
        Encoding([Dimension("d", 1.0, 0.0)])
    with pytest.raises(ValueError, match="finite coordinates"):
        Encoding([Dimension("d")]).decode(np.array([np.nan]))
    with pytest.raises(ValueError, match="is not one of"):
        Encoding([Dimension("c", choices=("a", "b"))]).encode({"c": "z"})
