"""Genome -> recipe: every gene reaches the tensors that it is meant for, and no others."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import InputError
from evomerge.files.space_file import read_space
from evomerge.recipe.mergekit import parse_recipe, write_recipe
from evomerge.recipe.parameters import Levels
from evomerge.recipe.recipe import Recipe
from evomerge.space.base import Models
from evomerge.space.space import Space
from evomerge.types import Genome

LAYERS = 6
GENES: dict[str, Any] = {
    "method": "ties",
    "weight": {"low": 0.0, "high": 1.2, "per": ["sources", "layers", "modules"]},
    "density": {"low": 0.1, "high": 1.0, "per": ["sources"]},
    "lambda": {"low": 0.5, "high": 1.5, "per": ["layers"]},
}


def make(tmp_path: Path, **changes: Any) -> Space:
    data = {
        "base": "base",
        "sources": {"a": "a", "b": "b"},
        "layers": 3,
        "modules": {"attention": "self_attn", "mlp": "mlp"},
        "genes": GENES,
        "fixed": {},
        "fitness": "f.yaml",
        **changes,
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
    models = Models("/m/base", {name: f"/m/{name}" for name in data["sources"]}, LAYERS, "float32")
    return Space(read_space(tmp_path / "s.yaml"), models)


def draw(space: Space, seed: int = 0) -> Genome:
    rng = random.Random(seed)
    return {d.key: rng.choice(d.choices) if d.choices else d.tidy(rng.uniform(d.low, d.high)) for d in space.dimensions}


def resolved(recipe: Recipe, name: str, model: str, layer: int, tensor: str) -> Any:
    """What the recipe's only document says of a parameter at a layer of the base."""
    document = recipe.output
    for piece in document.slices:
        source = next(i for i in piece.inputs if i.model == model)
        start, end = source.layers or (0, LAYERS)
        if start <= layer < end:
            t = (layer - start) / (end - start - 1) if end - start > 1 else 1.0
            levels = Levels(document, piece)
            per_source = levels.of_source(source, name, tensor, t)
            return per_source if per_source is not None else levels.of_tensor(name, tensor, t)
    raise AssertionError("no slice holds the layer")


def test_dimensions_are_the_product_of_the_axes(tmp_path: Path) -> None:
    space = make(tmp_path)
    keys = [d.key for d in space.dimensions]
    assert len(keys) == len(set(keys)) == 2 * 3 * 3 + 2 + 3
    assert "weight[a,0,attention]" in keys
    assert "weight[b,2,other]" in keys
    assert "density[b]" in keys
    assert "lambda[1]" in keys


def test_each_value_reaches_its_tensors(tmp_path: Path) -> None:
    space = make(tmp_path)
    genome = draw(space)
    recipe = space.recipe(genome)
    modules = {"self_attn.q_proj": "attention", "mlp.up_proj": "mlp", "input_layernorm": "other"}
    for layer in range(LAYERS):
        for part, module in modules.items():
            name = f"model.layers.{layer}.{part}.weight"
            for source in "ab":
                expected = genome[f"weight[{source},{layer // 2},{module}]"]
                assert resolved(recipe, "weight", f"/m/{source}", layer, name) == expected
                assert resolved(recipe, "density", f"/m/{source}", layer, name) == genome[f"density[{source}]"]
            assert resolved(recipe, "lambda", "/m/a", layer, name) == genome[f"lambda[{layer // 2}]"]


def test_interpolated_knots_run_from_the_first_layer_to_the_last(tmp_path: Path) -> None:
    genes = {"method": "linear", "weight": {"low": 0, "high": 1, "per": ["sources", "layers"]}}
    space = make(tmp_path, interpolate=True, genes=genes)
    genome = {d.key: {"0": 0.0, "1": 0.5, "2": 0.6}[d.key[-2]] for d in space.dimensions}
    recipe = space.recipe(genome)
    found = [resolved(recipe, "weight", "/m/a", layer, "x") for layer in range(LAYERS)]
    assert found == pytest.approx([0.0, 0.2, 0.4, 0.52, 0.56, 0.6])


