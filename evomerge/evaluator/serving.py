"""A serving engine beside a resident model: what it has to know of the candidates, what it may take, and its trial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import SIZES
from evomerge.errors import InputError, TrialError
from evomerge.evaluator.device import choose_devices, device_memory, host_memory
from evomerge.evaluator.progress import Progress
from evomerge.files.objects import FitnessSpec
from evomerge.merging.plan.jobs import MergePlan
from evomerge.merging.plan.tokenizers import OutputTokenizer
from evomerge.merging.resident.placement import CPU, Placement, size
from evomerge.recipe.recipe import Recipe
from evomerge.scoring.serving.choice import Servable
from evomerge.scoring.serving.engine import EngineMemory
from evomerge.scoring.serving.served_pass import ServedPass
from evomerge.scoring.suite import Suite
from evomerge.types import SplitName

_CACHE = 1 << 30
"""Bytes for the keys and values of attention, at least."""
_OVERHEAD = 1 << 30
"""Bytes of activations and of vLLM itself."""
_MOST_CACHE = 4 << 30
"""The same on the CPU, at most: more sequences at a time are no faster there."""


def servable(
    planned: MergePlan,
    checkpoints: Iterable[Checkpoint],
    tokenizer: OutputTokenizer,
    dtype: str,
    placement: Placement,
    varies: str = "",
) -> Servable:
    """Describes candidates to an engine.

    Args:
        planned: a merge of their structure.
        checkpoints: that their recipes read.
        tokenizer: theirs.
        dtype: of their weights in memory.
        placement: of the resident model; the engine gets the same devices.
        varies: why their structure is not one, if it is not.
    """
    read = list(checkpoints)
    return Servable(
        config=planned.config,
        files=tokenizer.files,
        dtype=dtype,
        devices=tuple(placement.room),
        references=tuple(dict.fromkeys(c.resolved() for c in read)),
        varies=varies,
        weights=model_bytes(planned, dtype),
        sources=sum(info.bytes for c in read for info in c.tensors.values()),
    )


def model_bytes(planned: MergePlan, dtype: str) -> int:
    """The bytes of a candidate's tensors."""
    return planned.elements * SIZES[dtype]


def asks_engine(fitness: FitnessSpec) -> bool:
    """Whether a slice asks for vLLM by name, or for its address, so that memory is kept for it."""
    specs = fitness.slices.values()
    tasks = any(fitness.engine_of(spec) == "vllm" for spec in specs if spec.task is not None)
    return tasks or any(spec.command is not None and spec.command.uses("url") for spec in specs)


def engine_bytes(weights: int) -> int:
    """The least that an engine takes for candidates of so many bytes."""
    return weights + _CACHE + _OVERHEAD


def engine_memory(candidates: Servable, placement: Placement) -> EngineMemory | None:
    """What an engine may take of what is free now, beside a model that is loaded; None where it is too little."""
    host = host_memory()
    spare = host.free - candidates.sources * len(candidates.devices) > host.total // 10
    if not candidates.on_gpu:
        cache = max(_CACHE, min(_MOST_CACHE, host.free // 8))
        return EngineMemory(None, cache, keep="host" if spare else "file")
    device = min((device_memory(name, host) for name in candidates.devices), key=lambda d: d.free)
    needed = engine_bytes(candidates.weights // len(candidates.devices))
    free, reserve = device.free, max(placement.reserves.values(), default=0)
    turns = free - reserve < needed
    free -= 0 if turns else reserve
    if free < needed:
        return None
    alone = len(candidates.devices) == 1
    keep = "device" if alone and free - candidates.sources >= needed else "host" if spare else "file"
    free -= candidates.sources if keep == "device" else 0
    return EngineMemory(round(free / device.total, 4), 0, keep=keep, turns=turns)


def engine_facts(weights: int, device: str) -> dict[str, str]:
    """What an engine takes for candidates of so many bytes, as a fact to print."""
    on_cpu = choose_devices(device) == [CPU]
    rest = f"{size(_CACHE)} to {size(_MOST_CACHE)}" if on_cpu else f"{size(_CACHE)} or what is left of the GPU"
    kept = f"{size(engine_bytes(weights))} are kept free for it"
    return {"engine": f"vLLM: weights {size(weights)}, keys and values {rest}, the sources once more; {kept}"}


def start_engine(
    suite: Suite,
    model: Any,
    become: Callable[[Recipe], str],
    recipes: Sequence[Recipe],
    split: SplitName,
    progress: Progress,
) -> None:
    """Starts the engine that slices ask for, if any does, and tries it.

    Args:
        suite: of the slices.
        model: the resident model.
        become: has model and engine take in a recipe.
        recipes: that it is tried with: of the base, and of a candidate if there is one.
        split: the split of the prompts.
        progress: is told what was found.

    Raises:
        InputError: it cannot be had, or is not to be trusted.
    """
    if suite.engine is None:
        return
    # vLLM takes ten seconds to import.
    from evomerge.scoring.serving.canary import try_engine

    progress.phase("starting vLLM")
    suite.engine.start()
    progress.phase("trying vLLM")
    sources = {id(s.source): s.source for s in suite.slices.values() if isinstance(s.source, ServedPass)}
    if not sources:  # programs ask it
        return
    try:
        found = try_engine(suite.engine, list(sources.values()), split, model, become, recipes)
    except TrialError as error:
        suite.close()
        problem = f"vLLM cannot serve this model: {error}"
        raise InputError(problem, "mend that, or write engine: resident in the fitness file") from None
    except InputError:
        suite.close()
        raise
    progress.note(f"vLLM {suite.engine.version}: {found}")
