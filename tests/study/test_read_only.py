"""A run that may be read and not written: on a read-only file system, and in a folder of somebody else."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli import main

Study = Callable[..., Path]
Ran = tuple[Any, str, str]
READING = [
    ["status", "kept"],
    ["status"],
    ["export", "kept"],
    ["rank", "kept", "--fitness", "fitness.yaml"],
    ["compare", "kept", "base"],
]
WRITING = [["resume", "kept", "--trials", "8"], ["resume", "kept"], ["search", "space.yaml", "--run", "new"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, for both tests."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def study(tiny_study: Study, finished: Path) -> Iterator[Path]:
    """A folder that other users may enter, unlike those of pytest, with a study and its finished run."""
    space = tiny_study()
    if not (finished / "runs").is_dir():
        assert main(["search", str(space), "--run", "kept", "--trials", "6"]) == 0
        shutil.copytree("runs", finished / "runs")
    place = Path(tempfile.mkdtemp())
    shutil.copytree(space.parent, place, dirs_exist_ok=True)
    shutil.copytree(finished / "runs", place / "runs", dirs_exist_ok=True)
    for file in (place, *place.rglob("*")):
        file.chmod(0o644 if file.is_file() else 0o755)
    os.chdir(place)  # tiny_study's monkeypatch leads back
    yield place
    for folder in (place / "runs", place / "runs" / "kept", place / "runs" / "kept" / "items"):
        folder.chmod(0o755)
    shutil.rmtree(place)


def check(run: Callable[[list[str]], Ran], place: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (place / "runs").rglob("*")}
    for words in READING:
        code, out, err = run(words)
        assert code == 0, (words, err)
        assert out.strip()
        assert "error" not in err
    for words in WRITING:
        code, _, err = run(words)
        wrong = [line for line in err.splitlines() if line.startswith("error:")]
        assert (code, len(wrong)) == (2, 1), (words, code, err)
        assert "runs" in wrong[0]
        assert "Traceback" not in err
    assert before == {p: p.stat().st_mtime_ns for p in (place / "runs").rglob("*")}


def test_on_a_read_only_file_system(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = str(study / "runs")
    mounted = ["mount", "--bind", runs, runs], ["mount", "-o", "remount,ro,bind", runs]
    if any(subprocess.run(command, capture_output=True, check=False).returncode for command in mounted):
        subprocess.run(["umount", "-l", runs], capture_output=True, check=False)
        pytest.skip("needs the right to mount a file system")
    capsys.readouterr()

    def run(words: list[str]) -> Ran:
        code = main(words)
        return code, *capsys.readouterr()

    try:
        check(run, study)
    finally:
        subprocess.run(["umount", "-l", runs], check=False)


def test_in_a_folder_of_another_user(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As root, a child that has become a plain user asks; the others may write nothing in their own folder either."""
    for words in (*READING[2:], WRITING[0]):
        main(words)  # imports everything: a plain user may not read where it stands
    for file in ((study / "runs"), *(study / "runs").rglob("*")):
        file.chmod(0o444 if file.is_file() else 0o555)
    capsys.readouterr()

    def run(words: list[str]) -> Ran:
        if os.geteuid() != 0:
            code = main(words)
            return code, *capsys.readouterr()
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            try:
                os.setgid(65534)
                os.setuid(65534)
                code = main(words)
            except BaseException as error:
                code = repr(error)
            with os.fdopen(writer, "wb") as stream:
                pickle.dump((code, *capsys.readouterr()), stream)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            told: Ran = pickle.loads(stream.read())
        os.waitpid(pid, 0)
        return told

    check(run, study)
