"""`search --dry-run`: everything that can be checked without reading a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from evomerge.checkpoints.pickled import with_pickles
from evomerge.errors import UnreachableError
from evomerge.evaluator.device import choose_devices, listed, number_of_workers, parse_memory
from evomerge.evaluator.shares import deal, describe
from evomerge.files.objects import SpaceSpec
from evomerge.files.pair import read_files
from evomerge.merging.resident.placement import size
from evomerge.scoring.preflight import doubts
from evomerge.scoring.tasks.benchmarks import benchmark_doubts
from evomerge.scoring.tasks.trust import code_listed
from evomerge.space.base import Models, SearchSpace
from evomerge.space.space import Space
from evomerge.study.aligned import alignable
from evomerge.study.prepare import (
    Plan,
    check_files,
    check_places,
    check_start,
    large_deltas_of,
    launch_settings,
    make_plan,
    new_run,
)
from evomerge.study.run.copies import absolute_place, items_copy
from evomerge.study.run.folder import RunFolder
from evomerge.study.trackers.tracker import Tracker, make_trackers


@with_pickles
def dry_run(
    space: str | Path,
    *,
    run: str | None = None,
    trials: int | None = None,
    time: float | None = None,
    items: int | None = None,
    optimizer: str | None = None,
    seed: int | None = None,
    device: str = "auto",
    memory: str | None = None,
    fitness: str | Path | None = None,
    settings: Sequence[str] = (),
    workers: int | Literal["auto"] | None = None,
    ray: str | None = None,
    asynchronous: bool = False,
    trust_tasks: bool = False,
    allow_pickle: bool = False,
    storage: str | None = None,
    copy_items: str | None = None,
    from_run: str | None = None,
    trackers: Sequence[str | Tracker] = (),
) -> dict[str, Any]:
    """Describes what a search would do, as data (`report.dry_run` prints it). Takes the arguments of `search`.

    Of models on the hub, configurations, tokenizers and headers are fetched, as far as they are not in its cache (of
    pickled ones, which may be read with `allow_pickle`, all). Where it cannot be reached, checkpoints are not opened,
    and the facts say so.

    Raises:
        InputError: something that was given is wrong.
    """
    count = number_of_workers(workers, device, ray)
    parse_memory(memory)
    make_trackers(trackers)
    folder, _ = new_run(space, run, storage)
    items_copy(absolute_place(copy_items), folder, print)
    settings = [*settings, *launch_settings(trials, time, seed, asynchronous, items)]
    spec, scores = read_files(Path(space), settings, optimizer, Path(fitness) if fitness else None)
    check_places(spec)
    scores = replace(scores, trust_tasks=trust_tasks)
    # optuna takes a second to import.
    from evomerge.study.after.winner import check_winner, with_winner

    spec, former = with_winner(spec, from_run)
    check_files(spec, scores)
    models = {"base": str(spec.base), **spec.source_names}
    try:
        plan, unknown = make_plan(spec, scores, former), ""
    except UnreachableError as error:
        plan, unknown = None, f"checkpoints ({error.problem})"
    # The models that another run merged are the aligned copies, which are not there yet.
    first = str(former) if former is not None else None
    if from_run is not None:
        if former is None:
            first = _start(from_run, spec, None if spec.to_align else plan)
        elif plan is not None:
            check_winner(from_run, plan.models)
    searched = plan.space if plan else _unopened(spec)
    tensors = plan.models.tensor_notes if plan else []
    quantized = plan.models.quantized if plan else []
    tokens = [*plan.models.tokens.dropped, *plan.models.tokens.filled, *plan.models.reordered] if plan else []
    timeouts = {name: spec.timeout for name, spec in scores.slices.items() if spec.timeout is not None}
    lines = [*doubts(scores), *benchmark_doubts(scores), *(large_deltas_of(plan) if plan else [])]
    budget = {"trials": spec.trials, "seconds": spec.seconds, "items": spec.most_items}
    return {
        "space": str(space),
        "fitness": str(spec.fitness),
        "models": models,
        **({"methods": list(spec.methods)} if spec.methods else {}),
        "genes": len(searched.dimensions) if searched else None,
        **(searched.facts() if searched else {}),
        "optimizer": dict(spec.optimizer),
        **({"quantized": quantized} if quantized else {}),
        **({"tensors": tensors} if tensors else {}),
        **({"tokens": tokens} if tokens else {}),
        **_aligned(spec, plan, folder),
        **({"starts from": first} if first else {}),
        **_placed(plan, device, memory, count, ray),
        "budget": {"trials": spec.trials, **{limit: most for limit, most in budget.items() if most is not None}},
        "slices": list(scores.slices),
        **({"timeouts": timeouts} if timeouts else {}),
        **({"sources": list(spec.matched.notes)} if spec.matched and spec.matched.notes else {}),
        **({"warnings": lines} if lines else {}),
        **({"code that is run": code} if (code := list(code_listed(scores))) else {}),
        "not checked": [unknown] if unknown else ["weights", "items"],
    }


def _aligned(spec: SpaceSpec, plan: Plan | None, folder: RunFolder) -> dict[str, list[str]]:
    """What is aligned with the base, by which specification, and what the copies take on the disk."""
    lines = []
    for name, ref in spec.to_align.items():
        line = f"{name} onto the base"
        if plan is not None:
            source = plan.models.sources[name]
            specification, symmetries = alignable(plan.models.base, source, ref)
            taken = size(sum(info.bytes for info in source.tensors.values()))
            line += f", {len(symmetries.groups)} groups of units (specification {specification.name}), {taken} on disk"
        lines.append(f"{line} in {folder.aligned / name}")
    return {"aligned": lines} if lines else {}


def _start(begin: str, spec: SpaceSpec, plan: Plan | None) -> str:
    """Names the trial that a search would begin with. Whether its genome fits is only known of opened models."""
    # optuna takes a second to import.
    from evomerge.study.after.transfer import starting_point, starting_trial

    if plan is not None:
        return str(starting_point(begin, plan.models))
    name, _, trial = starting_trial(begin, spec)
    return f"trial {trial.number} of {name}"


def _placed(plan: Plan | None, device: str, memory: str | None, workers: int | None, ray: str | None) -> dict[str, str]:
    """Where the models will be, as far as that can be known from here."""
    if ray is not None or workers is None:
        asked = "as many as there is room for" if workers is None else str(workers)
        return {"workers": f"{asked}, on the nodes of a Ray cluster ({ray}), which are looked at when it starts"}
    return _placement(plan, device, memory, workers) if plan else _devices(device, workers)


def _devices(device: str, workers: int) -> dict[str, str]:
    """Checks devices that no model can be placed on yet. Nothing to say about them."""
    names = listed(device) if workers > 1 else [device]
    if set(names) - {"auto", "cpu"}:
        for name in names:
            choose_devices(name)
    return {}


def _placement(plan: Plan, device: str, memory: str | None, workers: int) -> dict[str, str]:
    # Only with input that is known to be right: torch takes seconds to import.
    from evomerge.evaluator.evaluator import check_candidates, decompositions, engine_needs, place_candidates

    check_candidates(plan.models, plan.fitness)
    needed = {**decompositions(plan.models), **engine_needs(plan.models, plan.fitness, device.partition(",")[0])}
    if workers == 1:
        return {**place_candidates(plan.models, plan.fitness, device, memory).facts(), **needed}
    shares = deal(listed(device), workers, spare=device == "auto")
    placed = {
        share: place_candidates(plan.models, plan.fitness, share.device, memory, share)
        for share in dict.fromkeys(shares)
    }
    return {"workers": f"{describe(shares)}, each as follows", **placed[shares[0]].facts(), **needed}


def _unopened(spec: SpaceSpec) -> SearchSpace | None:
    """The space over a base that was not opened: with counted or listed layer groups its dimensions are known."""
    if spec.dataflow is not None or spec.layers == "each" or any("tensors" in gene.per for gene in spec.genes):
        return None
    layers = spec.layers if isinstance(spec.layers, int) else spec.layers[-1][1]
    assert isinstance(layers, int)
    sources = {name: str(ref) for name, ref in spec.sources.items()}
    averaged = {name: tuple(map(str, trajectory.checkpoints)) for name, trajectory in spec.trajectories.items()}
    models = Models(str(spec.base), sources, layers, spec.dtype or "bfloat16", trajectories=averaged)
    space = Space(spec, models)
    check_start(spec, space)
    return space
