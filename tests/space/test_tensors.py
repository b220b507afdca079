"""A value for each tensor: dimensions, recipes that give each tensor its own, and who decides on what."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError
from evomerge.evaluator.models import space_models
from evomerge.files.space_file import read_space
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank
from evomerge.recipe.mergekit import parse_recipe, write_recipe
from evomerge.space.space import Space
from evomerge.types import Genome


@pytest.fixture(scope="module", params=["own head", "tied"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_models.family(tmp_path_factory.mktemp("family"), tied=request.param == "tied")


def made(folder: Path, models: dict[str, Path], **changes: Any) -> Space:
    data: dict[str, Any] = {
        "base": str(models["base"]),
        "sources": {name: str(models[name]) for name in ("a", "b")},
        "layers": "each",
        "genes": {"method": "task_arithmetic", "weight": {"low": -1.0, "high": 1.0, "per": ["sources", "tensors"]}},
        "fitness": "f.yaml",
        **changes,
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(data))
    spec = read_space(folder / "s.yaml")
    base = Checkpoint.open(str(models["base"]))
    sources = {name: Checkpoint.open(str(models[name])) for name in ("a", "b")}

    class NoTokens:
        changes = False

    return Space(spec, space_models(spec, base, sources, NoTokens()))


def draw(space: Space, seed: int) -> Genome:
    rng = random.Random(seed)
    return {d.key: rng.choice(d.choices) if d.choices else d.tidy(rng.uniform(d.low, d.high)) for d in space.dimensions}


def test_dimensions_follow_the_model(tmp_path: Path, models: dict[str, Path]) -> None:
    space = made(tmp_path, models)
    tensors = list(space.models.tensors)
    assert [d.place["tensors"] for d in space.dimensions] == tensors * 2
    assert tensors[0].endswith("embed_tokens.weight")
    assert space.models.tensors[tensors[0]] == 0
    assert space.dimensions[0].key == f"weight[a,{tensors[0]}]"
    layers = [space.models.tensors[t] for t in tensors]
    assert layers == sorted(layers)
    assert space.models.tensors["model.norm.weight"] == space.models.layers - 1


def test_each_tensor_gets_its_own_value_and_recipes_survive_yaml(tmp_path: Path, models: dict[str, Path]) -> None:
    space = made(tmp_path, models)
    genome = draw(space, 1)
    recipe = space.recipe(genome)
    assert parse_recipe(write_recipe(recipe, "")).id == recipe.id
    assert len(recipe.output.slices) == space.models.layers
    jobs = plan(recipe, SourceBank().open).jobs
    assert jobs.keys() == space.models.tensors.keys()
    for tensor, job in jobs.items():
        assert job.parameters["weight"] == tuple(genome[f"weight[{source},{tensor}]"] for source in ("a", "b"))


AXES = [[], ["sources"], ["layers"], ["modules"], ["sources", "layers", "modules"], ["sources", "tensors"], ["tensors"]]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    weight=st.sampled_from(AXES),
    lambda_=st.sampled_from([axes for axes in AXES if "sources" not in axes]),
    layers=st.sampled_from([1, 2, "each"]),
    interpolate=st.booleans(),
    freeze=st.sampled_from([{}, {"layers": [0]}, {"sources": {"b": 0.3}}, {"layers": [1], "sources": ["a"]}]),
    seed=st.integers(0, 1000),
)
def test_shares_say_what_recipes_do(
    tmp_path: Path, models: dict[str, Path], weight, lambda_, layers, interpolate, freeze, seed
) -> None:
    if "sources" in freeze and "sources" not in weight:
        return
    genes = {
        "method": "task_arithmetic",
        "weight": {"low": -1.0, "high": 1.0, "per": weight},
        "lambda": {"low": 0.5, "high": 1.5, "per": lambda_},
    }
    about = {
        "genes": genes,
        "layers": layers,
        "interpolate": interpolate,
        "modules": {"mlp": "mlp", "attn": "self_attn"},
    }
    space = made(tmp_path, models, **about, **({"freeze": freeze} if freeze else {}))
    if not space.dimensions:
        return
    first, second = draw(space, seed), draw(space, seed + 1)
    jobs = [plan(space.recipe(genome), SourceBank().open).jobs for genome in (first, second)]
    for tensor in space.models.tensors:
        before, after = (made[tensor].parameters for made in jobs)
        for source, name in enumerate(("a", "b")):
            shares = space.shares("weight", name, tensor)
            moved = sum(share * (float(second[key]) - float(first[key])) for key, share in shares)
            assert after["weight"][source] - before["weight"][source] == pytest.approx(moved, abs=1e-9)
        shares = space.shares("lambda", "", tensor)
        if space.models.tensors[tensor] not in space.frozen_layers:
            moved = sum(share * (float(second[key]) - float(first[key])) for key, share in shares)
            assert after["lambda"] - before["lambda"] == pytest.approx(moved, abs=1e-9)
    assert space.shares("density", "a", next(iter(space.models.tensors))) == ()


def test_tensors_of_frozen_layers_are_frozen(tmp_path: Path, models: dict[str, Path]) -> None:
    space = made(tmp_path, models, freeze={"layers": [0]})
    assert not any(space.models.tensors[d.place["tensors"]] == 0 for d in space.dimensions)
    assert set(space.frozen_values.values()) == {0.0}
    jobs = plan(space.recipe(draw(space, 3)), SourceBank().open).jobs
    assert jobs["model.embed_tokens.weight"].parameters["weight"] == (0.0, 0.0)


def test_reference_genomes_hold(tmp_path: Path, models: dict[str, Path]) -> None:
    space = made(tmp_path, models)
    assert {"base", "a", "b", "uniform"} <= space.reference_genomes.keys()
    document = space.recipe(space.reference_genomes["uniform"].genome).output
    assert document.whole  # all values are equal: one slice, plain numbers
    assert document.slices[0].inputs[0].parameters == {"weight": 0.5}


@pytest.mark.parametrize("other", ["layers", "modules"])
def test_coarser_axes_beside_it_are_refused(tmp_path: Path, models: dict[str, Path], other: str) -> None:
    genes = {"method": "ties", "weight": {"low": 0.0, "high": 1.0, "per": ["sources", other, "tensors"]}}
    with pytest.raises(InputError, match=f"per {other} and per tensors, which are finer; remove {other}"):
        made(tmp_path, models, genes=genes, modules={"mlp": "mlp"})


def test_frozen_modules_hold_for_each_tensor(tmp_path: Path, models: dict[str, Path]) -> None:
    space = made(tmp_path, models, modules={"mlp": "mlp", "attention": "self_attn"},
                 freeze={"modules": {"mlp": "b", "attention": "base"}})  # fmt: skip
    assert not any("mlp" in d.key or "self_attn" in d.key for d in space.dimensions)
    jobs = plan(space.recipe(draw(space, 3)), SourceBank().open).jobs
    for name, job in jobs.items():
        expected = (0.0, 1.0) if "mlp" in name else (0.0, 0.0) if "self_attn" in name else job.parameters["weight"]
        assert job.parameters["weight"] == expected
        assert space.shares("weight", "a", name) == () or "mlp" not in name
