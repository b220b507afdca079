"""The input files as launched: defaults filled in, paths absolute. Reading them back gives the same objects."""

from __future__ import annotations

from typing import Any

import yaml

from evomerge.files.objects import FitnessSpec, FloorSpec, GeneSpec, ModelRef, SliceSpec, SpaceSpec


def space_data(spec: SpaceSpec) -> dict[str, Any]:
    data: dict[str, Any] = {
        "base": _model(spec.base),
        "sources": {name: _model(ref) for name, ref in spec.sources.items()},
        "tokenizer": spec.tokenizer,
        "chat_template": spec.chat_template,
        "layers": spec.layers if isinstance(spec.layers, int | str) else [list(r) for r in spec.layers],
        "modules": spec.modules,
        "interpolate": spec.interpolate,
        "genes": _genes(spec),
        "fixed": spec.fixed,
        **_freeze(spec),
        "optimizer": spec.optimizer,
        "budget": {"trials": spec.trials, "time": spec.seconds},
        "fitness": str(spec.fitness),
    }
    if spec.dtype:
        data["dtype"] = spec.dtype
    return data


def _model(ref: ModelRef) -> str | dict[str, str]:
    return {"path": ref.path, "revision": ref.revision} if ref.revision else ref.path


def _genes(spec: SpaceSpec) -> dict[str, Any]:
    genes = {g.name: _gene(g) for g in spec.genes}
    return genes if "method" in genes else {"method": spec.methods[0], **genes}


def _freeze(spec: SpaceSpec) -> dict[str, Any]:
    if not (spec.freeze.layers or spec.freeze.sources):
        return {}
    layers = [list(span) for span in spec.freeze.layers]
    return {"freeze": {**({"layers": layers} if layers else {}), "sources": dict(spec.freeze.sources)}}


def _gene(gene: GeneSpec) -> dict[str, Any]:
    data: dict[str, Any] = {"choices": list(gene.choices)}
    if not gene.choices:
        data = {"low": gene.low, "high": gene.high, "log": gene.log}
    if gene.init is not None:
        data["init"] = gene.init
    if gene.per:
        data["per"] = list(gene.per)
    return data


def fitness_data(spec: FitnessSpec) -> dict[str, Any]:
    return {
        **({"model": spec.model.anywhere} if spec.model else {}),
        "include": [str(folder) for folder in spec.include],
        "objective": spec.objective,
        "split": {"search": spec.search, "seed": spec.split_seed},
        "confidence": spec.confidence,
        "batch_size": spec.batch_size,
        "economy": list(spec.economy) or False,
        "slices": {name: _slice(piece) for name, piece in spec.slices.items()},
    }


def _slice(piece: SliceSpec) -> dict[str, Any]:
    given = {
        "task": piece.task,
        "python": piece.python.anywhere if piece.python else None,
        "data": str(piece.data) if piece.data else None,
        "metric": piece.metric,
        "direction": piece.direction,
        "floor": _floor(piece.floor),
        "weight": piece.weight,
        "items": piece.items,
        "cluster": piece.cluster,
        "range": list(piece.range) if piece.range else None,
        **piece.options,
    }
    return {key: value for key, value in given.items() if value is not None}


def _floor(floor: FloorSpec | None) -> float | dict[str, Any] | None:
    if floor is None or floor.of is None:
        return floor.value if floor else None
    distance = {"keep": floor.keep} if floor.keep is not None else {"margin": floor.margin}
    return {"of": floor.of, **distance}


def to_yaml(data: dict[str, Any], header: str) -> str:
    return f"# {header}\n" + yaml.safe_dump(data, sort_keys=False, width=110)
