"""Several workers: jobs are done once, whoever dies; and nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

import evomerge
from evomerge.errors import InputError, StoppedError, TrialError
from evomerge.evaluator import pool, worker_process
from evomerge.evaluator.pool import WorkerPool
from evomerge.evaluator.shares import Share
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.interrupts import listening
from evomerge.study.observer import Observer
from evomerge.study.run.trial import Trial
from tests.conftest import INTERRUPTIBLE
from tests.evaluator import fake_worker
from tests.evaluator.fake_worker import Saying
from tests.evaluator.test_executor import check_record, facts

Study = Callable[..., Path]


class Heard(Observer):
    def __init__(self) -> None:
        self.slices: list[str] = []
        self.warnings: list[str] = []

    def slice_started(self, name: str) -> None:
        self.slices.append(name)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def hire(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Workers without a model."""
    monkeypatch.setattr(worker_process, "_START", fake_worker.START)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))

    @contextmanager
    def make(*devices: str, observer: Observer | None = None) -> Iterator[WorkerPool]:
        none = cast(Any, None)
        slices = {name: SliceSpec(name, timeout=1.0) for name in ("short", "slow")}
        shares = [Share(device, 1, len(devices)) for device in devices]
        made = WorkerPool(none, FitnessSpec(Path("x"), slices), shares, None, observer or Observer())
        try:
            yield made
        finally:
            pids = made.processes
            made.close()
            assert not any(map(psutil.pid_exists, pids))

    return make


def answers(made: WorkerPool, *jobs: Saying) -> dict[str, Any]:
    for job in jobs:
        made.submit(job)
    return {cast(Saying, job).word: result for job, result in (made.result() for _ in jobs)}


def test_jobs_are_dealt_and_errors_come_back(hire: Callable[..., Any]) -> None:
    heard = Heard()
    with hire("cpu", "cpu", "gpu", observer=heard) as made:
        found = answers(made, *map(Saying, ("a", "b", "no", "c", "d")))
        assert {found[w][0] for w in "abcd"} == set("abcd")
        assert {found[w][2] for w in "abcd"} == {2}  # threads of each
        assert isinstance(found["no"], TrialError)
        assert sorted(heard.slices) == ["a", "b", "c", "d", "no"]
        assert (made.devices, made.num_workers) == ("cpu,gpu", 3)


def test_who_dies_is_replaced_and_its_job_done_again_once(hire: Callable[..., Any], tmp_path: Path) -> None:
    heard = Heard()
    with hire("cpu", "cpu", observer=heard) as made:
        first = set(made.processes)
        found = answers(made, Saying("bad", dies=True), Saying("unlucky", marker=str(tmp_path / "x")), Saying("a"))
        assert found["a"][0] == "a"
        assert found["unlucky"][0] == "unlucky"
        assert "died twice (SIGKILL, out of memory?)" in str(found["bad"])
        assert isinstance(found["bad"], TrialError)
        assert len(heard.warnings) == 2
        assert len(made.processes) == 2
        assert not first & set(made.processes)


@pytest.mark.parametrize("how", ["stop", "lock"])
def test_a_slice_beyond_its_time_is_scored_again_once(hire: Callable[..., Any], tmp_path: Path, how: str) -> None:
    heard = Heard()
    with hire("cpu", "cpu", observer=heard) as made:
        jobs = Saying("slow", dies=True, how=how), Saying("short", marker=str(tmp_path / "x"), how=how), Saying("a")
        found = answers(made, *jobs)
        assert [found[word][0] for word in ("a", "short")] == ["a", "short"]
        assert isinstance(found["slow"], TrialError)
        assert str(found["slow"]) == "slice slow did not end within 1 s, twice"
        assert "slice short did not end within 1 s; its candidate is scored again by another" in heard.warnings
        assert len(heard.warnings) == 2


