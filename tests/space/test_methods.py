"""Every merge method can be searched: its recipes plan, read back as they were, and merge to finite weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import yaml

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError
from evomerge.files.space_file import read_space
from evomerge.merging.kernels.factors import factor_bytes
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.execute import execute
from evomerge.recipe.mergekit import parse_recipe, write_recipe
from evomerge.recipe.recipe import Recipe, TokenizerPolicy
from evomerge.registry import CHOICES, METHODS, Parameter
from evomerge.space.base import Models
from evomerge.space.space import Space
from evomerge.types import Genome

RANGES: dict[str, tuple[float, float]] = {
    "weight": (0.1, 1.0),
    "density": (0.2, 0.8),
    "gamma": (0.0, 0.05),
    "lambda": (0.5, 1.5),
    "select_topk": (0.2, 1.0),
    "r": (0.0, 0.5),
    "alpha": (0.0, 0.5),
    "eps": (1e-9, 1e-6),
    "tol": (1e-7, 1e-4),
    "t": (1e-4, 1.0),
}
LAYERS = tiny_models.LAYERS


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_models.family(tmp_path_factory.mktemp("family"))


def gene(parameter: Parameter, per: Sequence[str]) -> dict[str, Any]:
    scoped = {"source": (1e-3, 0.1), "tensor": (1e-6, 1e-3)}[parameter.scope]
    low, high = RANGES.get(parameter.name, scoped)
    axes = ["sources", *per] if parameter.scope == "source" else list(per)
    return {"low": low, "high": high, "per": axes}


def make(
    tmp_path: Path, models: dict[str, Path], methods: Sequence[str], sources: Sequence[str], **changes: Any
) -> Space:
    """A space over all genes of the methods, two layer groups, and two modules."""
    parameters = {p.name: p for m in methods for p in CHOICES[m].parameters if p.kind is float}
    data = {
        "base": str(models["base"]),
        "sources": {name: str(models[name]) for name in sources},
        "layers": 2,
        "modules": {"mlp": "mlp"},
        "genes": {
            "method": {"choices": list(methods), "per": ["layers"]},
            **{name: gene(p, ["layers", "modules"]) for name, p in parameters.items()},
        },
        "optimizer": {"name": "random", "seed": 5},
        "fitness": "f.yaml",
        **changes,
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
    references = {name: str(models[name]) for name in sources}
    return Space(read_space(tmp_path / "s.yaml"), Models(str(models["base"]), references, LAYERS, "float32"))


def draw(space: Space, seed: int) -> Genome:
    rng = random.Random(seed)
    return {d.key: rng.choice(d.choices) if d.choices else d.tidy(rng.uniform(d.low, d.high)) for d in space.dimensions}


def merged(recipe: Recipe) -> dict[str, torch.Tensor]:
    """Plans what the recipe's YAML says, and carries it out."""
    exported = parse_recipe(write_recipe(recipe))
    assert exported.id == recipe.id
    bank = SourceBank()
    return {name: execute(job, bank) for name, job in plan(exported, bank.open).jobs.items()}


def sources_of(method: str) -> list[str]:
    least, most = METHODS[CHOICES[method].method].sources
    return ["a", "b", "c"][: int(min(max(least, 3), most))]


@pytest.mark.parametrize("method", CHOICES)
@pytest.mark.parametrize("seed", [None, 1])
def test_every_method_can_be_searched(method: str, seed: int | None, models: dict[str, Path], tmp_path: Path) -> None:
    space = make(tmp_path, models, [method], sources_of(method))
    recipe = space.recipe(space.start if seed is None else draw(space, seed))
    assert recipe.output.method == CHOICES[method].method
    found = merged(recipe)
    assert set(found) == set(tiny_models.read(models["base"]))
    assert all(torch.isfinite(tensor).all() for tensor in found.values())


@pytest.mark.parametrize("method", CHOICES)
def test_recipes_list_the_base_where_mergekit_needs_it(method: str, models: dict[str, Path], tmp_path: Path) -> None:
    """mergekit adds no base to slices, and wants it there in all methods that know one."""
    space = make(tmp_path, models, [method], sources_of(method))
    for genome in (space.start, draw(space, 2)):
        document = space.recipe(genome).output
        assert document.base == str(models["base"])
        for piece in document.slices:
            listed = [i.model for i in piece.inputs]
            assert listed[:-1] == [str(models[s]) for s in sources_of(method)] or method == "karcher"
            assert (listed[-1] == document.base) == (method != "karcher")


