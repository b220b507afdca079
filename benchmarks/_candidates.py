"""The recipes that a search would try: of each method in the registry, with every parameter drawn anew each time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import yaml

from evomerge.registry import METHODS

# Where values are drawn. A method's own ranges stand under its name; what stands nowhere keeps its default.
_RANGES = {
    "weight": (0.2, 0.8),
    "density": (0.3, 0.7),
    "gamma": (0.005, 0.02),
    "epsilon": (0.05, 0.15),
    "lambda": (0.8, 1.2),
    "t": (0.2, 0.8),
    "select_topk": (0.3, 0.9),
    "isotropy": (0.2, 0.8),
    "threshold": (0.1, 0.4),
    "rank": (0.1, 0.5),
    "rho": (0.1, 0.4),
    "r": (0.05, 0.2),
    "alpha": (0.1, 0.3),
    "tol": (1e-6, 1e-5),
    "nearswap.t": (1e-4, 5e-4),
    "ram.epsilon": (5e-6, 2e-5),
    "ramplus_tl.epsilon": (5e-6, 2e-5),
}
# mergekit reads these as one number; all others are drawn as gradients, so that every layer has values of its own.
_PLAIN = ("tol",)


@dataclass(frozen=True)
class Candidate:
    """A recipe (mergekit YAML), how many models it reads, and whether the next one of the method differs from it."""

    text: str
    models: int
    varies: bool


def methods() -> list[str]:
    """Every method of the registry but passthrough, which merges nothing."""
    return [name for name in METHODS if name != "passthrough"]


def candidate(method: str, number: int, base: Path, sources: list[Path]) -> Candidate:
    """The `number`-th candidate of a method over the base and as many sources as it takes."""
    declared, draw = METHODS[method], random.Random(f"{method}/{number}")
    most = declared.sources[1]
    ordinary = declared.base == "ordinary"
    merged = [base, *sources] if ordinary else sources
    merged = merged[: int(min(most, len(merged)))]

    def drawn(scope: str) -> dict[str, float | list[float]]:
        values: dict[str, float | list[float]] = {}
        for parameter in declared.parameters:
            name = parameter.name
            limits = _RANGES.get(f"{method}.{name}", _RANGES.get(name))
            if parameter.scope == scope and limits and parameter.kind is float:
                ends = [float(f"{draw.uniform(*limits):.6g}") for _ in range(2)]
                values[name] = ends[0] if name in _PLAIN else ends
        return values

    models = [{"model": str(model), "parameters": drawn("source")} for model in merged]
    document = {
        "merge_method": method,
        "models": models,
        "parameters": drawn("tensor"),
        "dtype": "bfloat16",
        "out_dtype": "bfloat16",
        "random_seed": 0,  # one for the whole search, as there
    }
    varies = bool(document["parameters"] or models[0]["parameters"])
    if not ordinary:
        document["base_model"] = str(base)
    if declared.base == "endpoint":
        models.insert(0, {"model": str(base)})
    text = yaml.safe_dump(document, sort_keys=False)
    return Candidate(text, len(merged) + (not ordinary), varies)