@pytest.mark.slow
def test_one_without_a_sign_of_life_is_replaced(hire: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_BEAT", 0.2)
    monkeypatch.setattr(pool, "_SILENCE", 1.5)
    heard = Heard()
    with hire("cpu", "cpu", observer=heard) as made:
        os.kill(made.processes[0], signal.SIGSTOP)  # while it is idle
        found = answers(made, Saying("a"), Saying("lock", dies=True, how="lock"))
        assert found["a"][0] == "a"
        assert str(found["lock"]) == "a worker gave no sign of life for 1.5 s, twice"
        assert (
            heard.warnings == ["a worker gave no sign of life for 1.5 s; its candidate is scored again by another"] * 2
        )


@pytest.mark.slow
def test_one_that_works_for_long_is_left_alone(hire: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_BEAT", 0.1)
    monkeypatch.setattr(pool, "_SILENCE", 2.5)
    heard = Heard()
    with hire("cpu", observer=heard) as made:
        assert answers(made, Saying("long", how="work"))["long"][0] == "long"
        pid = made.processes[0]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3)  # both stand still, as on a machine that is suspended
        os.kill(pid, signal.SIGCONT)
        assert answers(made, Saying("a"))["a"][0] == "a"
    assert heard.warnings == []


def test_workers_that_only_die_end_the_search(hire: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_DEATHS", 5)
    with hire("cpu", "cpu") as made:
        for _ in range(8):
            made.submit(Saying("bad", dies=True, how="abort"))
        with pytest.raises(StoppedError, match=r"5 workers had to be replaced in a row.*a worker died \(SIGABRT\)"):
            [made.result() for _ in range(8)]


@pytest.mark.parametrize("state", [signal.SIGSTOP, None])
def test_none_is_left_behind_by_a_killed_process(tmp_path: Path, state: signal.Signals | None) -> None:
    """Neither a stopped worker, nor one whose scorer does not end, nor what a worker started."""
    program = """
import sys
from pathlib import Path
from evomerge.evaluator import pool, worker_process
from evomerge.evaluator.shares import Share
from evomerge.files.objects import FitnessSpec
from evomerge.study.observer import Observer
from tests.evaluator import fake_worker
worker_process._START = fake_worker.START
made = pool.WorkerPool(None, FitnessSpec(Path("x"), {}), [Share("cpu", 1, 2)] * 2, None, Observer())
for how in ("loop", "child"):
    made.submit(fake_worker.Saying("x", dies=True, how=how))
print(*made.processes, flush=True)
made.result()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    left = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    child = wait_for(lambda: [c for p in left for c in p.children()])
    if state:
        for worker in left:
            worker.send_signal(state)
        # The system wakes up the stopped processes that a dead parent leaves, not those that stop after its death.
        wait_for(lambda: left if all(worker.status() == psutil.STATUS_STOPPED for worker in left) else [])
    process.kill()
    process.wait()
    assert not psutil.wait_procs([*left, *child], timeout=30)[1]


def wait_for(look: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    for _ in range(300):
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come")


def test_one_that_dies_while_idle_is_replaced(hire: Callable[..., Any]) -> None:
    with hire("cpu", "cpu") as made:
        for pid in made.processes:
            os.kill(pid, signal.SIGKILL)
        assert answers(made, Saying("a"), Saying("b"))["a"][0] == "a"


def test_what_cannot_load_ends_the_start(hire: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="no device 'nowhere' here; use cpu"), hire("cpu", "nowhere"):
        pass
    died = r"a worker died while it loaded \(SIGKILL.*use fewer --workers"
    with pytest.raises(InputError, match=died), hire("cpu", "deadly"):
        pass
    assert not workers()


def test_an_interruption_of_the_start_leaves_no_worker(
    hire: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = pool.WorkerPool._start

    def interrupted(self: WorkerPool, setup: Any) -> None:
        started(self, setup)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(pool.WorkerPool, "_start", interrupted)
    with pytest.raises(KeyboardInterrupt), listening(signal.SIGTERM), hire("cpu", "cpu"):
        pass
    assert not workers()


def test_a_search_ends_only_when_no_worker_can_be_had(hire: Callable[..., Any], tmp_path: Path) -> None:
    device = tmp_path / "gone"
    with hire(str(device), "cpu") as made:
        device.touch()  # who loads there dies from now on
        answers(made, Saying("a", marker=str(tmp_path / "x")), Saying("b", marker=str(tmp_path / "y")))
        assert len(answers(made, *map(Saying, "cdefg"))) == 5
    with hire(str(tmp_path / "later"), str(tmp_path / "later")) as made:
        (tmp_path / "later").touch()
        made.submit(Saying("bad", dies=True))
        made.submit(Saying("worse", dies=True))
        with pytest.raises(InputError, match="no worker is left"):
            [made.result() for _ in range(2)]


def workers(of: int | None = None) -> list[psutil.Process]:
    """The workers that this process, or another one, has started."""
    found = []
    for process in psutil.Process(of).children(recursive=True):
        try:
            if "evomerge.evaluator.worker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


class Murderer(Observer):
    """Kills a worker in the middle of the search."""

    def __init__(self) -> None:
        self.ended, self.killed = 0, 0

    def trial_started(self, trial: Trial) -> None:
        self.ended += 1
        if self.ended == 12:
            workers()[0].kill()
            self.killed += 1


@pytest.mark.slow
def test_two_workers_find_what_one_finds_though_one_of_them_is_killed(tiny_study: Study) -> None:
    space = tiny_study()
    one = evomerge.search(space, run="one", trials=20)
    observer = Murderer()
    two = evomerge.search(space, run="two", trials=20, workers=2, device="cpu", observer=observer)
    assert observer.killed == 1
    assert facts("two") == facts("one")
    assert [(t.number, t.scores) for t in two.holdout.trials] == [(t.number, t.scores) for t in one.holdout.trials]
    assert not workers()
    assert "died (SIGKILL" in two.folder.log.read_text()


@pytest.mark.slow
def test_an_asynchronous_search_that_is_interrupted_and_killed_loses_nothing(tiny_study: Study) -> None:
    tiny_study()
    command = ["search", "space.yaml", "--optimizer", "tpe", "--workers", "2", "--asynchronous", "--trials", "40"]
    left: list[psutil.Process] = []
    for stop, how in (("[7/", signal.SIGINT), ("[15/", signal.SIGKILL)):
        process = subprocess.Popen(
            [*INTERRUPTIBLE, *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(stop):
                break
        left += workers(process.pid)
        process.send_signal(how)
        rest = process.communicate(timeout=60)[1]
        assert process.returncode == (130 if how == signal.SIGINT else -how)
        assert "Traceback" not in rest
        _, alive = psutil.wait_procs(left, timeout=20)
        assert not alive
        kept = {row[0]: row for row in facts("space") if row[6] != "running"}
        assert len(kept) >= int(stop[1:-1])
        command = ["resume", "space"]
    assert len(left) == 4
    evomerge.resume("space", workers=1)
    now = facts("space")
    assert all(now[number] == row for number, row in kept.items())
    check_record(evomerge.status("space"), 40)


@pytest.mark.slow
def test_a_device_that_is_not_there_is_said_as_by_one_process(tiny_study: Study) -> None:
    with pytest.raises(InputError, match=r"--device: no device 'cuda:9[78]' here"):
        evomerge.search(tiny_study(), workers=2, device="cuda:97,cuda:98")
    assert not Path("runs").exists()
