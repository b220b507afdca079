"""Healthy merges of the kinds that people make, in which doctor must find nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.examine.patients import FAMILIES, Models, edit, tuned, write_wider

Recipe = dict[str, Any]


def _models(models: Models, *sources: str, **parameters: Any) -> list[Recipe]:
    return [{"model": str(models.source(s)), "parameters": parameters} for s in sources or ("one", "two")]


def linear(models: Models) -> Recipe:
    return {"merge_method": "linear", "models": _models(models, weight=0.5)}


def task_arithmetic(models: Models) -> Recipe:
    return models.arithmetic(weight=1.0)


def ties(models: Models) -> Recipe:
    inputs = _models(models, weight=1.0, density=0.3)
    return {"merge_method": "ties", "base_model": str(models.base), "models": inputs}


def dare_ties(models: Models) -> Recipe:
    inputs = _models(models, weight=0.5, density=0.2)
    return {"merge_method": "dare_ties", "base_model": str(models.base), "models": inputs, "random_seed": 3}


def slerp(models: Models) -> Recipe:
    inputs = [{"model": str(models.source(s))} for s in ("one", "two")]
    return {"merge_method": "slerp", "base_model": inputs[0]["model"], "models": inputs, "parameters": {"t": 0.4}}


def frankenmerge(models: Models) -> Recipe:
    """Overlapping slices of two models, in order."""
    layers = FAMILIES[models.family]["num_hidden_layers"]
    ranges = [("one", [0, 2]), ("two", [1, 3]), ("one", [2, layers])]
    slices = [{"sources": [{"model": str(models.source(s)), "layer_range": r}]} for s, r in ranges]
    return {"merge_method": "passthrough", "slices": slices}


def scaled(models: Models) -> Recipe:
    """A stack whose output projections the recipe scales, far more than fine-tunes differ."""
    layers = FAMILIES[models.family]["num_hidden_layers"]
    slices = []
    for source, layer, scale in (("one", 0, 1.0), ("two", 1, 2.5), ("one", 2, 0.4), ("two", layers - 1, 1e-4)):
        values = [*({"filter": part, "value": scale} for part in ("o_proj", "down_proj")), {"value": 1.0}]
        one = {"model": str(models.source(source)), "layer_range": [layer, layer + 1], "parameters": {"scale": values}}
        slices.append({"sources": [one]})
    return {"merge_method": "passthrough", "slices": slices}


def union(models: Models) -> Recipe:
    if not (models.root / "wider").exists():
        write_wider(models)
    return {**models.arithmetic("one", "wider"), "tokenizer_source": "union"}


def lora(models: Models) -> Recipe:
    recipe = models.arithmetic("one")
    recipe["models"].append({"model": f"{models.base}+{models.source('lora')}", "parameters": {"weight": 0.8}})
    return recipe


def one_source(models: Models) -> Recipe:
    return models.arithmetic("one", weight=0.6)


def by_layers(models: Models) -> Recipe:
    """Weights that differ by layer and module, as a search finds them."""
    gradient = [{"filter": "mlp", "value": [0.2, 1.2, 0.4]}, {"value": [1.0, 0.0, 0.7]}]
    inputs = [
        {"model": str(models.source("one")), "parameters": {"weight": gradient}},
        {"model": str(models.source("two")), "parameters": {"weight": 0.6}},
    ]
    return {"merge_method": "task_arithmetic", "base_model": str(models.base), "models": inputs}


def depth_added(models: Models) -> Recipe:
    """A layer twice, the second time with zeros where it writes into the stream."""
    layers = FAMILIES[models.family]["num_hidden_layers"]
    zeros = [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0.0}, {"value": 1.0}]
    ranges: list[tuple[list[int], Recipe]] = [
        ([0, 2], {}),
        ([1, 2], {"parameters": {"scale": zeros}}),
        ([2, layers], {}),
    ]
    one = str(models.source("one"))
    slices = [{"sources": [{"model": one, "layer_range": span, **more}]} for span, more in ranges]
    return {"merge_method": "passthrough", "slices": slices}


def far_apart(models: Models) -> Recipe:
    """Sources that went as far as their weights are long: the merge is like none of them."""
    base = load_file(models.base / "model.safetensors")
    for name, seed in (("far", 21), ("farther", 22)):
        if not models.source(name).exists():
            shutil.copytree(models.base, models.source(name))
            edit(models.source(name), lambda t, seed=seed: t.update(_kept(tuned(base, seed, 1.0), base)))
    inputs = _models(models, "far", "farther", weight=1.0, density=0.5)
    return {"merge_method": "ties", "base_model": str(models.base), "models": inputs}


def _kept(tensors: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of fine-tunes, in the base's dtype, with its vectors."""
    return {n: (t.to(base[n].dtype) if t.dim() > 1 else base[n]) for n, t in tensors.items()}


def dtypes(models: Models) -> Recipe:
    """A source in float32 beside others in bfloat16, and no dtype in the recipe."""
    if not models.source("wide").exists():
        shutil.copytree(models.source("two"), models.source("wide"))
        edit(models.source("wide"), lambda t: t.update({n: x.float() for n, x in t.items()}))
    return models.arithmetic("one", "wide")


HEALTHY: tuple[Callable[[Models], Recipe], ...] = (
    linear,
    task_arithmetic,
    ties,
    dare_ties,
    slerp,
    frankenmerge,
    scaled,
    union,
    lora,
    one_source,
    by_layers,
    depth_added,
    far_apart,
    dtypes,
)


def write(models: Models, kind: Callable[[Models], Recipe], out: Path) -> Path:
    """Writes a healthy merge."""
    return models.merge(out, kind(models))
