"""Ctrl-C is obeyed at once, waits for writes, and is recognized whatever a library makes of it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import evomerge
from evomerge.errors import TrialError
from evomerge.evaluator.executor import run_job
from evomerge.interrupts import answered, deferred, listening, recognized
from evomerge.study.observer import Observer, StageName


@pytest.fixture(autouse=True)
def pythons_own() -> Iterator[None]:
    """The handler that a program in the foreground has; the tests' own may be that of a background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


class Swallows:
    """A destructor, in which Python only prints what is raised."""

    def __del__(self) -> None:
        interrupt()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_is_obeyed_at_once(number: signal.Signals) -> None:
    reached = False

    @listening(signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    def work() -> None:
        nonlocal reached
        interrupt(number)
        reached = True

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not reached


def test_waits_for_the_end_of_the_outermost_write() -> None:
    done: list[str] = []

    @deferred()
    def write(what: str) -> None:
        interrupt()
        done.append(what)

    @listening()
    def work() -> None:
        with deferred():
            write("a")
            done.append("b")
        done.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["a", "b"]


def test_who_insists_does_not_wait() -> None:
    done: list[str] = []

    @listening()
    @deferred()
    def work() -> None:
        interrupt()
        done.append("once")
        interrupt()
        done.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["once"]


def test_writes_of_the_clean_up_are_not_cut_short() -> None:
    done: list[str] = []

    @listening()
    def work() -> None:
        try:
            interrupt()
        finally:
            with deferred():
                done.append("cleaned")
            done.append("up")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["cleaned", "up"]


def test_an_error_that_came_of_one_is_one() -> None:

    @listening()
    def work() -> None:
        try:
            interrupt()
        except KeyboardInterrupt:
            raise RuntimeError("what a library makes of it") from None

    with pytest.raises(KeyboardInterrupt):
        work()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_swallowed_one_is_not_lost() -> None:
    results: list[int] = []

    @listening()
    def work() -> None:
        with recognized():
            Swallows()
            results.append(1)
        results.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert results == [1]


def test_other_errors_stay() -> None:
    with pytest.raises(KeyboardInterrupt), listening():
        interrupt()
    with pytest.raises(ValueError, match="its own"), listening(), recognized():
        raise ValueError("its own")


def test_is_forgotten_with_the_end() -> None:
    """A user's handler for Ctrl-C stays, so that nothing is heard then."""
    with pytest.raises(KeyboardInterrupt), listening():
        interrupt()
    signal.signal(signal.SIGINT, lambda number, _: None)
    with listening(), recognized(), deferred():
        pass


def test_another_threads_writes_do_not_make_it_wait() -> None:
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def write() -> None:
        with recognized(), deferred():
            began.set()
            may_end.wait(60)
        ended.set()

    @listening()
    def work() -> None:
        began.wait()
        interrupt()
        pytest.fail("it waits")

    thread = threading.Thread(target=write)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        work()
    may_end.set()
    thread.join()
    assert ended.is_set()


def test_the_exit_code_is_ours(tmp_path: Path) -> None:
    """Also where Python was executing text, as for a dataclass."""
    (tmp_path / "program.py").write_text("""
import sys
from evomerge.interrupts import ignore, listening
try:
    with listening():
        exec("import os; os.kill(os.getpid(), 2)")
except KeyboardInterrupt:
    ignore()
    sys.exit(130)
""")
    done = subprocess.run([sys.executable, "-m", "program"], cwd=tmp_path, check=False)
    assert done.returncode == 130


def test_once_answered_errors_are_errors_again() -> None:

    @listening()
    def work() -> None:
        try:
            interrupt()
        except KeyboardInterrupt:
            answered()
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        work()


def test_handlers_come_back() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with listening(signal.SIGTERM), listening():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        interrupt(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_users_own_handler_stays() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    with listening():
        interrupt()
    assert heard == [signal.SIGINT]


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening(signal.SIGHUP):
            interrupt(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


class Signals(Observer):
    """Sends itself a signal when the second finalist has been scored."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def stage(self, name: StageName, done: int, total: int | None, last: str = "") -> None:
        if (name, done) == ("holdout", 2):
            interrupt(self.number)


def test_one_among_the_finalists_loses_nothing(tiny_study: Callable[..., Path]) -> None:
    whole = evomerge.search(tiny_study(), run="whole")
    with pytest.raises(KeyboardInterrupt), listening(signal.SIGHUP):
        evomerge.search("space.yaml", observer=Signals(signal.SIGHUP))
    resumed = evomerge.resume("space")
    scores = [[(t.number, t.digest, t.scores) for t in result.holdout.trials] for result in (whole, resumed)]
    assert scores[0] == scores[1]


def test_one_in_a_merge_leaves_nothing(tiny_models: Path, tmp_path: Path) -> None:
    recipe = f"merge_method: linear\nmodels: [{{model: {tiny_models / 'base'}, parameters: {{weight: 1}}}}]\n"
    (tmp_path / "recipe.yaml").write_text(recipe)

    def progress(text: str, done: float) -> None:
        if done > 0.5:
            interrupt(signal.SIGQUIT)

    with pytest.raises(KeyboardInterrupt), listening(signal.SIGQUIT):
        evomerge.merge(tmp_path / "recipe.yaml", tmp_path / "out", progress=progress)
    assert os.listdir(tmp_path) == ["recipe.yaml"]


@pytest.mark.slow
def test_a_closed_terminal_ends_the_search_and_its_workers(tiny_study: Callable[..., Path]) -> None:
    """A real one: the process leads its session, and its output is there."""
    tiny_study()
    terminal, its_end = pty.openpty()
    command = [sys.executable, "-c", TERMINAL, "search", "space.yaml", "--trials", "2000", "--workers", "2"]
    process = subprocess.Popen(command, stdin=its_end, stdout=its_end, stderr=its_end, start_new_session=True)
    os.close(its_end)
    shown = b""
    while b"best: trial" not in shown:
        shown = shown[-100:] + os.read(terminal, 1000)
    workers = psutil.Process(process.pid).children()
    assert len(workers) >= 2
    os.close(terminal)
    try:
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert not psutil.wait_procs(workers, timeout=20)[1]
    done = [t for t in evomerge.status("space").search.trials if t.state in ("complete", "pruned")]
    assert len(done) >= 4


TERMINAL = """
import fcntl, sys, termios
from evomerge.cli import main
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.exit(main())
"""


def test_another_thread_can_run_a_search() -> None:
    done: list[int] = []

    def run() -> None:
        with listening(signal.SIGTERM):
            done.append(1)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fails", [False, True])
def test_a_candidate_that_was_interrupted_has_neither_scores_nor_failed(fails: bool) -> None:
    class Interrupted:
        def run(self, bench: object, on_slice: object) -> int:
            Swallows()
            if fails:
                raise TrialError("a candidate's failure, or so it seems")
            return 1

    with pytest.raises(KeyboardInterrupt), listening():
        run_job(Interrupted(), None, lambda name: None)  # type: ignore[arg-type]


def test_a_thread_that_is_left_behind_does_not_keep_the_program(tmp_path: Path) -> None:
    code = """
import sys, threading, time
from evomerge import cli

threading.Thread(target=time.sleep, args=(3600,)).start()
cli._PATIENCE = 0.5
sys.argv = ["evomerge", "status", "nothing"]
cli.entry()
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "a thread that the code of a scorer or task has started" in ended.stderr
