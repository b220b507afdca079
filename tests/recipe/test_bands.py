"""Bands: how directions are cut, and what recipes say of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import InputError
from evomerge.files.objects import Top
from evomerge.recipe.bands import Bands, even, sizes, top
from evomerge.recipe.mergekit import parse_recipe, write_recipe
from evomerge.recipe.parameters import of_tensor

RECIPE = """
merge_method: band_arithmetic
base_model: base
models:
- model: one
  parameters:
    weight: [{filter: up_proj, bands: [0.5, -0.25], sizes: [3, 13]}, {filter: q_proj, bands: [1, 2, 3]}, {value: 0.5}]
"""
TOP = RECIPE.replace(
    "bands: [0.5, -0.25], sizes: [3, 13]", "bands: [0.5, -0.25, 0.75], sizes: [3, 13], top: 16"
).replace("bands: [1, 2, 3]", "bands: [1, 2, 3], top: 8")


@given(st.integers(1, 300), st.integers(1, 300))
def test_even_sizes_differ_by_one_at_most(directions: int, count: int) -> None:
    cut = sizes(count, (directions, 300))
    assert sum(cut) == directions
    assert len(cut) == min(count, directions)
    assert max(cut) - min(cut) <= 1


@given(st.integers(1, 200), st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6))
def test_shares_cut_all_directions(directions: int, shares: list[float]) -> None:
    cut = sizes(tuple(share / sum(shares) for share in shares), (300, directions))
    assert sum(cut) == directions
    assert min(cut) >= 1
    assert len(cut) == min(len(shares), directions)


def test_cuts() -> None:
    assert sizes((0.1, 0.3, 0.6), (20, 40)) == (2, 6, 12)
    assert sizes("each", (3, 5)) == (1, 1, 1)
    assert sizes("each", (5,)) == sizes(8, (2, 3, 4)) == (1,)
    assert sizes((0.3, 0.3, 0.4), (1, 9)) == (1,)
    assert even(7, 3) == (2, 2, 3)


@given(
    st.integers(1, 200), st.integers(1, 300), st.one_of(st.integers(1, 50), st.just("each"), st.just((0.2, 0.5, 0.3)))
)
def test_a_top_leaves_a_rest(count: int, directions: int, cut) -> None:
    shape = (300, directions)
    found = sizes(Top(count, cut), shape)
    assert sum(found) == directions
    assert min(found) >= 1
    if directions > count:
        assert top(Top(count, cut), shape) == count
        assert found == (*sizes(cut, (count, count)), directions - count)
        assert Bands((1.0,) * len(found), found[:-1], count).sizes_in(directions) == found
    else:
        assert top(Top(count, cut), shape) is None
        assert found == sizes(cut, shape)


def test_tops() -> None:
    assert sizes(Top(4), (9, 20)) == (1, 1, 1, 1, 5)
    assert sizes(Top(4, 2), (9, 20)) == (2, 2, 5)
    assert sizes(Top(9, 2), (9, 20)) == (4, 5)
    assert sizes(Top(4), (9,)) == sizes(Top(4), (9, 9, 9)) == (1,)
    assert top(4, (9, 20)) is top(Top(4), (9,)) is None


def test_recipes_survive_yaml() -> None:
    recipe = parse_recipe(RECIPE)
    assert parse_recipe(write_recipe(recipe)).id == recipe.id
    weight = recipe.output.slices[0].inputs[0].parameters["weight"]
    assert of_tensor(weight, "layers.0.up_proj.weight", 0.0) == Bands((0.5, -0.25), (3, 13))
    assert of_tensor(weight, "layers.0.q_proj.weight", 0.0) == Bands((1.0, 2.0, 3.0))
    assert of_tensor(weight, "norm.weight", 0.0) == 0.5


def test_tops_survive_yaml() -> None:
    recipe = parse_recipe(TOP)
    assert parse_recipe(write_recipe(recipe)).id == recipe.id != parse_recipe(RECIPE).id
    weight = recipe.output.slices[0].inputs[0].parameters["weight"]
    assert of_tensor(weight, "layers.0.up_proj.weight", 0.0) == Bands((0.5, -0.25, 0.75), (3, 13), 16)
    assert of_tensor(weight, "layers.0.q_proj.weight", 0.0) == Bands((1.0, 2.0, 3.0), None, 8)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sizes: [3, 13]", "sizes: [3, 12]", "sums to 15 directions, and top is 16"),
        ("sizes: [3, 13]", "sizes: [3, 13, 4]", "has another length than bands but the last one, which is the rest's"),
        ("bands: [1, 2, 3]", "bands: [1]", "has 1 numbers for the 8 largest directions and the rest; give from 2 to 9"),
        ("top: 8", "top: 1", "has 3 numbers for the 1 largest directions and the rest"),
        ("top: 8", "top: 0", "top"),
        ("top: 8", "top: x", "x"),
    ],
)
def test_what_is_wrong_with_a_top_is_said(old: str, new: str, message: str) -> None:
    assert old in TOP
    with pytest.raises(InputError, match=message):
        parse_recipe(TOP.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bands: [0.5, -0.25]", "bands: []", "is an empty list"),
        ("sizes: [3, 13]", "sizes: [3]", "has another length than bands"),
        ("sizes: [3, 13]", "sizes: [0, 13]", "0"),
        ("bands: [1, 2, 3]", "bands: [1, x]", "x"),
        ("bands: [1, 2, 3]", "bands: [1], value: 2", "value"),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_recipe(RECIPE.replace(old, new))


def test_bands_must_fit() -> None:
    assert Bands((1.0, 2.0)).sizes_in(5) == (2, 3)
    with pytest.raises(ValueError, match="6 directions, and the matrix has 5"):
        Bands((1.0, 2.0), (2, 4)).sizes_in(5)
    with pytest.raises(ValueError, match="2 bands, and the matrix has 1"):
        Bands((1.0, 2.0)).sizes_in(1)
    assert Bands((1.0, 2.0, 3.0), top=4).sizes_in(5) == (2, 2, 1)
    with pytest.raises(ValueError, match="a top of 5 directions and a rest, and the matrix has 5"):
        Bands((1.0, 2.0), top=5).sizes_in(5)
    with pytest.raises(ValueError, match="bands of 3 directions, and the top has 4"):
        Bands((1.0, 2.0), (3,), top=4).sizes_in(5)
    with pytest.raises(ValueError, match="3 bands, and the top has 2 directions"):
        Bands((1.0, 2.0, 3.0, 4.0), top=2).sizes_in(5)
