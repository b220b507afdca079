"""A weight for each band: dimensions, recipes, and what bands do not go with."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import yaml

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError
from evomerge.evaluator.models import space_models
from evomerge.files.resolved import space_data
from evomerge.files.space_file import read_space
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank
from evomerge.recipe.bands import Bands
from evomerge.recipe.mergekit import parse_recipe, write_recipe
from evomerge.space.space import Space

WEIGHT = {"low": -1.0, "high": 2.0, "per": ["sources", "tensors", "bands"], "bands": 3}


@pytest.fixture(scope="module", params=["own head", "tied"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_models.family(tmp_path_factory.mktemp("family"), tied=request.param == "tied")


def spec_of(folder: Path, models: dict[str, Path], weight: dict[str, Any], **changes: Any) -> Any:
    data: dict[str, Any] = {
        "base": str(models["base"]),
        "sources": {name: str(models[name]) for name in ("a", "b")},
        "genes": {"method": "task_arithmetic", "weight": weight},
        "fitness": "f.yaml",
        **changes,
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(data))
    return read_space(folder / "s.yaml")


def made(folder: Path, models: dict[str, Path], bands: Any = 3, **changes: Any) -> Space:
    spec = spec_of(folder, models, {**WEIGHT, "bands": bands}, **changes)
    sources = {name: Checkpoint.open(str(models[name])) for name in ("a", "b")}

    class NoTokens:
        changes = False

    return Space(spec, space_models(spec, Checkpoint.open(str(models["base"])), sources, NoTokens()))


@pytest.mark.parametrize("bands", [1, 3, [0.25, 0.75], "each", {"top": 4}, {"top": 17, "cut": [0.3, 0.7]}])
def test_each_band_gets_its_own_value(tmp_path: Path, models: dict[str, Path], bands: Any) -> None:
    space = made(tmp_path, models, bands)
    rng = random.Random(1)
    genome = {d.key: d.tidy(rng.uniform(d.low, d.high)) for d in space.dimensions}
    recipe = space.recipe(genome)
    assert parse_recipe(write_recipe(recipe)).id == recipe.id
    jobs = plan(recipe, SourceBank().open).jobs
    assert {job.method for job in jobs.values()} == {"band_arithmetic"}
    for tensor, job in jobs.items():
        matrix = len(job.shape) == 2
        directions = min(job.shape)
        count = {1: 1, 3: 3, "each": directions}.get(bands if isinstance(bands, int | str) else None, 2)
        count = 5 if bands == {"top": 4} else count
        for source, value in zip(("a", "b"), job.parameters["weight"], strict=True):
            expected = [genome[f"weight[{source},{tensor},{band}]"] for band in range(count if matrix else 1)]
            if len(expected) == 1:
                assert value == expected[0]
            else:
                assert isinstance(value, Bands)
                assert list(value.values) == expected
                assert sum(value.sizes_in(directions)) == directions
                assert value.top == (4 if bands == {"top": 4} else None)  # no matrix has more than 17
            assert [key for key, _ in space.shares("weight", source, tensor)] == [
                f"weight[{source},{tensor},{band}]" for band in range(len(expected))
            ]


@pytest.mark.parametrize("bands", [[0.25, 0.75], {"top": 64}, {"top": 64, "cut": [0.25, 0.75]}, {"top": 9, "cut": 3}])
def test_a_run_keeps_the_cut(tmp_path: Path, models: dict[str, Path], bands: Any) -> None:
    spec = spec_of(tmp_path, models, {**WEIGHT, "bands": bands})
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(space_data(spec)))
    assert read_space(tmp_path / "again.yaml").genes == spec.genes


def test_reference_genomes_and_frozen(tmp_path: Path, models: dict[str, Path]) -> None:
    assert {"base", "a", "b", "uniform"} <= made(tmp_path, models).reference_genomes.keys()
    space = made(tmp_path, models, freeze={"layers": [0], "sources": {"b": 0.3}})
    assert {d.place["sources"] for d in space.dimensions} == {"a"}
    assert not any(space.models.tensors[d.place["tensors"]] == 0 for d in space.dimensions)
    jobs = plan(space.recipe({d.key: 0.5 for d in space.dimensions}), SourceBank().open).jobs
    assert jobs["model.embed_tokens.weight"].parameters["weight"] == (0.0, 0.0)
    assert jobs["model.layers.1.mlp.up_proj.weight"].parameters["weight"][1] == Bands((0.3, 0.3, 0.3))
    assert space.shares("weight", "b", "model.layers.1.mlp.up_proj.weight") == ()


def test_factored_matrices(tmp_path: Path, models: dict[str, Path]) -> None:
    space = made(tmp_path, models)
    matrices = [shape for name, shape in space.models.shapes.items() if len(shape) == 2]
    assert sorted(space.factored()) == sorted((shape, min(shape)) for shape in [*matrices, *matrices])
    assert not list(made(tmp_path, models, 1).factored())
    assert sorted(made(tmp_path, models, {"top": 4}).factored()) == sorted((s, 4) for s in [*matrices, *matrices])
    frozen = made(tmp_path, models, {"top": 4}, freeze={"layers": [0]})
    searched = [n for n, layer in space.models.tensors.items() if layer != 0 and len(space.models.shapes[n]) == 2]
    assert len(list(frozen.factored())) == 2 * len(searched)


def test_what_is_planned_is_what_recipes_need(tmp_path: Path, models: dict[str, Path]) -> None:
    space = made(tmp_path, models, {"top": 4}, freeze={"layers": [0]})
    jobs = plan(space.recipe(space.start), SourceBank().open).jobs.values()
    needed = [(job.shape, wanted.top or min(job.shape)) for job in jobs for wanted in job.decomposed.values()]
    assert sorted(needed) == sorted(space.factored())


@pytest.mark.parametrize(
    ("weight", "changes", "message"),
    [
        ({"per": ["sources", "bands"]}, {}, "is per bands, and not per tensors"),
        ({"per": ["sources", "tensors"]}, {}, "says how to cut bands, and `per` has none"),
        ({"bands": None}, {}, "does not say how many"),
        ({"bands": 0}, {}, "0"),
        ({"bands": [0.5, 0.6]}, {}, "sum to 1"),
        ({"bands": []}, {}, "sum to 1"),
        ({"bands": "all"}, {}, "each"),
        ({"bands": {"top": 0}}, {}, "top"),
        ({"bands": {"cut": 4}}, {}, "top"),
        ({"bands": {"top": 8, "cuts": 4}}, {}, "cut"),
        ({"bands": {"top": 8, "cut": [0.5]}}, {}, "sum to 1"),
        ({"bands": {"top": 8, "cut": {"top": 4}}}, {}, "cut"),
        ({}, {"fixed": {"normalize": True}}, "normalize is True, which bands do not go with"),
        ({}, {"fixed": {"lambda": 0.5}}, "lambda is 0.5, which bands do not go with"),
    ],
)
def test_what_bands_do_not_go_with(
    tmp_path: Path, models: dict[str, Path], weight: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    whole = {key: value for key, value in {**WEIGHT, **weight}.items() if value is not None}
    with pytest.raises(InputError, match=message):
        spec_of(tmp_path, models, whole, **changes)


@pytest.mark.parametrize("method", ["ties", {"choices": ["task_arithmetic", "ties"]}])
def test_other_methods_have_none(tmp_path: Path, models: dict[str, Path], method: Any) -> None:
    with pytest.raises(InputError, match="only the weight of task_arithmetic, as the only method, has bands"):
        spec_of(tmp_path, models, WEIGHT, genes={"method": method, "weight": WEIGHT})
    gene = {"low": 0.5, "high": 1.5, "per": ["tensors", "bands"]}
    with pytest.raises(InputError, match="cannot be per bands"):
        spec_of(tmp_path, models, WEIGHT, genes={"method": "task_arithmetic", "weight": WEIGHT, "lambda": gene})


def test_lambda_is_refused(tmp_path: Path, models: dict[str, Path]) -> None:
    genes = {"method": "task_arithmetic", "weight": WEIGHT, "lambda": {"low": 0.5, "high": 1.5}}
    with pytest.raises(InputError, match="lambda scales all bands"):
        spec_of(tmp_path, models, WEIGHT, genes=genes)
