"""Shares the nodes of a cluster among workers. Pure functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.evaluator.shares import Share
from evomerge.files.objects import RaySpec
from evomerge.merging.resident.placement import CPU

CPUS, GPUS = "CPU", "GPU"


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, or one of several on a machine.

    Attributes:
        id: Ray's.
        name: for people.
        resources: all that it has, by Ray's names.
        labels: by which nodes are chosen.
    """

    id: str
    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Demand:
    """What a worker takes of a node, by Ray's names, and the labels that the node has."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]

    @property
    def gpus(self) -> float:
        return self.resources.get(GPUS, 0.0)

    def room(self, node: Node) -> int:
        """How many workers a node has room for."""
        if not _fits(node, self.labels):
            return 0
        asked = [(name, count) for name, count in self.resources.items() if count > 0]
        return min(math.floor(node.resources.get(name, 0.0) / count + 1e-6) for name, count in asked)

    def share(self, node: Node, device: str, workers: int | None) -> Share:
        """A worker's part of a node, one of so many in all. Ray shows it its own GPUs only."""
        host = min(self.room(node), workers or self.room(node))
        if device == CPU or not self.gpus:
            return Share(CPU, host, host)
        return Share("auto", max(1, round(1 / self.gpus)) if self.gpus < 1 else 1, host, spare=True)


def demanded(spec: RaySpec, nodes: Sequence[Node], workers: int | None, device: str) -> Demand:
    """What each worker takes where the space file does not say it: a GPU and its part of the node's processors; where
    there are no GPUs, as many processors as leave room for all workers. `workers`: how many there shall be; None: as
    many as there is room for."""
    able = [node for node in nodes if _fits(node, spec.labels)]
    gpus = spec.num_gpus
    if gpus is None:
        gpus = 1.0 if device != CPU and any(node.resources.get(GPUS) for node in able) else 0.0
    cpus = spec.num_cpus
    if cpus is None and gpus:
        parts = [n.resources.get(CPUS, 0) * gpus / n.resources[GPUS] for n in able if n.resources.get(GPUS)]
        cpus = float(max(1, math.floor(min(parts, default=1))))
    elif cpus is None:
        cpus = _processors([int(node.resources.get(CPUS, 0)) for node in able], workers or len(able))
    return Demand({CPUS: cpus, GPUS: gpus, **spec.resources}, spec.labels)


def _fits(node: Node, labels: Mapping[str, str]) -> bool:
    return all(node.labels.get(key) == value for key, value in labels.items())


def _processors(nodes: Sequence[int], workers: int) -> float:
    """The most processors that each of so many workers can have; a part of one where there are fewer than workers."""
    most = max(nodes, default=1)
    found = next((count for count in range(most, 0, -1) if sum(n // count for n in nodes) >= workers), None)
    if found is not None:
        return float(found)
    parts = next((n for n in range(2, workers + 1) if sum(n * count for count in nodes) >= workers), workers)
    return 1 / parts


def seats(nodes: Sequence[Node], demand: Demand, taken: Counter[str], wanted: int | None) -> list[Node]:
    """The nodes on which further workers are started, one for each: the emptiest first.

    Args:
        nodes: that may be used.
        demand: of a worker.
        taken: node id -> workers that are there.
        wanted: how many workers there shall be in all; None: as many as there is room for.
    """
    count, chosen = Counter(taken), []
    total = sum(count[node.id] for node in nodes)
    while wanted is None or total < wanted:
        free = [node for node in nodes if count[node.id] < demand.room(node)]
        if not free:
            break
        node = min(free, key=lambda n: (count[n.id] / demand.room(n), n.name))
        count[node.id] += 1
        total += 1
        chosen.append(node)
    return chosen
