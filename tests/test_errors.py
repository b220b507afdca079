"""Errors that nobody raises on purpose are one line, too."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from evomerge.errors import Where, describe_unexpected, system_error


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "x.json: no space left on device; free some space on its disk"),
        (errno.EROFS, "x.json: read-only file system; name a place that can be written"),
        (errno.EACCES, "x.json: permission denied; check its permissions and those of its folders"),
        (errno.ENAMETOOLONG, "x.json: file name too long; give a shorter name"),
        (errno.EMFILE, "x.json: too many open files; raise the limit of open files (`ulimit -n`)"),
        (errno.EBUSY, "x.json: device or resource busy; check the path and its disk"),
    ],
)
def test_an_error_of_the_system_names_its_file(number: int, said: str) -> None:
    error = OSError(number, os.strerror(number), "x.json")
    assert str(system_error(error)) == describe_unexpected(error) == said
    assert str(system_error(error, Where("--output"))) == f"--output: {said}"


def test_an_error_of_a_renaming_names_the_target() -> None:
    error = OSError(errno.EXDEV, "Invalid cross-device link", ".x.partial", None, "x")
    assert str(system_error(error)).startswith("x: invalid cross-device link")


def test_an_error_without_a_file_says_so() -> None:
    assert str(system_error(OSError(errno.EIO, "Input/output error"))).startswith("stdout or an open file: input")
    assert str(system_error(OSError("odd"))).startswith("stdout or an open file: odd; ")
    assert str(system_error(OSError())).startswith("stdout or an open file: OSError; ")


def test_names_are_escaped_and_shortened(tmp_path: Path) -> None:
    said = str(system_error(OSError(errno.ENOENT, "No such file or directory", f"a\x1b[31m\n{'x' * 5000}")))
    assert said.startswith("a\\x1b[31m\\nxxx")
    assert said.isprintable()
    assert len(said) < 400


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        Path("runs").resolve()
    assert str(system_error(caught.value)) == "the current folder: no such file or directory; check the path"
