"""Connects to a Ray cluster, or starts one of this machine alone."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from evomerge.errors import InputError, StoppedError, Where
from evomerge.evaluator.cluster.nodes import Demand, Node
from evomerge.evaluator.cluster.sources import Part, Sender

FLAG = Where("--ray")
LOCAL = "local"
"""No address: Ray is started here, and listens to this machine alone."""
_LOOPBACK = "127.0.0.1"
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
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    if address == LOCAL:
        address = os.environ.get("RAY_ADDRESS", LOCAL)
    if "://" in address:
        mend = "start the search on a node of the cluster, or by `ray job submit`, and give HOST:PORT"
        raise InputError(f"{address} is not the address of a head, but of a service beside it", mend, FLAG)
    if address == LOCAL:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        settings |= {"include_dashboard": False, "num_cpus": max(cores, workers or 1)}
    with _own_signals(), _loopback() if address == LOCAL else nullcontext():
        try:
            _check_reachable(address)
            ray.init(address, **settings, runtime_env=runtime_env or None)
        except (OSError, RuntimeError, ValueError) as error:
            what = str(error).strip().splitlines()
            problem = f"there is no Ray cluster at {address} ({what[0] if what else type(error).__name__})"
            raise InputError(problem, "start one: `ray start --head`", FLAG) from None
    try:
        if address == LOCAL and (listening := ray.nodes()[0]["NodeManagerAddress"]) != _LOOPBACK:
            problem = f"this version of Ray ({ray.__version__}) listens at {listening}, not to this machine alone"
            raise InputError(problem, "start a cluster (`ray start --head`), and give its address", FLAG)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _loopback() -> Iterator[None]:
    """Ray is started as it is where it makes no clusters of machines: it has the address 127.0.0.1 and listens there.
    Its setting of an address takes the machine's own in place of that one."""
    from ray._private import ray_constants

    setting = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before, was = os.environ.get(setting), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[setting], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = was
        del os.environ[setting]
        os.environ |= {} if before is None else {setting: before}


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
    """The nodes of the cluster that are alive. StoppedError where its head does not answer."""
    import ray

    try:
        known = ray.nodes()
    except (ray.exceptions.RayError, OSError) as error:
        problem = f"the head of the Ray cluster does not answer ({type(error).__name__}); all that was scored is kept"
        raise StoppedError(problem, "resume it when there is one") from None
    return [_node(data) for data in known if data["Alive"]]


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
