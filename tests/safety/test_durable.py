from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

import pytest

from evomerge.safety.durable import exchange, write_whole


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


def test_a_link_that_somebody_laid_is_not_followed(tmp_path: Path) -> None:
    """In a folder that all may write, the hidden file's name can be foreseen."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".a.{os.getpid()}").symlink_to(victim)
    write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "🙂" * 63])
def test_any_name_that_a_file_can_have(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, "x")
    assert (tmp_path / name).read_text() == "x"


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(OSError, match=str(tmp_path / "a")):
        write_whole(tmp_path / "a", "x")


def test_a_handle_is_written_where_it_stands(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb", buffering=0) as stream:
        stream.write(b"before ")
        write_whole(Path(f"/dev/fd/{stream.fileno()}"), "new")
        stream.write(b" after")
    assert (tmp_path / "a").read_text() == "before new after"
    with pytest.raises(OSError, match="/dev/fd/999999"):
        write_whole(Path("/dev/fd/999999"), "x")


def test_two_folders_are_exchanged(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(OSError, match="missing"):
        exchange(tmp_path / "a", tmp_path / "missing")