def test_a_method_that_differs_by_layer_group_becomes_several_documents(tmp_path: Path) -> None:
    genes = {**GENES, "method": {"choices": ["ties", "dare_ties"], "per": ["layers"]}}
    space = make(tmp_path, genes=genes, optimizer={"name": "cma-es", "seed": 7})
    genome = {**draw(space), "method[0]": "ties", "method[1]": "ties", "method[2]": "dare_ties"}
    recipe = space.recipe(genome)
    assert [d.method for d in recipe.documents] == ["ties", "dare_ties", "passthrough"]
    assert [d.seed for d in recipe.documents] == [0, 7, 0]
    stack = [(s.inputs[0].model, s.inputs[0].layers) for s in recipe.output.slices]
    assert stack == [("stage-ties", (0, 4)), ("stage-dare_ties", (4, 6))]
    same = space.recipe({**genome, "method[2]": "ties"})
    assert len(same.documents) == 1


def test_parameters_of_methods_that_do_not_take_them_are_left_out(tmp_path: Path) -> None:
    genes = {**GENES, "method": {"choices": ["ties", "linear"], "per": []}}
    space = make(tmp_path, genes=genes, fixed={"rescale": True})
    recipe = space.recipe({**draw(space), "method": "linear"})
    assert recipe.output.parameters == {}
    inputs = recipe.output.slices[0].inputs
    assert set(inputs[0].parameters) == {"weight"}
    assert inputs[-1].model == "/m/base"
    assert inputs[-1].parameters == {"weight": 0.0}


def test_equal_groups_become_one_slice(tmp_path: Path) -> None:
    space = make(tmp_path)
    recipe = space.recipe(space.start)
    assert recipe.output.whole
    assert "models:" in write_recipe(recipe)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("interpolate", [False, True])
def test_recipes_survive_yaml(tmp_path: Path, seed: int, interpolate: bool) -> None:
    genes = {**GENES, "method": {"choices": ["ties", "dare_ties", "task_arithmetic"], "per": ["layers"]}}
    space = make(tmp_path, genes=genes, interpolate=interpolate, fixed={"normalize": False})
    recipe = space.recipe(draw(space, seed))
    assert parse_recipe(write_recipe(recipe)).id == recipe.id


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (7, "7 groups, but the base has 6 layers"),
        ([[0, 2], [2, 8]], "the ranges end at layer 8, the base has 6 layers"),
    ],
)
def test_groups_must_fit(tmp_path: Path, layers: Any, message: str) -> None:
    with pytest.raises(InputError, match="layers") as caught:
        make(tmp_path, layers=layers)
    assert message in str(caught.value)


def test_the_number_of_searched_values_is_bounded(tmp_path: Path) -> None:
    genes = {"method": "linear", "weight": {"low": 0, "high": 1, "per": ["sources", "layers", "modules"]}}
    names = {f"m{i}": f"part{i}" for i in range(9_000)}
    with pytest.raises(
        InputError, match=r"genes.weight: weight brings the number of searched values to .*, more than 100,000"
    ):
        make(tmp_path, genes=genes, layers="each", modules=names)


def test_uniform_and_parents(tmp_path: Path) -> None:
    space = make(tmp_path)
    assert space.uniform().output.method == "linear"
    assert space.parent("/m/a").models() == ["/m/a"]


def test_a_parent_of_uneven_models_takes_part_as_in_every_merge(tmp_path: Path) -> None:
    space = make(tmp_path)
    space.models = replace(space.models, uneven=True)
    parent = space.parent("/m/a")
    assert set(parent.models()) == {"/m/a", "/m/b", "/m/base"}
    assert [i.parameters["weight"] for i in parent.output.all_slices[0].inputs] == [1.0, 0.0, 0.0]