def test_karcher_merges_the_sources_only(models: dict[str, Path], tmp_path: Path) -> None:
    """In a mean without weights the base must not take part, and `base_model` beside `models` would."""
    space = make(tmp_path, models, ["karcher", "linear"], ["a"])
    start = {**space.start, "method[0]": "karcher", "method[1]": "karcher"}
    assert "slices:" in write_recipe(space.recipe(start))
    source = tiny_models.read(models["a"])
    assert all(torch.equal(tensor, source[name]) for name, tensor in merged(space.recipe(start)).items())


def test_a_uniform_soup_is_the_plain_average(models: dict[str, Path], tmp_path: Path) -> None:
    fixed = {"normalize": False}
    space = make(tmp_path, models, ["uniform_soup", "ties"], ["a", "b"], fixed=fixed)
    soup = space.recipe({**draw(space, 3), "method[0]": "uniform_soup", "method[1]": "uniform_soup"})
    found, average = merged(soup), merged(space.uniform())
    assert all(torch.equal(found[name], average[name]) for name in average)


FAMILIES = {
    "one source": (["ties", "slerp", "nearswap", "arcee_fusion", "multislerp", "karcher", "uniform_soup"], 1),
    "two sources": (["nuslerp", "model_stock", "della_linear", "linear"], 2),
    "three sources": (
        ["ties", "dare_ties", "della", "breadcrumbs", "sce", "model_stock", "multislerp", "task_arithmetic"],
        3,
    ),
    "three more": (["ram", "ramplus_tl", "breadcrumbs_ties", "dare_linear", "karcher"], 3),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [False, True])
def test_layer_groups_mix_methods(family: str, tokens: bool, models: dict[str, Path], tmp_path: Path) -> None:
    methods, count = FAMILIES[family]
    space = make(tmp_path, models, methods, ["a", "b", "c"][:count], layers="each")
    if tokens:
        space = Space(space.spec, Models(**{**vars(space.models), "tokenizer": TokenizerPolicy("union")}))
    for shift in range(0, len(methods), 2):
        chosen = {f"method[{layer}]": methods[(shift + layer) % len(methods)] for layer in range(LAYERS)}
        recipe = space.recipe({**draw(space, shift), **chosen})
        assert len(recipe.documents) == LAYERS + 1
        assert all(torch.isfinite(tensor).all() for tensor in merged(recipe).values())


