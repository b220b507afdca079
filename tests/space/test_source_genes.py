"""Sources that are left out, and checkpoints along a curve: genome -> recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.files.space_file import read_space
from evomerge.recipe.mergekit import parse_recipe, write_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.space.base import Models
from evomerge.space.space import Space
from evomerge.space.trajectory import decay_weights

NAMES = ("a", "b", "c")
CHECKPOINTS = tuple(f"/m/ckpt-{step}" for step in (20, 40, 100))


def make(folder: Path, genes: dict[str, Any], run: bool = False, **keys: Any) -> Space:
    data: dict[str, Any] = {"base": "base", "sources": dict(zip(NAMES, NAMES, strict=True)), "genes": genes, **keys}
    models = Models("/m/base", {name: f"/m/{name}" for name in data["sources"]}, 4, "float32")
    if run:
        data["sources"] = {"run": {"checkpoints": [*CHECKPOINTS]}, **keys.get("sources", {})}
        sources = {"run": CHECKPOINTS[-1], **{name: f"/m/{name}" for name in keys.get("sources", {})}}
        models = replace(models, sources=sources, trajectories={"run": CHECKPOINTS})
    (folder / "s.yaml").write_text(yaml.safe_dump({"fitness": "f.yaml", **data}))
    return Space(read_space(folder / "s.yaml"), models)


def weights(recipe: Recipe) -> dict[str, Any]:
    [document] = recipe.documents
    return {i.model: i.parameters.get("weight") for i in document.slices[0].inputs if i.model != "/m/base"}


def included(*names: str) -> dict[str, float]:
    return {f"include[{name}]": float(name in names) for name in NAMES}


WEIGHT = {"low": 0.0, "high": 1.0, "init": 0.5, "per": ["sources"]}
GENES = {"method": "task_arithmetic", "weight": WEIGHT, "include": True}


def test_a_source_takes_part_from_one_half_on(tmp_path: Path) -> None:
    space = make(tmp_path, GENES)
    assert weights(space.recipe(space.start)) == {"/m/a": 0.5, "/m/b": 0.5, "/m/c": 0.5}
    genome = {**space.start, "include[a]": 0.5, "include[b]": 0.499, "weight[b]": 0.9}
    assert weights(space.recipe(genome)) == {"/m/a": 0.5, "/m/c": 0.5}
    assert space.included(genome) == ("a", "c")
    # Nothing of what is left out counts.
    assert space.recipe({**genome, "include[b]": 0.0, "weight[b]": 0.1}).id == space.recipe(genome).id


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "ties", "karcher"])
def test_the_one_with_the_largest_number_takes_part_in_any_case(tmp_path: Path, method: str) -> None:
    genes: dict[str, Any] = {"method": method, "include": True}
    space = make(tmp_path, genes if method == "karcher" else {**genes, "weight": WEIGHT})
    genome = {**space.start, **included(), "include[b]": 0.3, "include[c]": 0.2}
    assert set(weights(space.recipe(genome))) == {"/m/b"}
    assert space.included({**genome, **included()}) == ("a",)


def test_a_recipe_without_some_sources_is_one_that_mergekit_reads(tmp_path: Path) -> None:
    genes = {**GENES, "weight": {**WEIGHT, "per": ["sources", "layers", "modules"]}}
    space = make(tmp_path, genes, layers=2, modules={"mlp": "mlp"})
    recipe = space.recipe({**space.start, **included("b", "c")})
    assert parse_recipe(write_recipe(recipe, "x"), "x").id == recipe.id
    assert set(weights(recipe)) == {"/m/b", "/m/c"}


def test_reference_genomes_leave_out_what_has_no_weight(tmp_path: Path) -> None:
    space = make(tmp_path, GENES)
    references = space.reference_genomes
    assert space.included(references["b"].genome) == ("b",)
    assert weights(space.recipe(references["base"].genome)) == {"/m/a": 0.0}
    assert space.included(references["uniform"].genome) == NAMES


def test_a_frozen_source_stays_in(tmp_path: Path) -> None:
    space = make(tmp_path, GENES, freeze={"sources": {"a": 0.3}})
    assert [d.key for d in space.dimensions if d.gene == "include"] == ["include[b]", "include[c]"]
    assert weights(space.recipe({**space.start, "include[b]": 0.0, "include[c]": 0.0})) == {"/m/a": 0.3}


# Curves


def test_a_decay_by_hand() -> None:
    # 1 - t^2 falls by 1/16, 3/16, 5/16 and 7/16 over four equal steps; 1 - sqrt(t) first by a half.
    assert decay_weights(4, 2, 4) == (0.0625, 0.1875, 0.3125, 0.4375)
    assert decay_weights(4, 0.5, 4)[0] == 0.5
    assert decay_weights(3.4, 1, 4) == (0.0, 0.333333333, 0.333333333, 0.333333333)
    assert decay_weights(1, 0.3, 3) == (0.0, 0.0, 1.0)
    assert decay_weights(9, 1, 2) == (0.5, 0.5)


@pytest.mark.parametrize("exponent", [0.25, 0.7, 1.0, 3.9])
def test_weights_of_a_decay_emulate_it(exponent: float) -> None:
    """sum c_k theta_k = theta_1 + sum w_j u_j: each update is scaled by what is left of the decay."""
    n, thetas = 8, [0.0]
    for k in range(1, 8):
        thetas.append(thetas[-1] + 0.1 * k)
    merged = sum(c * theta for c, theta in zip(decay_weights(n, exponent, n), thetas, strict=True))
    decayed = thetas[0] + sum((1 - (j / n) ** exponent) * 0.1 * j for j in range(1, n))
    assert merged == pytest.approx(decayed, abs=1e-7)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_trajectory_is_a_plain_document_over_its_checkpoints(tmp_path: Path, method: str) -> None:
    space = make(tmp_path, {"method": method}, run=True)
    assert [d.key for d in space.dimensions] == ["window[run]", "exponent[run]"]
    recipe = space.recipe({"window[run]": 2.4, "exponent[run]": 2.0})
    assert recipe.output.method == method
    assert weights(recipe) == {CHECKPOINTS[1]: 0.25, CHECKPOINTS[2]: 0.75}
    assert weights(space.recipe({"window[run]": 1.0, "exponent[run]": 2.0})) == {CHECKPOINTS[2]: 1.0}
    assert parse_recipe(write_recipe(recipe, "x"), "x").id == recipe.id
    assert weights(space.uniform()) == pytest.approx(dict.fromkeys(CHECKPOINTS, 1 / 3))


def test_a_trajectory_beside_other_sources_shares_its_weight_out(tmp_path: Path) -> None:
    genes = {
        "method": "task_arithmetic",
        "weight": {**WEIGHT, "per": ["sources", "modules"]},
        "include": True,
        "exponent": {"low": 1, "high": 2},
    }
    space = make(tmp_path, genes, run=True, sources={"code": "code"}, modules={"mlp": "mlp"})
    genome = {**space.start, "weight[run,mlp]": 0.8, "weight[code,mlp]": 0.5, "window[run]": 2.0, "exponent[run]": 1.0}
    entries = [{"filter": "mlp", "value": 0.4}, {"value": 0.25}]
    assert weights(space.recipe(genome)) == {CHECKPOINTS[1]: entries, CHECKPOINTS[2]: entries, "/m/code": 0.5}
    assert set(weights(space.recipe({**genome, "include[run]": 0.0}))) == {"/m/code"}
    references = space.reference_genomes
    assert weights(space.recipe(references["run"].genome)) == {CHECKPOINTS[2]: 1.0}
    uniform = space.recipe(references["uniform"].genome)
    assert weights(uniform) == pytest.approx({**dict.fromkeys(CHECKPOINTS, 1 / 6), "/m/code": 0.5}, abs=1e-8)
