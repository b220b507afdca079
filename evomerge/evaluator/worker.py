"""A worker: a process that holds a workbench, gets jobs through a pipe and sends back what came of them.

It ends when the other end of its pipe is closed, by whatever: the system closes it when the process that drives the
study dies. It hears no Ctrl-C, as it is in a process group of its own.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from evomerge.errors import InputError
from evomerge.evaluator.executor import attempt
from evomerge.evaluator.shares import Share
from evomerge.files.objects import FitnessSpec, SpaceSpec
from evomerge.study.observer import Observer
from evomerge.study.prepare import open_checkpoints


@dataclass(frozen=True)
class Setup:
    """What a worker is to load, and where."""

    spec: SpaceSpec
    fitness: FitnessSpec
    share: Share
    memory: str | None


def main() -> None:
    """Load what the first message says, in two steps (see `WorkerPool`), then do jobs until the pipe is closed. The
    process's first argument is the number of its end of the pipe."""
    pipe = _Pipe(int(sys.argv[1]))
    try:
        _serve(pipe)
    except InputError as error:
        pipe.send("error", error)
    except Exception as error:
        logging.getLogger(__name__).exception("a worker cannot load")
        pipe.send("error", InputError(f"a worker cannot load ({type(error).__name__}: {error})"))


def _serve(pipe: _Pipe) -> None:
    setup: Setup = pipe.receive()
    logger = logging.getLogger("evomerge")
    logger.addHandler(_Relay(pipe))
    logger.setLevel(logging.INFO)
    from evomerge.evaluator.evaluator import Evaluator, place_study

    _settle_on(setup.share.device)
    plan = open_checkpoints(setup.spec, setup.fitness)
    placement = place_study(plan, setup.share.device, setup.memory, setup.share)
    pipe.send("placed")
    pipe.receive()  # all have looked at what memory is free: now it is taken
    observer = _Told(pipe)
    bench = Evaluator.load(plan, placement, observer)
    pipe.send("ready", bench.suite.info, bench.suite.items_digest(), bench.resident.devices)
    while True:
        pipe.send("result", attempt(pipe.receive(), bench, observer.slice_started))


def _settle_on(device: str) -> None:
    """Make a worker's first GPU the one that whatever names none is put on."""
    if device.startswith("cuda:"):
        import torch

        with_index = device.partition(",")[0]
        if int(with_index.removeprefix("cuda:")) < torch.cuda.device_count():
            torch.cuda.set_device(with_index)


class _Pipe:
    """The worker's end. A thread reads all the time, to notice when the other end is closed in the middle of a job."""

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._received: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sending = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def receive(self) -> Any:
        return self._received.get()

    def send(self, kind: str, *what: Any) -> None:
        try:
            with self._sending:
                self._connection.send((kind, *what))
        except ConnectionError:
            _end()

    def _read(self) -> None:
        while True:
            try:
                self._received.put(self._connection.recv())
            except (EOFError, OSError):
                _end()


def _end() -> None:
    """End this process, in whatever it is, with those that it started (`merging/kernels/compiled.py`)."""
    os.killpg(os.getpid(), signal.SIGKILL)


class _Told(Observer):
    """Tells the process that drives the study what this one sees."""

    def __init__(self, pipe: _Pipe) -> None:
        self._pipe = pipe

    def phase(self, message: str) -> None:
        self._pipe.send("observe", "phase", message)

    def note(self, message: str) -> None:
        self._pipe.send("observe", "note", message)

    def warn(self, message: str) -> None:
        self._pipe.send("observe", "warn", message)

    def progress(self, message: str, done: float) -> None:
        self._pipe.send("observe", "progress", message, done)

    def slice_started(self, name: str) -> None:
        self._pipe.send("observe", "slice_started", name)


class _Relay(logging.Handler):
    """Sends log lines to the process that keeps the run's log."""

    def __init__(self, pipe: _Pipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        self._pipe.send("log", record.name, record.levelno, self.format(record))
