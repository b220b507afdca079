from __future__ import annotations

import os
from pathlib import Path

import pytest

from evomerge.errors import InputError
from evomerge.safety.read import is_there, opened, parse_json, read_bytes, read_json, read_object, read_text


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"a": [1, Infinity]}')
    assert read_object(tmp_path / "a") == {"a": [1, float("inf")]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not valid JSON"),
        (b'{"a": ', "is not valid JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b"1" * 5_000, "is not valid JSON"),
        (b'"\xff"', "is not UTF-8 text"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8 text"),
        (b"[]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
    ],
)
def test_what_is_no_object(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match=problem):
        read_object(tmp_path / "a")


def test_devices_pipes_folders_and_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for file, problem in [
        (Path("/dev/zero"), "a device or a pipe"),
        (tmp_path / "pipe", "a device or a pipe"),
        (tmp_path, "is a folder"),
        (tmp_path / "none", "there is no file"),
        (tmp_path / "loop", "cannot be read"),
        (Path("a\0b"), "cannot be read"),
    ]:
        with pytest.raises(InputError, match=problem):
            read_text(file)


def test_json_in_bytes_is_utf8(tmp_path: Path) -> None:
    assert parse_json('"é"'.encode(), tmp_path) == "é"
    with pytest.raises(InputError, match="not UTF-8"):
        parse_json('{"a": 1}'.encode("utf-16"), tmp_path)


def test_the_size_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_json(tmp_path / "a", largest=5) == 12345
    with pytest.raises(InputError, match="more than"):
        read_bytes(tmp_path / "a", largest=4)


def test_whether_a_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "link").symlink_to("a")
    assert is_there(tmp_path / "a")
    assert is_there(tmp_path / "link")
    assert not is_there(tmp_path / "none")
    assert not is_there(tmp_path / "a" / "below")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, problem in [
        ("pipe", "a device or a pipe"),
        ("loop", "cannot be read"),
        ("dangling", "is a link to nothing"),
        ("", "is a folder"),
        ("x" * 300, "cannot be read"),
        ("a\0b", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=problem):
            is_there(tmp_path / name)


def test_a_stream_ends_with_its_context(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with opened(tmp_path / "a") as (stream, size):
        assert (stream.read(2), size) == (b"12", 5)
    assert stream.closed
    with pytest.raises(InputError, match=r"cannot be read \(gone\)"), opened(tmp_path / "a"):
        raise OSError(5, "gone")