def space_of(tmp_path: Path, method: Any, sources: int = 3, fixed: Any = None, **genes: Any) -> Space:
    names = "abcd"[:sources]
    data = {
        "base": "base",
        "sources": dict.fromkeys(names) | {name: name for name in names},
        "genes": {"method": method if isinstance(method, str) else {"choices": method}, **genes},
        "fitness": "f.yaml",
        **({"fixed": fixed} if fixed else {}),
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return Space(read_space(tmp_path / "s.yaml"), Models("base", {n: n for n in names}, LAYERS, "float32"))


WEIGHT = {"low": 0, "high": 1}


@pytest.mark.parametrize(
    ("key", "message", "space"),
    [
        ("genes.method", "nearswap merges the base with 1 source, this space has 3", {"method": ["ties", "nearswap"]}),
        ("genes.method", "nuslerp merges the base with 2 sources, this space has 3", {"method": "nuslerp"}),
        (
            "genes.method",
            "model_stock merges the base with at least 2 sources, this space has 1",
            {"method": "model_stock", "sources": 1},
        ),
        (
            "genes.density",
            "della can meet values that do not go together: density is 0.9; with epsilon 0.15 it must be above 0.15 "
            "and below 0.85, or 0 or 1; narrow the range",
            {"method": "della", "weight": WEIGHT, "density": {"low": 0.3, "high": 0.9}},
        ),
        (
            "genes.density",
            "density is 0.9999993; with epsilon 0.1 it must be above 0.1 and below 0.9",
            {"method": ["ties", "della"], "fixed": {"epsilon": 0.1}, "weight": WEIGHT,
             "density": {"low": 0.3, "high": 1.0}},
        ),
        (
            "genes.epsilon",
            "density is 0.3; with epsilon 0.4 it must be above 0.4 and below 0.6",
            {"method": "della_linear", "fixed": {"density": 0.3}, "weight": WEIGHT,
             "epsilon": {"low": 0.01, "high": 0.4}},
        ),
        (
            "fixed",
            "della can meet values that do not go together: density is 0.3",
            {"method": "della", "fixed": {"density": 0.3, "epsilon": 0.4}, "weight": WEIGHT},
        ),
        (
            "genes.epsilon",
            "epsilon is a value of each source in della, and of the whole merge in ram",
            {"method": ["ram", "della"], "weight": WEIGHT, "epsilon": {"low": 0.01, "high": 0.1}},
        ),
        (
            "genes.t.high",
            "2 is outside the legal range [0, 1] of t in slerp",
            {"method": ["nearswap", "slerp"], "sources": 1, "t": {"low": 0.1, "high": 2}},
        ),
        (
            "genes.max_iter",
            "'max_iter' is a count, not a gene; set it under `fixed:`, as `fixed: {max_iter: 10}`",
            {"method": ["karcher", "linear"], "weight": WEIGHT, "max_iter": {"low": 1, "high": 20}},
        ),
        (
            "fixed.max_iter",
            "is 2.5, not a whole number",
            {"method": ["karcher", "linear"], "weight": WEIGHT, "fixed": {"max_iter": 2.5}},
        ),
        ("genes.weight", "no chosen method uses the gene 'weight'", {"method": "uniform_soup", "weight": WEIGHT}),
        ("genes.method", "unknown merge method 'passthrough'", {"method": "passthrough"}),
        ("genes.method", "nearswap needs 't', which is neither a gene nor fixed", {"method": "nearswap", "sources": 1}),
    ],
)  # fmt: skip
def test_what_methods_cannot_be_searched_with(tmp_path: Path, key: str, message: str, space: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        space_of(tmp_path, **space)
    assert message in str(caught.value)
    assert caught.value.where.line is not None
    assert f"s.yaml:{caught.value.where.line}: {key}" in str(caught.value)


@pytest.mark.parametrize(
    ("density", "epsilon"), [((0.16, 0.84), None), ((0.45, 0.55), (0.01, 0.4)), ((0.0, 0.0), None), ((1.0, 1.0), None)]
)
def test_della_takes_every_value_of_a_legal_range(tmp_path: Path, density: Any, epsilon: Any) -> None:
    genes: dict[str, Any] = {"weight": WEIGHT}
    fixed = {}
    if density[0] == density[1]:
        fixed["density"] = density[0]
    else:
        genes["density"] = dict(zip(("low", "high"), density, strict=True))
    if epsilon:
        genes["epsilon"] = dict(zip(("low", "high"), epsilon, strict=True))
    space_of(tmp_path, "della", fixed=fixed, **genes)


def test_small_numbers_are_searched_on_a_logarithmic_scale(tmp_path: Path) -> None:
    def scale(**changes: Any) -> bool:
        gene = {"low": 1e-4, "high": 1e-2, **changes}
        return space_of(tmp_path, "nearswap", sources=1, t=gene).dimensions[0].log

    assert scale()
    assert not scale(log=False)
    assert not scale(low=0)


@pytest.mark.parametrize("method", ["rank", "tsv", "resmerge", "task_arithmetic"])
def test_decompositions_are_planned_as_recipes_need_them(method: str, models: dict[str, Path], tmp_path: Path) -> None:
    space = make(tmp_path, models, [method], ["a", "b"])
    base = Checkpoint.open(str(models["base"]))
    tensors = {name: base.stack.place(name) for name in base.tensors}
    layers = {name: place if isinstance(place, int) else 0 for name, place in tensors.items()}
    shapes = {name: tuple(info.shape) for name, info in base.tensors.items()}
    space = Space(space.spec, replace(space.models, tensors=layers, shapes=shapes))
    jobs = plan(space.recipe(space.start), SourceBank().open).jobs.values()
    needed = sum(wanted.bytes(job.shape) for job in jobs for wanted in job.decomposed.values())
    assert sum(factor_bytes(shape, count) for shape, count in space.factored()) == needed
    assert (needed > 0) == (method != "task_arithmetic")
