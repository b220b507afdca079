"""`ray:` of a search-space file: what a worker takes of a node of a Ray cluster, and of which nodes."""

from __future__ import annotations

from evomerge.files.keys import RAY
from evomerge.files.nodes import Node
from evomerge.files.objects import RaySpec

_MOST = 10_000
"""Of one resource."""


def read_ray(node: Node | None) -> RaySpec:
    """Reads `ray`. Raises InputError with file, line and key."""
    if node is None or node.value is None:
        return RaySpec()
    parts = node.declared(RAY, "{num_gpus: 2, labels: {card: h200}}")
    environment = parts.get("runtime_env")
    if environment is not None:
        environment.mapping(example="{env_vars: {HF_HOME: /data/hub}}")
    return RaySpec(
        num_cpus=_count(parts["num_cpus"]) if "num_cpus" in parts else None,
        num_gpus=_count(parts["num_gpus"]) if "num_gpus" in parts else None,
        resources={name: _count(child) for name, child in _mapping(parts, "resources").items()},
        labels={name: child.text() for name, child in _mapping(parts, "labels").items()},
        runtime_env={} if environment is None else environment.data,
    )


def _mapping(parts: dict[str, Node], key: str) -> dict[str, Node]:
    return parts[key].mapping(example=f"{key}: {{name: value}}") if key in parts else {}


def _count(node: Node) -> float:
    """A part of one, or a whole number."""
    count = node.number(0, _MOST)
    if count > 1 and count != int(count):
        node.fail(f"{node.shown()} is neither a part of one nor a whole number", "give for example 0.5, 1 or 2")
    return count
