"""Folders of a process: gone with their owner, or with the next folder of their kind."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from pathlib import Path

from evomerge.safety.own_folder import OwnFolder, remove_own_folders

PREFIX = "evomerge-test-"


def owner(parent: Path, then: str) -> subprocess.Popen[bytes]:
    code = f"""
import sys, time
from pathlib import Path
from evomerge.safety.own_folder import OwnFolder
folder = OwnFolder({PREFIX!r}, Path({str(parent)!r}))
(folder.path / "file").write_text("x")
print("made", flush=True)
{then}
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"made\n"
    return process


def test_it_is_gone_with_its_owner(tmp_path: Path) -> None:
    one, two = OwnFolder(PREFIX, tmp_path), OwnFolder(PREFIX, tmp_path)
    (one.path / "inner").mkdir()
    one.remove()
    one.remove()
    assert list(tmp_path.iterdir()) == [two.path]
    del two
    gc.collect()
    assert not list(tmp_path.iterdir())
    owner(tmp_path, "").wait(60)
    assert not list(tmp_path.iterdir())


def test_those_of_killed_processes_go_with_the_next_one(tmp_path: Path) -> None:
    with owner(tmp_path, "time.sleep(60)") as killed, owner(tmp_path, "time.sleep(60)") as alive:
        (tmp_path / "another").mkdir()
        assert len(list(tmp_path.iterdir())) == 3
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        OwnFolder(PREFIX, tmp_path).remove()
        assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 1
        assert (tmp_path / "another").is_dir()
        alive.kill()


def test_all_go_before_a_process_kills_itself(tmp_path: Path) -> None:
    folders = [OwnFolder(PREFIX, tmp_path) for _ in range(2)]
    remove_own_folders()
    assert not any(folder.path.exists() for folder in folders)
