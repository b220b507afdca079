"""`search --dry-run`: everything that can be checked without reading a weight or, for hub ids, without the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.evaluator.device import listed, parse_memory
from evomerge.evaluator.shares import check_workers, deal, describe
from evomerge.files.objects import SpaceSpec
from evomerge.files.pair import read_files
from evomerge.scoring.preflight import doubts
from evomerge.scoring.tasks.trust import code_listed
from evomerge.space.space import Models, Space
from evomerge.study.prepare import Plan, check_files, check_start, launch_settings, make_plan
from evomerge.study.run.folder import RunFolder


def dry_run(
    space: str | Path,
    *,
    run: str | None = None,
    trials: int | None = None,
    time: float | None = None,
    optimizer: str | None = None,
    seed: int | None = None,
    device: str = "auto",
    memory: str | None = None,
    fitness: str | Path | None = None,
    settings: Sequence[str] = (),
    workers: int = 1,
    asynchronous: bool = False,
    trust_tasks: bool = False,
) -> dict[str, Any]:
    """Describes what a search would do, as facts to print. Takes the arguments of `search`.

    Hub ids are not fetched: with one among the models, checkpoints are not opened, and the facts say so.

    Raises:
        InputError: something that was given is wrong.
    """
    settings = [*settings, *launch_settings(trials, time, seed, asynchronous)]
    spec, scores = read_files(Path(space), settings, optimizer, Path(fitness) if fitness else None)
    scores = replace(scores, trust_tasks=trust_tasks)
    check_files(spec, scores)
    parse_memory(memory)
    check_workers(workers)
    if run is not None:
        RunFolder.named(run).check_free()
    models = {"base": spec.base, **spec.sources}
    remote = [str(ref) for ref in models.values() if not ref.local]
    plan = None if remote else make_plan(spec, scores)
    searched = plan.space if plan else _unopened(spec)
    tokens = [*plan.models.tokens.dropped, *plan.models.tokens.filled] if plan else []
    return {
        "space": str(space),
        "fitness": str(spec.fitness),
        "models": ", ".join(f"{name} {ref}" for name, ref in models.items()),
        "methods": ", ".join(spec.methods),
        "genes": f"{len(searched.dimensions)} searched values"
        if searched
        else "their number depends on the layers of the base",
        "optimizer": ", ".join(f"{key} {value}" for key, value in spec.optimizer.items()),
        **({"tokens": "; ".join(tokens)} if tokens else {}),
        **(_placement(plan, device, memory, workers) if plan else {}),
        "budget": f"{spec.trials or 'any number of'} trials" + (f", {spec.seconds:.0f} s" if spec.seconds else ""),
        "slices": ", ".join(scores.slices),
        **({"warnings": "; ".join(lines)} if (lines := doubts(scores)) else {}),
        **({"code that is run": "; ".join(code)} if (code := code_listed(scores)) else {}),
        "not checked": f"checkpoints on the hub ({', '.join(remote)})" if remote else "weights, items",
    }


def _placement(plan: Plan, device: str, memory: str | None, workers: int) -> dict[str, str]:
    # Only with input that is known to be right: torch takes seconds to import.
    from evomerge.evaluator.evaluator import place_candidates

    if workers == 1:
        return place_candidates(plan.models, plan.fitness, device, memory).facts()
    shares = deal(listed(device), workers, spare=device == "auto")
    placed = {
        share: place_candidates(plan.models, plan.fitness, share.device, memory, share)
        for share in dict.fromkeys(shares)
    }
    return {"workers": f"{describe(shares)}, each as follows", **placed[shares[0]].facts()}


def _unopened(spec: SpaceSpec) -> Space | None:
    """The space over a base that was not opened: with counted or listed layer groups its dimensions are known."""
    if spec.layers == "each" or any("tensors" in gene.per for gene in spec.genes):
        return None
    layers = spec.layers if isinstance(spec.layers, int) else spec.layers[-1][1]
    assert isinstance(layers, int)
    sources = {name: str(ref) for name, ref in spec.sources.items()}
    space = Space(spec, Models(str(spec.base), sources, layers, spec.dtype or "bfloat16"))
    check_start(spec, space)
    return space
