"""The genes that no method has: which sources take part, and the curve of a trajectory's checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from evomerge.files.keys import GENE
from evomerge.files.nodes import Node
from evomerge.files.objects import EXPONENT, INCLUDE, WINDOW, Axis, GeneSpec, Trajectory
from evomerge.files.sources import MOST_POOLED, Sources
from evomerge.registry import CHOICES, METHODS

OWN = (INCLUDE, WINDOW, EXPONENT)
_PER: tuple[Axis, ...] = ("sources",)
_EXPONENTS = 0.25, 4.0
_START = 0.5
"""The exponent of a decay of 1 - sqrt(t)."""

_AVERAGING = ("linear", "task_arithmetic")
"""The methods in which weights of checkpoints are those of their average."""


def last_checkpoints(genes: Node | None) -> int | None:
    """How many checkpoints of a trajectory can take part, as the gene `window` says; None where it does not."""
    window: Node | None = genes.value.get(WINDOW) if genes is not None and isinstance(genes.value, dict) else None
    if window is None or not isinstance(window.value, dict) or "high" not in window.value:
        return None
    high: Node = window.value["high"]
    return high.integer(2, MOST_POOLED)


def without_own(genes: Node) -> Node:
    """The genes of methods alone."""
    if not isinstance(genes.value, dict):
        return genes
    return Node({name: child for name, child in genes.value.items() if name not in OWN}, genes.where)


def read_source_genes(genes: Node, sources: Sources, methods: Sequence[str], blocks: bool) -> tuple[GeneSpec, ...]:
    """The genes of sources, those of a file without them included. `blocks`: whether merges are of blocks. Raises
    InputError."""
    written = {name: child for name, child in genes.value.items() if name in OWN}
    include = _include(written.get(INCLUDE), genes, sources, methods, blocks)
    if not sources.trajectories:
        other = next((child for name, child in written.items() if name != INCLUDE), None)
        if other is not None:
            mend = "remove it, or write sources: {run: {glob: ckpt-*, curve: decay}}"
            other.fail("is of a trajectory, and no source is one", mend)
        return include
    most = max(len(trajectory.checkpoints) for trajectory in sources.trajectories.values())
    return (*include, _window(written.get(WINDOW), genes, most), _exponent(written.get(EXPONENT), genes))


def check_trajectories(genes: Node, trajectories: Mapping[str, Trajectory], specs: Sequence[GeneSpec]) -> None:
    """InputError where a trajectory's checkpoints cannot be averaged as a part of the merge."""
    if not trajectories:
        return
    method = genes.value["method"]
    names = method.value["choices"].value if isinstance(method.value, dict) else [method]
    other = next((child for child in names if child.value not in _AVERAGING), None)
    if other is not None:
        problem = f"{other.value} does not average the checkpoints of {next(iter(trajectories))}"
        other.fail(problem, f"use {' or '.join(_AVERAGING)}")
    if any(spec.bands is not None for spec in specs):
        genes.value["weight"].fail("is per bands, which averages of checkpoints do not have", "remove bands")


def with_weight(fixed: Mapping[str, float | bool], genes: Collection[str], sources: Sources) -> dict[str, float | bool]:
    """What is fixed; where a trajectory is the only source, also its weight, unless it is searched."""
    alone = len(sources.refs) == len(sources.trajectories) == 1
    return {"weight": 1.0, **fixed} if alone and "weight" not in genes else dict(fixed)


def _include(
    node: Node | None, genes: Node, sources: Sources, methods: Sequence[str], blocks: bool
) -> tuple[GeneSpec, ...]:
    """The gene `include`; without a word of the file, a pool has it where it can."""
    pool = sources.matched is not None and sources.matched.pool
    if not (pool if node is None else node.boolean()):
        return ()
    strict = next((name for name in methods if METHODS[CHOICES[name].method].sources[0] > 1), None)
    faults = {
        "blocks are merges of all models": blocks,
        f"{strict} needs more than one source": strict is not None,
        "with one source there is nothing to leave out": len(sources.refs) < 2,
    }
    fault = next((reason for reason, holds in faults.items() if holds), None)
    if fault is None:
        return (GeneSpec(INCLUDE, _PER, 0.0, 1.0, 1.0, where=(node or genes).where),)
    if node is not None:
        node.fail(fault, "write `include: false`, or remove it")
    return ()


def _window(node: Node | None, genes: Node, most: int) -> GeneSpec:
    if node is None:
        return GeneSpec(WINDOW, _PER, 1.0, float(most), float(most), where=genes.where)
    parts = _range(node)
    low, high = parts["low"].integer(1), min(parts["high"].integer(1), most)
    if low >= high:
        parts["low"].fail(f"{low} to {high} leaves nothing to search", f"there are {most} checkpoints")
    init = parts["init"].integer(low, high) if "init" in parts else high
    log = parts["log"].boolean() if "log" in parts else False
    return GeneSpec(WINDOW, _PER, float(low), float(high), float(init), log, where=node.where)


def _exponent(node: Node | None, genes: Node) -> GeneSpec:
    if node is None:
        return GeneSpec(EXPONENT, _PER, *_EXPONENTS, _START, True, where=genes.where)
    parts = _range(node)
    low, high = parts["low"].number(), parts["high"].number()
    if not 0 < low < high:
        node.fail(f"{low:g} to {high:g} is no range of exponents", "give 0 < low < high, such as 0.25 and 4")
    init = parts["init"].number(low, high) if "init" in parts else min(max(_START, low), high)
    log = parts["log"].boolean() if "log" in parts else True
    return GeneSpec(EXPONENT, _PER, low, high, init, log, where=node.where)


def _range(node: Node) -> dict[str, Node]:
    """The keys of a gene that is per sources, whether it says so or not."""
    parts = node.declared({key: GENE[key] for key in GENE if key != "bands"}, "{low: 1, high: 8}")
    per = parts.get("per")
    if per is not None and per.data not in ("sources", ["sources"]):
        per.fail("is one value for each trajectory", "remove it")
    return parts
