"""Slices at their limits: empty ones, which choose what stands before or behind the layers; ones of one model."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from evomerge.errors import InputError
from evomerge.merging.disk.stream import merge
from evomerge.recipe.mergekit import parse_recipe

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
BOTH = "[{model: <a>, layer_range: [0, 3]}, {model: <b>, layer_range: [0, 3]}]"


@pytest.fixture
def merged(models, tmp_path):
    """Merges slices, given as lists of sources; returns the output's tensors."""

    def run(*sources, method="linear", base=None, parameters="{weight: 1}"):
        text = f"merge_method: {method}\nparameters: {parameters}\nslices:\n"
        text += "".join(f"- {{sources: {listed}}}\n" for listed in sources)
        text += f"base_model: <{base}>\n" if base else ""
        for name, folder in models.items():
            text = text.replace(f"<{name}>", str(folder))
        return tiny_models.read(merge(parse_recipe(text), tmp_path / "out"))

    return run


@pytest.fixture
def stored(models):
    return {name: tiny_models.read(folder) for name, folder in models.items()}


def mean(stored, name):
    return (stored["a"][name] + stored["b"][name]) / 2


def test_an_empty_slice_at_the_end_chooses_norm_and_head(merged, stored):
    """As mergekit 0.1.5 does: the last slice gives them."""
    found = merged(BOTH, "[{model: <a>, layer_range: [3, 3]}]")
    assert set(found) == set(stored["a"])
    for name, tensor in found.items():
        expected = stored["a"][name] if name in (NORM, HEAD) else mean(stored, name)
        assert torch.allclose(tensor, expected, atol=1e-7), name


def test_an_empty_slice_at_the_start_chooses_the_embeddings(merged, stored):
    found = merged("[{model: <b>, layer_range: [0, 0]}]", BOTH)
    for name, tensor in found.items():
        expected = stored["b"][name] if name == EMBEDDING else mean(stored, name)
        assert torch.allclose(tensor, expected, atol=1e-7), name


def test_an_empty_slice_inside_changes_nothing(merged, stored):
    halves = [BOTH.replace("[0, 3]", half) for half in ("[0, 1]", "[1, 3]")]
    found = merged(halves[0], "[{model: <c>, layer_range: [1, 1]}]", halves[1])
    assert all(torch.allclose(tensor, mean(stored, name), atol=1e-7) for name, tensor in found.items())


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_model_alone_in_a_slice_of_slerp_stays_as_it_is(name, merged, stored):
    first = BOTH.replace("[0, 3]", "[0, 2]")
    found = merged(
        first, f"[{{model: <{name}>, layer_range: [2, 3]}}]", method="slerp", base="a", parameters="{t: 0.5}"
    )
    kept = [n for n in found if n.startswith("model.layers.2.") or n in (NORM, HEAD)]
    assert all(torch.equal(found[n], stored[name][n]) for n in kept)
    assert not torch.equal(found[EMBEDDING], stored["a"][EMBEDDING])


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("ties", "{weight: 1, density: 0.5}"), ("dare_linear", "{weight: 1, density: 0.5}"), ("sce", "{}")],
)
def test_the_base_alone_in_a_slice_stays_as_it_is(method, parameters, merged, stored):
    found = merged(BOTH, "[{model: <base>, layer_range: [3, 3]}]", method=method, base="base", parameters=parameters)
    assert all(torch.equal(found[n], stored["base"][n]) for n in (NORM, HEAD))


def test_what_is_no_stack_of_layers(merged):
    with pytest.raises(InputError, match="empty slices only"):
        merged("[{model: <a>, layer_range: [3, 3]}]")
    with pytest.raises(InputError, match="ends before it starts"):
        merged(BOTH, "[{model: <a>, layer_range: [3, 2]}]")
    with pytest.raises(InputError, match="which has 3 layers"):
        merged(BOTH, "[{model: <a>, layer_range: [4, 4]}]")
