"""Connects to a Ray cluster, or starts one of this machine alone."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from evomerge.errors import InputError, Where
from evomerge.evaluator.cluster.nodes import Demand, Node
from evomerge.evaluator.cluster.sources import Part, Sender

FLAG = Where("--ray")
LOCAL = "local"
"""No address: Ray is started here, and listens to this machine alone."""
_REACHED = 10.0
"""Seconds in which a cluster's head answers."""


@contextmanager
def connected(address: str, workers: int | None, runtime_env: dict[str, Any]) -> Iterator[None]:
    """A connection to a cluster, which ends with the context.

    Args:
        address: ``host:port``, "auto" for the cluster that runs on this machine, or `LOCAL`: the cluster that the
            environment names (RAY_ADDRESS, as `ray job submit` sets it), else one of this machine alone.
        workers: how many a cluster of this machine alone has room for.
        runtime_env: Ray's runtime environment of the workers.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    # What evomerge does is nobody else's business: no usage statistics, unless the user has said otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError("Ray is not installed", "pip install 'evomerge[ray]'", FLAG) from None
    if ray.is_initialized():  # by the program that calls us
        yield
        return
    if "://" in address:
        mend = "start the search on a node of the cluster, by `ray job submit` for example"
        raise InputError(f"{address} is an address of Ray's client, which has no files", mend, FLAG)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    if address == LOCAL and "RAY_ADDRESS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        settings |= {"address": "local", "_node_ip_address": "127.0.0.1", "include_dashboard": False}
        settings |= {"num_cpus": max(cores, workers or 1)}
    else:
        settings |= {"address": os.environ.get("RAY_ADDRESS", "auto") if address == LOCAL else address}
    with _own_signals():
        try:
            _check_reachable(settings["address"])
            ray.init(**settings, runtime_env=runtime_env or None)
        except (OSError, RuntimeError, ValueError) as error:
            what = str(error).strip().splitlines()
            problem = f"there is no Ray cluster at {settings['address']} ({what[0] if what else type(error).__name__})"
            raise InputError(problem, "start one: `ray start --head`", FLAG) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """OSError where nothing listens there: Ray tries for minutes."""
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), _REACHED).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray sets handlers of its own; ours are set again at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def nodes() -> list[Node]:
    """The nodes of the cluster that are alive."""
    import ray

    return [_node(data) for data in ray.nodes() if data["Alive"]]


def _node(data: dict[str, Any]) -> Node:
    name = f"{data['NodeManagerHostname']} ({data['NodeManagerAddress']}, {data['NodeID'][:8]})"
    return Node(data["NodeID"], name, data["Resources"], data.get("Labels") or {})


def started_sender(parts: tuple[Part, ...]) -> Any:
    """The actor on this node that sends the files of models to others."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Sender).options(num_cpus=0, scheduling_strategy=here).remote(parts)


def ask_for_nodes(demand: Demand, workers: int) -> None:
    """Asks the cluster, if it can grow, for room for so many workers."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{name: count for name, count in demand.resources.items() if count}] * workers)
