"""A worker: a process that holds an evaluator, receives jobs through a pipe and sends back their results.

It ends when the other end of its pipe is closed: the system closes it when the process that drives the study dies. It
hears no Ctrl-C, as it is in a process group of its own, and sends a sign of life every few seconds.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from evomerge.checkpoints.pickled import allow_pickles
from evomerge.checkpoints.references import relocate
from evomerge.errors import InputError
from evomerge.evaluator.executor import run_job
from evomerge.evaluator.messages import (
    Alive,
    Failed,
    Finished,
    FromWorker,
    Logged,
    Noted,
    PhaseStarted,
    Placed,
    Progressed,
    Ready,
    Setup,
    SliceStarted,
    Warned,
)
from evomerge.evaluator.models import open_models
from evomerge.evaluator.progress import Progress
from evomerge.safety.own_folder import remove_own_folders


def main() -> None:
    """Loads what the first message says, in two steps (see `WorkerPool`), then runs jobs until the pipe is closed. The
    process's first argument is the number of its end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # one that is sent to it alone ends it, without a traceback
    pipe = WorkerPipe(int(sys.argv[1]))
    try:
        _serve(pipe)
    except InputError as error:
        pipe.send(Failed(error))
    except Exception as error:
        logging.getLogger(__name__).exception("a worker cannot load")
        pipe.send(Failed(InputError(f"a worker cannot load ({type(error).__name__}: {error})")))


def _serve(pipe: WorkerPipe) -> None:
    setup: Setup = pipe.receive()
    pipe.show_life(setup.beat)
    logger = logging.getLogger("evomerge")
    logger.addHandler(_LogRelay(pipe))
    logger.setLevel(logging.INFO)
    from evomerge.evaluator.evaluator import Evaluator, place_candidates

    _use_device(setup.share.device)
    allow_pickles(setup.allow_pickle)
    relocate(setup.elsewhere)
    models = open_models(setup.spec, setup.fitness)
    placement = place_candidates(models, setup.fitness, setup.share.device, setup.memory, setup.share)
    pipe.send(Placed())
    pipe.receive()  # `Load`: all have looked at the free memory, now it is taken
    progress = _ProgressRelay(pipe)
    evaluator = Evaluator.load(models, setup.fitness, placement, progress)
    pipe.send(Ready(evaluator.suite.info, evaluator.suite.items_digest(), evaluator.resident.devices))
    while True:
        pipe.send(Finished(run_job(pipe.receive(), evaluator, progress.slice_started)))


def _use_device(device: str) -> None:
    """Makes a worker's first GPU the default of torch."""
    if device.startswith("cuda:"):
        import torch

        first = device.partition(",")[0]
        if int(first.removeprefix("cuda:")) < torch.cuda.device_count():
            torch.cuda.set_device(first)


class WorkerPipe:
    """The worker's end of a pipe. A thread reads all the time, to notice in the middle of a job when the other end is
    closed."""

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._received: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sending = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def receive(self) -> Any:
        return self._received.get()

    def send(self, message: FromWorker) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except ConnectionError:
            _end()

    def show_life(self, beat: float) -> None:
        """Sends `Alive` every `beat` seconds, from a thread that waits for nobody but Python's lock."""
        threading.Thread(target=self._show_life, args=(beat,), daemon=True).start()

    def _show_life(self, beat: float) -> None:
        while True:
            self.send(Alive())
            time.sleep(beat)

    def _read(self) -> None:
        while True:
            try:
                self._received.put(self._connection.recv())
            except (EOFError, OSError):
                _end()


def _end() -> None:
    """Ends this process, with those that it started (`merging/kernels/compiled.py`), and its folders."""
    remove_own_folders()
    os.killpg(os.getpid(), signal.SIGKILL)


class _ProgressRelay(Progress):
    """Sends what it is told to the process that drives the study."""

    def __init__(self, pipe: WorkerPipe) -> None:
        self._pipe = pipe

    def phase(self, message: str) -> None:
        self._pipe.send(PhaseStarted(message))

    def note(self, message: str) -> None:
        self._pipe.send(Noted(message))

    def warn(self, message: str) -> None:
        self._pipe.send(Warned(message))

    def progress(self, message: str, done: float) -> None:
        self._pipe.send(Progressed(message, done))

    def slice_started(self, name: str) -> None:
        self._pipe.send(SliceStarted(name))


class _LogRelay(logging.Handler):
    """Sends log lines to the process that keeps the run's log."""

    def __init__(self, pipe: WorkerPipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        self._pipe.send(Logged(record.name, record.levelno, self.format(record)))
