"""What patterns of sources match: copies among it are left out at the launch; a resumed run goes on with the models
that it was launched with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError
from evomerge.files.objects import INCLUDE, SpaceSpec
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.manifest import Environment


def without_copies(spec: SpaceSpec, checkpoints: Mapping[str, Checkpoint]) -> tuple[SpaceSpec, tuple[str, ...]]:
    """The space of a pool without the models that hold the same files as the base, or as one before them, and a line
    for each of these. InputError where a trajectory has a checkpoint twice."""
    pool = spec.matched is not None and spec.matched.pool
    if not pool and not spec.trajectories:
        return spec, ()
    first: dict[str, str] = {}
    copies: dict[str, str] = {}
    for name, checkpoint in checkpoints.items():
        same = first.setdefault(checkpoint.fingerprint(), name)
        if same != name and name not in spec.sources:
            raise InputError(f"{name} holds the files of {same}", "name each checkpoint once", spec.at("sources"))
        if same != name and pool:
            copies[name] = same
    if len(copies) == len(spec.sources):
        raise InputError("holds copies of the base, and no fine-tune", "name other models", spec.at("sources"))
    used = {spec.tokenizer, spec.chat_template, *spec.freeze.sources, *spec.freeze.modules.values()}
    if named := next((name for name in copies if name in used), None):
        problem = f"{named} holds the files of {copies[named]}, and only that is a source"
        raise InputError(problem, f"write {copies[named]} in its place", spec.at("sources"))
    notes = tuple(f"{name} is left out: its files are those of {same}" for name, same in copies.items())
    return _without(spec, copies), notes


def as_launched(now: SpaceSpec, spec: SpaceSpec) -> SpaceSpec:
    """The space of a run's file without the copies that were left out at the launch."""
    kept = {ref.path for ref in spec.sources.values()}
    return _without(now, [name for name, ref in now.sources.items() if ref.path not in kept])


def _without(spec: SpaceSpec, names: Collection[str]) -> SpaceSpec:
    if not names:
        return spec
    sources = {name: ref for name, ref in spec.sources.items() if name not in names}
    genes = tuple(gene for gene in spec.genes if gene.name != INCLUDE or len(sources) > 1)
    return replace(spec, sources=sources, genes=genes)


def check_matched(folder: RunFolder, environment: Environment, spec: SpaceSpec, now: SpaceSpec) -> tuple[str, ...]:
    """Compares what patterns match `now` with a run's own `spec`. Returns a line for models that came since the launch,
    which take no part. InputError where one of the run's is gone."""
    if now.matched is None or not environment.matched:
        return ()
    gone = [ref.path for ref in spec.models if ref.path in environment.matched and ref.path not in now.matched.models]
    if gone:
        problem = f"the run {folder.name!r} cannot be resumed: {_listed(gone)}, which it was launched with, is gone"
        raise InputError(problem, "put it back, or launch a new run")
    came = [path for path in now.matched.models if path not in environment.matched]
    if not came:
        return ()
    return (f"{_listed(came)} came after the launch, and takes no part: a run keeps its list of models",)


def _listed(paths: Iterable[str]) -> str:
    first, *others = paths
    return first + (f" (and {len(others)} more)" if others else "")
