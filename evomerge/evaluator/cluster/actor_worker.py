"""The driver's end of a worker in a Ray actor."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from evomerge.errors import InputError
from evomerge.escape import shortened
from evomerge.evaluator.cluster.nodes import CPUS, GPUS, Demand, Node
from evomerge.evaluator.cluster.remote import RemoteWorker
from evomerge.evaluator.jobs import Job
from evomerge.evaluator.messages import Ended, FromWorker, Load, Setup
from evomerge.evaluator.worker_process import Worker

logger = logging.getLogger(__name__)

_CALL = 10.0
"""Seconds that a call to an actor waits for a message of its worker."""


class ActorWorker(Worker):
    """A worker in a Ray actor.

    Attributes:
        node: of the actor.
        begun: Ray has found room for the actor.
        refused: why its node cannot be used.
        call: the call to the actor that returns what the worker says next.
        since: when it was given its job.
    """

    def __init__(self, setup: Setup, node: Node, demand: Demand, *given: Any) -> None:
        """`given`: the further arguments of `RemoteWorker`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        super().__init__(setup)
        self.node, self.host, self.name = node, node.id, f"worker on {node.name}"
        self.begun = False
        self.refused: InputError | None = None
        self.since = 0.0
        self._gone: str | None = None
        # Ray starts no lost actor again and repeats no call: a lost job is tried once more, which is the pool's to do.
        actor = ray.remote(RemoteWorker).options(
            num_cpus=demand.resources.get(CPUS, 0),
            num_gpus=demand.gpus,
            resources={name: count for name, count in demand.resources.items() if name not in (CPUS, GPUS)},
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=4,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )
        self._actor = actor.remote(setup, *given)
        self.call = self._actor.hear.remote(_CALL)

    def run(self, job: Job) -> None:
        self.since = time.monotonic()
        super().run(job)

    def send(self, message: Load | Job) -> None:
        self._actor.take.remote(message)

    def messages(self) -> Iterator[FromWorker]:
        import ray

        try:
            said: list[FromWorker] = ray.get(self.call)
        except ray.exceptions.RayError as error:
            logger.warning("%s: %s", self.name, shortened(" ".join(str(error).split()), 1000))
            self._gone = _how(error)
            raise EOFError from None
        self.begun = True
        self.call = self._actor.hear.remote(_CALL)
        for message in said:
            if isinstance(message, Ended):
                self._gone = message.how
                raise EOFError
            yield message

    def has_died(self) -> bool:
        return self._gone is not None

    def kill(self) -> None:
        self._actor.kill.remote()

    def end(self) -> str:
        import ray

        with suppress(ray.exceptions.RayError):
            if self._gone is None and self.begun:
                ray.get(self._actor.kill.remote(), timeout=_CALL)
        with suppress(ray.exceptions.RayError):  # it has not even been made
            ray.kill(self._actor)
        # A connection to another cluster numbers its actors alike, and would take the end of this handle for that of
        # one of its own.
        self._actor = self.call = None
        return self._gone or "killed"

    @property
    def process(self) -> int:
        """The id of the actor's process on its node."""
        import ray

        return int(ray.get(self._actor.process.remote()))


def _how(error: Exception) -> str:
    """How an actor was lost."""
    return f"its {'node' if 'node has died' in str(error) else 'actor'} was lost"
