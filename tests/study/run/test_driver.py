"""Who drives a run: told by its lock, without touching it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evomerge.errors import BusyError
from evomerge.study.run.driver import driver
from evomerge.study.run.folder import RunFolder

HOLD = """
import sys; from pathlib import Path; from evomerge.study.run.folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the run's lock."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def write_holder(path: Path, **facts: object) -> None:
    path.joinpath("run.lock").touch()
    path.joinpath("run.lock.json").write_text(json.dumps(facts))


def test_a_run_is_driven_while_its_lock_is_held(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert driver(folder) is None
    with held(tmp_path) as process:
        found = driver(folder)
        assert found is not None
        assert (found.process, found.host, found.certain) == (process.pid, platform.node(), True)
        assert str(found).startswith(f"process {process.pid} on {platform.node()} since 20")
    # It was killed: what it wrote is there still, and counts for nothing.
    assert folder.path.joinpath("run.lock.json").exists()
    assert driver(folder) is None


def test_looking_changes_nothing_and_keeps_nobody_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.lock():
        before = sorted((p.name, p.stat().st_mtime_ns) for p in tmp_path.iterdir())
        assert driver(folder) is not None
        assert sorted((p.name, p.stat().st_mtime_ns) for p in tmp_path.iterdir()) == before
        with pytest.raises(BusyError):
            folder.lock().__enter__()
    assert driver(folder) is None
    with folder.lock():
        pass


def test_another_hosts_lock_may_be_invisible(tmp_path: Path) -> None:
    write_holder(tmp_path, pid=12, host="far-away", since="2024-05-06 07:08:09")
    found = driver(RunFolder(tmp_path))
    assert found is not None
    assert not found.certain
    assert str(found) == "process 12 on far-away since 2024-05-06 07:08:09, as far as can be seen from here"


def test_a_reused_process_number_is_not_the_driver(tmp_path: Path) -> None:
    write_holder(tmp_path, pid=os.getpid(), host=platform.node(), since="2024-05-06 07:08:09")
    assert driver(RunFolder(tmp_path)) is None


def test_a_damaged_holder_is_another_process(tmp_path: Path) -> None:
    with held(tmp_path):
        for content in ("", "[]", '{"pid": "x"}', '{"pid": -1, "host": "h", "since": "s"}', "\0", "1" * 9999):
            tmp_path.joinpath("run.lock.json").write_text(content)
            assert str(driver(RunFolder(tmp_path))) == "by another process"
    assert driver(RunFolder(tmp_path)) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_plain_user_sees_it_in_a_folder_that_he_cannot_write(tmp_path: Path) -> None:
    # Of pytest's folders only their owner may look into.
    script = """import os, sys; from pathlib import Path; from evomerge.study.run.driver import driver
from evomerge.study.run.folder import RunFolder; folder = RunFolder(Path(sys.argv[1]))
os.setuid(65534); print(driver(folder))"""
    for parent in [tmp_path, *tmp_path.parents][:4]:
        parent.chmod(0o755)

    def seen() -> str:
        command = [sys.executable, "-c", script, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with held(tmp_path) as process:
        assert seen().startswith(f"process {process.pid} on ")
    assert seen() == "None\n"
