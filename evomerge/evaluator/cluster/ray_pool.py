"""A pool of workers on the nodes of a Ray cluster: it grows as nodes join, and shrinks as they are lost."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError, StoppedError, Where
from evomerge.evaluator.cluster.actor_worker import ActorWorker
from evomerge.evaluator.cluster.connect import FLAG, ask_for_nodes, nodes, started_sender
from evomerge.evaluator.cluster.nodes import Node, demanded, seats
from evomerge.evaluator.cluster.sources import anywhere, parts
from evomerge.evaluator.cluster.stragglers import Stragglers
from evomerge.evaluator.jobs import Job
from evomerge.evaluator.messages import Failed, FromWorker, Ready, Refused
from evomerge.evaluator.pool import Pool
from evomerge.evaluator.progress import Progress
from evomerge.evaluator.worker_process import Worker
from evomerge.files.objects import FitnessSpec, SpaceSpec
from evomerge.interrupts import deferred
from evomerge.versions import versions

logger = logging.getLogger(__name__)

_NODES = 2.0
"""Seconds between looks at which nodes there are."""
_ROOM = 60.0
"""Seconds after which a search begins without workers for which Ray has found no room."""
_ALONE = 600.0
"""Seconds for which a search waits for a node while it has no worker."""
_FAILURES = 2
"""Workers that die on a node while they load, after which it is not used any more."""
_DEATHS = 10
"""Workers, for each of the pool's, that may die in a row without one job done between them: a node takes all of its own
with it."""


class RayPool(Pool):
    """Workers on the nodes of a Ray cluster, each in an actor on a node that the pool has chosen.

    A lost one costs its candidate a second try, as in every pool; another is started wherever there is room, then or
    later.
    """

    def __init__(
        self,
        spec: SpaceSpec,
        fitness: FitnessSpec,
        checkpoints: Mapping[str, Checkpoint],
        device: str,
        memory: str | None,
        workers: int | None,
        progress: Progress,
    ) -> None:
        """Starts the workers and waits until they have loaded.

        Args:
            spec, fitness: what is scored.
            checkpoints: that candidates read, as the driver has them.
            device: "cpu", or "auto" or "cuda": the GPUs that Ray gives to a worker.
            memory: the most of each node.
            workers: how many there shall be; None: as many as there is room for, at any time.
            progress: is told what happens.

        Raises:
            InputError: no worker can be started.
        """
        if device not in ("auto", "cpu", "cuda"):
            raise InputError(f"{device!r} names devices of one machine", "give cpu or cuda; Ray deals the GPUs", FLAG)
        super().__init__(anywhere(spec, checkpoints), fitness, memory, workers or 1, progress)
        self._wanted, self._device = workers, device
        self._barred: dict[str, InputError] = {}  # nodes that are not used, by their id, and why
        self._failures: Counter[str] = Counter()
        self._stragglers = Stragglers()
        self._looked, self._peopled = float("-inf"), time.monotonic()
        self._started = time.monotonic()
        self._demand = demanded(spec.ray, nodes(), workers, device)
        progress.phase("taking the models' fingerprints")
        found = parts(checkpoints.values())
        self._given: tuple[Any, ...] = versions(), found, started_sender(found)
        try:
            self._fill()
            self._describe()
            while not self._is_settled():
                self._listen()
        except BaseException:
            self.close()
            raise
        self._loaded = True

    @property
    def actors(self) -> list[ActorWorker]:
        """The workers."""
        return [worker for worker in self._workers if isinstance(worker, ActorWorker)]

    def close(self) -> None:
        import ray

        super().close()
        if self._given:
            with suppress(ray.exceptions.RayError):
                ray.kill(self._given[-1])
        self._given = ()

    def _describe(self) -> None:
        """Says where the workers are. InputError where there is room for none."""
        asked = ", ".join(f"{count:g} {name}" for name, count in self._demand.resources.items() if count)
        if not self._workers:
            labels = f" and the labels {self._demand.labels}" if self._demand.labels else ""
            problem = f"no node of the cluster has room for a worker, which takes {asked}{labels}"
            raise InputError(problem, "ask for less under `ray` in the space file, or add nodes", FLAG)
        counts = Counter(worker.node.name for worker in self.actors)
        placed = "; ".join(f"{count} on {name}" for name, count in counts.items())
        self._progress.note(f"workers: {len(self._workers)} with {asked} each ({placed})")
        missing = (self._wanted or 0) - len(self._workers)
        if missing > 0:
            self._progress.warn(f"{missing} of {self._wanted} workers have no room; they start when nodes join")
            ask_for_nodes(self._demand, self._wanted or 0)
        self._progress.phase("starting them")

    def _is_settled(self) -> bool:
        """Whether all workers have loaded for which Ray has found room, and there is one."""
        late = time.monotonic() > self._started + _ROOM
        awaited = [worker for worker in self.actors if worker.begun or not late]
        return any(worker.ready for worker in awaited) and all(worker.ready for worker in awaited)

    def _fill(self) -> None:
        """Starts workers wherever there is room for them."""
        if time.monotonic() < self._looked + _NODES:
            return
        self._looked = time.monotonic()
        usable = [node for node in nodes() if node.id not in self._barred]
        taken = Counter(worker.host for worker in self._workers)
        for node in seats(usable, self._demand, taken, self._wanted):
            setup = replace(self._setup, share=self._demand.share(node, self._device, self._wanted))
            with deferred():
                self._workers.append(ActorWorker(setup, node, self._demand, *self._given))
            if self._loaded:
                self._progress.note(f"a worker starts on {node.name}")
        if self._wanted is None:
            self.num_workers = max(self.num_workers, len(self._workers))

    def _heard(self, seconds: float) -> Collection[Worker]:
        import ray

        calls = {worker.call: worker for worker in self.actors}
        if not calls:
            time.sleep(seconds)
            return ()
        if ray.wait(list(calls), timeout=seconds)[0]:
            return [calls[call] for call in ray.wait(list(calls), num_returns=len(calls), timeout=0)[0]]
        return ()

    def _listen(self) -> None:
        super()._listen()
        self._fill()
        self._check_left()

    def _hand_out(self) -> None:
        """As in every pool; a job that takes long while workers are idle is given to one of them, too."""
        super()._hand_out()
        idle = [worker for worker in self.actors if worker.ready and worker.job is None]
        for worker in self.actors if idle and not self._queue else ():
            if idle and worker.job is not None and self._stragglers.is_late(worker.job, worker.since):
                other = idle.pop()
                self._progress.note(f"{worker.name} takes long; its candidate is scored on {other.node.name}, too")
                self._stragglers.repeat(worker.job)
                other.run(worker.job)

    def _answer(self, worker: Worker, job: Job, result: Any) -> None:
        assert isinstance(worker, ActorWorker)
        if self._stragglers.first(job, result):
            self._stragglers.learn(job, time.monotonic() - worker.since)
            super()._answer(worker, job, result)
        elif not self._stragglers.agrees(job, result):
            self._progress.warn(f"{worker.name} merged a candidate to other weights than another node did")

    def _retry(self, job: Job, cause: str, twice: str) -> None:
        """As in every pool, unless the job is answered, or runs elsewhere, too."""
        if not self._stragglers.is_answered(job) and all(worker.job is not job for worker in self._workers):
            super()._retry(job, cause, twice)

    def _take(self, worker: Worker, message: FromWorker) -> None:
        assert isinstance(worker, ActorWorker)
        match message:
            case Failed(error) | Refused(error):
                worker.refused = error
            case Ready(digests=digests) if self.digests and digests != self.digests:
                names = ", ".join(name for name in self.digests if digests.get(name) != self.digests[name])
                worker.refused = InputError(f"it has other items of {names}", "copy the fitness file's folders there")
            case _:
                super()._take(worker, message)

    def _fault(self, worker: Worker) -> str | None:
        assert isinstance(worker, ActorWorker)
        if not worker.begun:
            worker.silent = 0.0  # Ray finds no room for it
        return super()._fault(worker) if worker.refused is None else str(worker.refused)

    def _succeed(self, worker: Worker, cause: str) -> None:
        """Leaves a node alone that cannot be used. Where there is room again, `_fill` sees."""
        assert isinstance(worker, ActorWorker)
        self._looked = float("-inf")
        if worker.refused is not None:
            self._bar(worker.node, worker.refused)
        elif worker.ready:
            self._count_death(cause, _DEATHS * max(1, self.num_workers))
        else:
            self._failures[worker.host] += 1
            if self._failures[worker.host] >= _FAILURES:
                problem = f"{_FAILURES} workers died there before they had loaded; the last: {cause}"
                self._bar(worker.node, InputError(problem, "use fewer --workers", Where("--workers")))

    def _bar(self, node: Node, error: InputError) -> None:
        if node.id not in self._barred:
            self._barred[node.id] = error
            self._progress.warn(f"node {node.name} is not used: {error}")

    def _check_left(self) -> None:
        if self._workers:
            self._peopled = time.monotonic()
        elif not self._loaded and self._barred:
            raise next(iter(self._barred.values()))
        elif time.monotonic() > self._peopled + _ALONE:
            raise StoppedError(f"no node has had room for a worker for {_ALONE:g} s", "resume it when there is one")
