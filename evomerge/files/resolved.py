"""Writes the input files as launched: defaults filled in, paths absolute. Reading them gives the same objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from evomerge.files.objects import (
    INCLUDE,
    OLD_KEYS,
    Cut,
    Dataflow,
    FitnessSpec,
    FloorSpec,
    GeneSpec,
    ModelRef,
    SliceSpec,
    SpaceSpec,
    Top,
)


def space_data(spec: SpaceSpec) -> dict[str, Any]:
    data: dict[str, Any] = {
        "base": _model(spec.base),
        "sources": {name: _source(spec, name) for name in spec.sources},
        "tokenizer": spec.tokenizer,
        "chat_template": spec.chat_template,
        **(_merges(spec) if spec.dataflow is None else _paths(spec, spec.dataflow)),
        "optimizer": spec.optimizer,
        "budget": {
            "trials": spec.trials,
            "time": spec.seconds,
            **({} if spec.most_items is None else {"items": spec.most_items}),
        },
        "fitness": str(spec.fitness),
    }
    if spec.polish is not None:
        data["polish"] = spec.polish
    if spec.dtype:
        data["dtype"] = spec.dtype
    if ray := {key: value for key, value in asdict(spec.ray).items() if value not in (None, {})}:
        data["ray"] = ray
    return data


def _merges(spec: SpaceSpec) -> dict[str, Any]:
    """The keys of a space of weights."""
    return {
        "layers": spec.layers if isinstance(spec.layers, int | str) else [list(r) for r in spec.layers],
        "modules": spec.modules,
        "interpolate": spec.interpolate,
        **({"adapters": "core"} if spec.core else {}),
        **({} if spec.core_rank is None else {"core_rank": spec.core_rank}),
        "genes": _genes(spec),
        "fixed": spec.fixed,
        **_freeze(spec),
    }


def _paths(spec: SpaceSpec, flow: Dataflow) -> dict[str, Any]:
    """The keys of a space of paths."""
    limits = {"max_layers": flow.max_layers, "max_parameters": flow.max_parameters, "blocks": flow.blocks}
    stated = {key: value for key, value in limits.items() if value is not None}
    if flow.both:
        return {"space": "both", **stated, "modules": spec.modules, "genes": _genes(spec), "fixed": spec.fixed}
    repeats = {} if flow.blocks is not None else {"repeats": flow.repeats}
    return {"space": "dataflow", "path": list(flow.path), **repeats, **stated, "scales": asdict(flow.scales)}


def _source(spec: SpaceSpec, name: str) -> str | dict[str, Any]:
    trajectory = spec.trajectories.get(name)
    if trajectory is None:
        return _model(spec.sources[name])
    return {"checkpoints": [_model(ref) for ref in trajectory.checkpoints], "curve": trajectory.curve}


def _model(ref: ModelRef) -> str | dict[str, Any]:
    if not ref.revision and not ref.align:
        return ref.path
    revision = {"revision": ref.revision} if ref.revision else {}
    align: dict[str, Any] = {"align": str(ref.specification or "") or True} if ref.align else {}
    return {"path": ref.path, **revision, **align}


def _genes(spec: SpaceSpec) -> dict[str, Any]:
    genes = {g.name: _gene(g) for g in spec.genes}
    return genes if "method" in genes else {"method": spec.methods[0], **genes}


def _freeze(spec: SpaceSpec) -> dict[str, Any]:
    freeze = spec.freeze
    if not (freeze.layers or freeze.sources or freeze.modules):
        return {}
    layers = {"layers": [list(span) for span in freeze.layers]} if freeze.layers else {}
    modules = {"modules": {name: kept or "base" for name, kept in freeze.modules.items()}} if freeze.modules else {}
    return {"freeze": {**layers, "sources": dict(freeze.sources), **modules}}


def _gene(gene: GeneSpec) -> Any:
    if gene.name == INCLUDE:
        return True
    data: dict[str, Any] = {"choices": list(gene.choices)}
    if not gene.choices:
        data = {"low": gene.low, "high": gene.high, "log": gene.log}
    if gene.init is not None:
        data["init"] = gene.init
    if gene.per:
        data["per"] = list(gene.per)
    if gene.bands is not None:
        data["bands"] = _bands(gene.bands)
    return data


def _bands(bands: Cut | Top) -> Any:
    if isinstance(bands, Top):
        return {"top": bands.count, "cut": _bands(bands.cut)}
    return list(bands) if isinstance(bands, tuple) else bands


def fitness_data(spec: FitnessSpec) -> dict[str, Any]:
    return {
        **({"model": spec.model.anywhere} if spec.model else {}),
        "include": [str(folder) for folder in spec.include],
        "objective": spec.objective,
        "split": {"search": spec.search, "seed": spec.split_seed},
        "confidence": spec.confidence,
        "batch_size": spec.batch_size,
        "pruning": "auto" if spec.auto_pruning else list(spec.pruning) or False,
        **({} if spec.engine == "auto" else {"engine": spec.engine}),
        "slices": {name: _slice(slice_spec) for name, slice_spec in spec.slices.items()},
    }


def _slice(spec: SliceSpec) -> dict[str, Any]:
    if spec.of is not None:
        return {"of": spec.of, "metric": spec.metric, "floor": _floor(spec.floor), "weight": spec.weight}
    data = {
        "task": spec.task,
        "scorer": spec.scorer,
        "python": spec.python.anywhere if spec.python and spec.scorer is None else None,
        "command": spec.command.text if spec.command else None,
        "cwd": str(spec.command.folder) if spec.command else None,
        "data": str(spec.data) if spec.data else None,
        "measure": spec.measure,
        "metric": spec.metric,
        "direction": spec.direction,
        "floor": _floor(spec.floor),
        "weight": spec.weight,
        "items": spec.items,
        "samples": spec.samples if spec.samples > 1 else None,
        "pass_at": spec.pass_at,
        "cluster": spec.cluster,
        "range": list(spec.range) if spec.range else None,
        "timeout": spec.timeout,
        "engine": spec.engine,
        **spec.options,
    }
    return {key: value for key, value in data.items() if value is not None}


def _floor(floor: FloorSpec | None) -> float | dict[str, Any] | None:
    if floor is None or floor.of is None:
        return floor.value if floor else None
    distance = {"keep": floor.keep} if floor.keep is not None else {"margin": floor.margin}
    return {"of": floor.of, **distance}


def current_keys(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's recorded identity under the keys that a fitness file has now; an old run's has old names."""
    fitness = {OLD_KEYS.get(key, key): value for key, value in identity["fitness file"].items()}
    return {**identity, "fitness file": fitness}


def to_yaml(data: dict[str, Any], header: str) -> str:
    return f"# {header}\n" + yaml.safe_dump(data, sort_keys=False, width=110)
