from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

import pytest

from evomerge.safety.durable import write_whole


@pytest.mark.parametrize("content", ["text é", "text é".encode(), lambda stream: stream.write("text é".encode())])
def test_a_file_is_replaced(tmp_path: Path, content: object) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("old")
    file.chmod(0o640)
    write_whole(file, content)  # type: ignore[arg-type]
    assert file.read_text(encoding="utf-8") == "text é"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["a.yaml"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_the_steps_are_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda h: (steps.append("dir" if stat.S_ISDIR(os.fstat(h).st_mode) else "file"), sync(h))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("rename"), replace(a, b)))
    write_whole(tmp_path / "a", "x")
    assert steps == ["file", "rename", "dir"]


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("old")

    def half(stream: IO[bytes]) -> None:
        stream.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(file, half)
    assert caught.value.filename == str(file)
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_full_device_is_named() -> None:
    with pytest.raises(OSError, match="/dev/full"):
        write_whole(Path("/dev/full"), "x")
