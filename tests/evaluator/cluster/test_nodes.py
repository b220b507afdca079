"""Workers are dealt to nodes by what both have: pure functions, and no cluster."""

from __future__ import annotations

from collections import Counter

import pytest

from evomerge.evaluator.cluster.nodes import Demand, Node, demanded, seats
from evomerge.evaluator.shares import Share
from evomerge.files.objects import RaySpec


def node(name: str, cpus: float = 0, gpus: float = 0, **labels: str) -> Node:
    return Node(name, name, {"CPU": cpus, "GPU": gpus, "memory": 1e9}, labels)


@pytest.mark.parametrize(
    ("spec", "nodes", "workers", "device", "asked"),
    [
        (RaySpec(), [node("a", 16, 8), node("b", 2)], None, "auto", {"CPU": 2, "GPU": 1}),
        (RaySpec(num_gpus=2), [node("a", 16, 8)], 4, "auto", {"CPU": 4, "GPU": 2}),
        (RaySpec(num_gpus=0.5), [node("a", 2, 4)], None, "auto", {"CPU": 1, "GPU": 0.5}),
        (RaySpec(), [node("a", 16, 8)], 2, "cpu", {"CPU": 8, "GPU": 0}),
        (RaySpec(), [node("a", 16), node("b", 16)], 3, "auto", {"CPU": 8, "GPU": 0}),
        (RaySpec(), [node("a", 2), node("b", 64), node("c", 64)], None, "auto", {"CPU": 32, "GPU": 0}),
        (RaySpec(), [node("a", 2)], 4, "auto", {"CPU": 0.5, "GPU": 0}),
        (RaySpec(labels={"card": "x"}), [node("a", 4, 4), node("b", 6, card="x")], 2, "auto", {"CPU": 3, "GPU": 0}),
        (RaySpec(num_cpus=3, resources={"fast": 1}), [node("a", 9)], 2, "auto", {"CPU": 3, "GPU": 0, "fast": 1}),
    ],
)
def test_a_worker_takes_what_suits_the_cluster(
    spec: RaySpec, nodes: list[Node], workers: int | None, device: str, asked: dict[str, float]
) -> None:
    assert demanded(spec, nodes, workers, device).resources == asked


def test_the_emptiest_nodes_get_the_next_workers() -> None:
    nodes, demand = [node("a", 4), node("b", 2), node("c", 1)], Demand({"CPU": 2, "GPU": 0}, {})
    assert [n.id for n in seats(nodes, demand, Counter(), None)] == ["a", "b", "a"]
    assert [n.id for n in seats(nodes, demand, Counter(), 2)] == ["a", "b"]
    assert [n.id for n in seats(nodes, demand, Counter({"a": 1}), 2)] == ["b"]
    assert seats(nodes, demand, Counter({"a": 2, "b": 1}), 7) == []
    assert [n.id for n in seats(nodes[1:], demand, Counter({"a": 2}), 1)] == ["b"]  # `a` was lost, and what was on it


def test_only_nodes_with_the_labels_and_the_resources_are_used() -> None:
    labelled = Demand({"CPU": 1, "GPU": 1}, {"card": "h200"})
    nodes = [node("a", 8, 8, card="a100"), node("b", 8, 1, card="h200"), node("c", 8, card="h200")]
    assert [n.id for n in seats(nodes, labelled, Counter(), None)] == ["b"]
    assert Demand({"CPU": 1, "fast": 1}, {}).room(nodes[0]) == 0


def test_workers_of_a_node_share_its_memory() -> None:
    big = node("a", 8, 2)
    assert Demand({"CPU": 1, "GPU": 0.5}, {}).share(big, "auto", None) == Share("auto", 2, 4, spare=True)
    assert Demand({"CPU": 1, "GPU": 2}, {}).share(big, "auto", None) == Share("auto", 1, 1, spare=True)
    assert Demand({"CPU": 2, "GPU": 0}, {}).share(big, "auto", 3) == Share("cpu", 3, 3)
    assert Demand({"CPU": 4, "GPU": 1}, {}).share(big, "cpu", None) == Share("cpu", 2, 2)
