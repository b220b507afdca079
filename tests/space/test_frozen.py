"""What a space file freezes is no dimension, and is what it was frozen at in every recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import InputError
from tests.space.test_space import LAYERS, draw, make, resolved

BOTH = {"low": 0.0, "high": 1.0, "init": 0.3, "per": ["sources", "layers"]}


def weights(recipe: Any, model: str) -> list[float]:
    return [resolved(recipe, "weight", model, layer, "mlp.weight") for layer in range(LAYERS)]


@pytest.mark.parametrize("interpolate", [False, True])
def test_frozen_layers_have_no_weight_and_no_gene(tmp_path: Path, interpolate: bool) -> None:
    genes = {"method": "ties", "weight": BOTH, "lambda": {"low": 0.5, "high": 1.5}}
    space = make(tmp_path, genes=genes, layers=3, interpolate=interpolate, freeze={"layers": [[0, 2], 3]})
    keys = {d.key for d in space.dimensions}
    assert keys == {"weight[a,1]", "weight[a,2]", "weight[b,1]", "weight[b,2]", "lambda"}
    found = weights(space.recipe(draw(space)), "/m/a")
    assert [found[i] for i in (0, 1, 3)] == [0.0, 0.0, 0.0]
    assert all(found[i] > 0 for i in (2, 4, 5))


def test_frozen_layers_hold_what_is_no_gene_per_layer(tmp_path: Path) -> None:
    genes = {"method": {"choices": ["ties", "dare_ties"], "per": ["layers"]}, "lambda": {"low": 0.5, "high": 1.5}}
    space = make(tmp_path, genes=genes, fixed={"weight": 0.5}, layers=3, freeze={"layers": [[0, 2]]})
    assert {d.key for d in space.dimensions} == {"method[1]", "method[2]", "lambda"}
    one = space.recipe({"method[1]": "dare_ties", "method[2]": "dare_ties", "lambda": 1.0})
    assert len(one.documents) == 1  # frozen layers need no method of their own
    first = one.output.slices[0]
    assert first.inputs[0].layers == (0, 2)
    assert all(i.parameters["weight"] == 0.0 for i in first.inputs if i.model != "/m/base")


def test_a_path_stays_at_its_beginning(tmp_path: Path) -> None:
    genes = {"method": "slerp", "t": {"low": 0.0, "high": 1.0, "per": ["layers"]}}
    space = make(tmp_path, sources={"a": "a"}, genes=genes, layers="each", freeze={"layers": [5]})
    assert len(space.dimensions) == LAYERS - 1
    assert space.recipe(draw(space)).output.slices[-1].parameters == {"t": 0.0}


def test_frozen_sources_keep_their_values(tmp_path: Path) -> None:
    genes = {"method": "ties", "weight": BOTH, "density": {"low": 0.1, "high": 1.0, "init": 0.4, "per": ["sources"]}}
    space = make(tmp_path, genes=genes, freeze={"sources": {"a": 0.7}})
    assert {d.place["sources"] for d in space.dimensions} == {"b"}
    recipe = space.recipe(draw(space))
    assert weights(recipe, "/m/a") == [0.7] * LAYERS
    assert resolved(recipe, "density", "/m/a", 0, "mlp.weight") == 0.4
    other = make(tmp_path, genes=genes, freeze={"sources": ["a"]})
    assert weights(other.recipe(draw(other)), "/m/a") == [0.3] * LAYERS


def test_reference_genomes_are_what_is_known_of_them(tmp_path: Path) -> None:
    genes = {"method": "task_arithmetic", "weight": BOTH}
    ladder = {"equal 0.2", "equal 0.4", "equal 0.6", "equal 0.8"}

    def labels(**freeze: Any) -> set[str]:
        return set(make(tmp_path, genes=genes, freeze=freeze).reference_genomes) - ladder

    assert labels() == {"base", "a", "b", "uniform"}
    assert labels(layers=[0]) == {"base"}
    assert labels(sources={"a": 0.7}) == set()
    assert labels(sources={"a": 0.0}) == {"base", "b"}


def test_a_source_with_the_name_of_the_ladder_is_a_source(tmp_path: Path) -> None:
    genes = {"method": "task_arithmetic", "weight": BOTH}
    sources = {"equal-mix": "a", "b": "b"}
    assert "equal-mix" in make(tmp_path, sources=sources, genes=genes).reference_genomes
    assert "equal-mix" not in make(tmp_path, sources=sources, genes=genes, freeze={"layers": [0]}).reference_genomes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": {"layers": [[0, 7]]}}, r"s\.yaml.* freeze.layers.*layer 6, and the base has layers 0 to 5"),
        ({"freeze": {"layers": [[3, 2]]}}, r"freeze.layers.*no range of layers"),
        ({"freeze": {"layers": ["x"]}}, "freeze.layers.*not a number"),
        ({"freeze": {"sources": ["c"]}}, "there is no source 'c'; name some of a, b"),
        ({"freeze": {"source": ["a"]}}, "did you mean"),
        ({"genes": {"method": "ties", "weight": {"low": 0, "high": 1}}, "freeze": {"sources": ["a"]}}, "no gene has a"),
        ({"genes": {"method": "linear", "weight": BOTH}, "freeze": {"layers": [0]}}, "linear has no value that leaves"),
    ],
)
def test_what_cannot_be_frozen(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make(tmp_path, **changes)
    assert re.search(message, str(caught.value).replace("\n", " ")), str(caught.value)


EACH = {"low": 0.0, "high": 1.0, "init": 0.3, "per": ["sources", "modules"]}


@pytest.mark.parametrize("per", [["sources", "modules"], ["sources"]])
def test_frozen_modules_are_the_bases_or_a_sources(tmp_path: Path, per: list[str]) -> None:
    genes = {
        "method": "ties",
        "weight": {"low": 0.1, "high": 0.9, "per": per},
        "density": {"low": 0.1, "high": 0.9, "per": ["sources"]},
    }
    kept = {"attention": "base", "mlp": "b"}
    space = make(tmp_path, genes=genes, modules={"attention": "attn", "mlp": "mlp"}, freeze={"modules": kept})
    assert all(d.place.get("modules", "other") == "other" for d in space.dimensions)
    recipe = space.recipe(draw(space))
    for layer in range(LAYERS):
        found = {
            (name, model, part): resolved(recipe, name, f"/m/{model}", layer, part)
            for name in ("weight", "density")
            for model in "ab"
            for part in ("attn.weight", "mlp.weight", "norm.weight")
        }
        assert [found["weight", m, "attn.weight"] for m in "ab"] == [0.0, 0.0]
        assert [found["weight", m, "mlp.weight"] for m in "ab"] == [0.0, 1.0]
        assert found["density", "b", "mlp.weight"] == 1.0
        assert all(0.1 <= found["weight", m, "norm.weight"] <= 0.9 for m in "ab")


def test_with_a_module_of_a_source_no_parent_is_in_the_space(tmp_path: Path) -> None:
    genes = {"method": "task_arithmetic", "weight": EACH}
    of_base = make(tmp_path, genes=genes, modules={"mlp": "mlp"}, freeze={"modules": ["mlp"]})
    assert "base" in of_base.reference_genomes
    assert not {"a", "b", "uniform"} & of_base.reference_genomes.keys()
    of_source = make(tmp_path, genes=genes, modules={"mlp": "mlp"}, freeze={"modules": {"mlp": "a"}})
    assert not {"base", "a", "b", "uniform"} & of_source.reference_genomes.keys()


@pytest.mark.parametrize(
    ("method", "frozen", "message"),
    [
        ("task_arithmetic", ["tower"], "there is no module 'tower'; name some of mlp"),
        ("task_arithmetic", {"mlp": "c"}, "there is no source 'c'; write base, or some of a, b"),
        ("linear", ["mlp"], "linear has no value that leaves a module as the base's"),
        ("ties", {"mlp": "a"}, "ties has no value that makes a module a source's"),
    ],
)
def test_modules_that_cannot_be_frozen(tmp_path: Path, method: str, frozen: Any, message: str) -> None:
    genes = {"method": method, "weight": {"low": 0.0, "high": 1.0, "per": ["sources"]}}
    with pytest.raises(InputError, match=re.escape(message)):
        make(
            tmp_path,
            genes=genes,
            modules={"mlp": "mlp"},
            freeze={"modules": frozen},
            fixed={"density": 0.5} if method == "ties" else {},
        )


def test_bands_make_no_module_a_sources(tmp_path: Path) -> None:
    bands = {"low": 0.0, "high": 1.0, "per": ["sources", "tensors", "bands"], "bands": 4}
    genes = {"method": "task_arithmetic", "weight": bands}
    fixed = {"normalize": False}
    with pytest.raises(InputError, match="weights of bands make no module a source's bit for bit"):
        make(tmp_path, genes=genes, fixed=fixed, modules={"mlp": "mlp"}, freeze={"modules": {"mlp": "a"}})
