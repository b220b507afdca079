"""A hidden folder takes its target's place: in one step, with its writers killed for real, and several at once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evomerge.checkpoints import partial
from evomerge.checkpoints.partial import PartialFolder, sweep


def put(target: Path, text: str) -> None:
    folder = PartialFolder(target)
    try:
        (folder.path / "file").write_text(text)
        folder.put()
    finally:
        folder.drop()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture(params=[True, False], ids=["exchanged", "renamed twice"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A target on a file system that can exchange two folders, and on one that cannot."""
    if not request.param:
        monkeypatch.setattr(partial, "exchange", lambda one, other: False)
    return tmp_path / "out"


def test_a_folder_takes_the_place(target: Path) -> None:
    for text in ("first", "second"):
        put(target, text)
        assert (target / "file").read_text() == text
        assert names(target.parent) == ["out"]


def test_what_fails_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    put(target, "old")
    rename = os.rename

    def refused(one: Path, other: Path) -> None:
        if Path(other) == target and not Path(one).name.endswith(".replaced"):
            raise PermissionError(13, "Permission denied")
        rename(one, other)

    folder = PartialFolder(target)
    (folder.path / "file").write_text("new")
    monkeypatch.setattr(os, "rename", refused)
    monkeypatch.setattr(partial, "exchange", lambda one, other: False)
    try:
        with pytest.raises(PermissionError):
            folder.put()
    finally:
        folder.drop()
    assert (target / "file").read_text() == "old"
    assert names(target.parent) == ["out"]


def test_folders_above_that_were_made_go_again(tmp_path: Path) -> None:
    PartialFolder(tmp_path / "a" / "b" / "out").drop()
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "[a]*", ".hidden"])
def test_any_name_of_a_folder_is_possible(tmp_path: Path, name: str) -> None:
    PartialFolder(tmp_path / name)  # left as by a killed process: its handle is lost
    put(tmp_path / name, "x")
    assert (tmp_path / name / "file").read_text() == "x"


KILLED = """
import os, signal, sys
from pathlib import Path
from evomerge.checkpoints import partial
count = at = 0
def counted(call):
    def step(*args, **options):
        global count
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return call(*args, **options)
    return step
fork, leave = os.fork, os._exit
partial.exchange = counted(partial.exchange if sys.argv[2] == "exchange" else lambda one, other: False)
real = {name: getattr(os, name) for name in ("rename", "mkdir", "unlink", "open", "rmdir", "close")}
for at in range(60):
    target = Path(sys.argv[1]) / str(at) / "out"
    target.mkdir(parents=True)
    (target / "file").write_text("old")
    pid = fork()
    if not pid:
        for name, call in real.items():
            setattr(os, name, counted(call))
        folder = partial.PartialFolder(target)
        (folder.path / "file").write_text("new")
        folder.put()
        folder.drop()
        leave(0)
    ended = os.waitpid(pid, 0)[1]
    partial.sweep(target)
    print((target / "file").read_text(), os.listdir(target), os.listdir(target.parent))
    if not ended:
        break
"""


@pytest.mark.parametrize("way", ["exchange", "rename"])
def test_a_writer_that_is_killed_at_any_step_leaves_the_old_folder_or_the_new_one(tmp_path: Path, way: str) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), way]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    old, new = ([f"{text} ['file'] ['out']"] for text in ("old", "new"))
    first = lines.index(*new)
    assert first > 3
    assert lines == old * first + new * (len(lines) - first)  # old up to some step, new after it
    assert first + 3 < len(lines) < 60


BUSY = """
import os, sys, time
from pathlib import Path
from evomerge.checkpoints.partial import PartialFolder
target = Path(sys.argv[1])
for number in range(10_000):
    folder = PartialFolder(target)
    file = folder.path / "file"
    file.write_text("x" * 100)
    time.sleep(0.001)
    if not file.exists():
        print("a living writer's folder is gone", flush=True)
    try:
        folder.put()
    except OSError:
        pass  # another one was faster
    folder.drop()
"""


def test_writers_sweepers_and_kills_at_once(tmp_path: Path) -> None:
    """Five processes write one target, and are killed and replaced: none loses its folder to another's sweep, the
    target is whole whenever it is there, and nothing is left."""
    target, draw = tmp_path / "out", random.Random(0)
    command = [sys.executable, "-c", BUSY, str(target)]
    said = []

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    running = [start() for _ in range(5)]
    ends = time.monotonic() + 3
    while time.monotonic() < ends:
        time.sleep(0.15)
        victim = running.pop(draw.randrange(len(running)))
        victim.kill()
        said.append(victim.communicate()[0])
        running.append(start())
    for victim in running:
        victim.kill()
        said.append(victim.communicate()[0])
    assert "".join(said) == ""
    sweep(target)
    assert names(tmp_path) == ["out"]
    assert (target / "file").read_text() == "x" * 100
