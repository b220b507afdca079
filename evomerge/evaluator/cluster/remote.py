"""What runs in a Ray actor: it prepares its node, starts a worker process there (`worker_process.py`) and passes
messages on. Ray takes the place of the pipe, and of nothing else."""

from __future__ import annotations

import os
import queue
import threading
import time
from dataclasses import replace
from typing import Any

from evomerge.errors import InputError, describe_unexpected
from evomerge.evaluator.cluster.sources import Part, prepared
from evomerge.evaluator.jobs import Job
from evomerge.evaluator.messages import Alive, Ended, Failed, FromWorker, Load, Refused, Setup
from evomerge.evaluator.shares import environment
from evomerge.evaluator.worker_process import WorkerProcess
from evomerge.versions import differing

_LOOK = 1.0
"""Seconds between looks at whether Ray still runs on this node."""


class RemoteWorker:
    """A worker on the node of this actor."""

    def __init__(self, setup: Setup, versions: dict[str, str], parts: tuple[Part, ...], sender: Any) -> None:
        """Args:
        setup: of the worker.
        versions: of the packages that score, which have to be the same here.
        parts: the files that candidates read.
        sender: the actor that sends those that are not here (`sources.Sender`).
        """
        self._messages: queue.SimpleQueue[FromWorker] = queue.SimpleQueue()
        self._worker: WorkerProcess | None = None
        threading.Thread(target=self._end_with, args=(os.getppid(),), daemon=True).start()
        threading.Thread(target=self._work, args=(setup, versions, parts, sender), daemon=True).start()

    def hear(self, seconds: float) -> list[FromWorker]:
        """What the worker has said since; waits for so many seconds at most while that is nothing."""
        try:
            messages = [self._messages.get(timeout=seconds)]
        except queue.Empty:  # the sources are on their way, or the worker hangs
            return [Alive()] if self._worker is None else []
        while not self._messages.empty():
            messages.append(self._messages.get())
        return messages

    def take(self, message: Load | Job) -> None:
        """Passes a message to the worker."""
        if self._worker is not None:
            self._worker.send(message)

    def kill(self) -> None:
        """Ends the worker's process and those that it started."""
        if self._worker is not None:
            self._worker.kill()

    def process(self) -> int:
        """The id of the actor's process."""
        return os.getpid()

    def _end_with(self, raylet: int) -> None:
        """Ends this process and the worker's with Ray's process on this node: actors outlive one that was killed, and
        would go on in the way of those that are started next."""
        while os.getppid() == raylet:
            time.sleep(_LOOK)
        self.kill()
        os._exit(1)

    def _work(self, setup: Setup, versions: dict[str, str], parts: tuple[Part, ...], sender: Any) -> None:
        try:
            if others := differing(versions):
                raise InputError(f"it has {others}", "install the same versions there")
            elsewhere = prepared(parts, sender)
        except InputError as error:
            self._messages.put(Refused(error))
            return
        except Exception as error:
            self._messages.put(Failed(InputError(describe_unexpected(error))))
            return
        # Ray has set the number of threads to that of the processors that the actor has.
        worker = WorkerProcess(replace(setup, elsewhere=elsewhere), environment(1, os.environ))
        self._worker = worker
        try:
            while True:
                self._messages.put(worker.pipe.recv())
        except (EOFError, OSError):
            self._messages.put(Ended(worker.end()))
