"""Paths from outside: one line for what cannot be, the nearest folder for what is not there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import InputError, Where
from evomerge.safety.paths import absolute, expanded, folders_in, is_folder, nearest_folder, seen_from_here, status


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`models` with `base` and `one`, links to themselves and to nowhere, and a file."""
    for name in ("models/base", "models/one", "models/.hidden"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("nowhere")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("~nosuchuser/x", "~nosuchuser/x: there is no user of that name here; write the folder out"),
        ("loop", "loop: too many levels of symbolic links; a link leads to itself: replace it"),
        ("loop/x", "loop/x: too many levels of symbolic links"),
        ("a\0b", "holds characters that no path has"),
        ("a\ud800b", "holds characters that no path has"),
        ("", "an empty text is no path"),
        ("x" * 5000, "xxx...: file name too long; give a shorter name"),
        ("x/" * 3000, "...: file name too long"),
    ],
)
def test_what_cannot_be_a_path_is_one_line(folder: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as error:
        absolute(text, where=Where("space.yaml", 3, "base"))
    assert str(error.value).startswith("space.yaml:3: base: ")
    assert len(str(error.value)) < 400


def test_what_may_not_be_entered_is_one_line(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may enter all folders")
    (folder / "models").chmod(0)
    try:
        with pytest.raises(InputError, match=r"models/base: permission denied; check its permissions"):
            is_folder(folder / "models/base")
        assert folders_in(folder / "models") == []
    finally:
        (folder / "models").chmod(0o755)


def test_paths_are_made_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert absolute("../models", folder / "file/..") == folder.parent / "models"
    assert absolute("~/models") == expanded("~/models") == folder / "models"
    assert absolute("lost") == folder / "nowhere"
    assert status(Path("lost")) is None
    assert status(Path("file/x")) is None
    assert is_folder(Path("models"))
    assert not is_folder(Path("file"))


def test_the_nearest_folder(folder: Path) -> None:
    assert folders_in(folder / "models") == ["base", "one"]
    assert folders_in(folder) == ["models"]
    assert nearest_folder(Path("modles/bsae")) == Path("models/base")
    assert nearest_folder(folder / "models/bsae") == folder / "models/base"
    assert nearest_folder(Path("models/../modles/oen")) == Path("models/../models/one")
    assert nearest_folder(Path("models/xyz")) is None
    assert nearest_folder(Path("xyz/base")) is None


@given(st.text(st.characters(), max_size=40))
def test_any_text_is_a_path_or_a_line(text: str) -> None:
    said = ""
    try:
        nearest_folder(absolute(text))
    except InputError as error:
        said = str(error)
    assert not said or said.isprintable()


def test_a_path_is_written_as_seen_from_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path.cwd()
    assert seen_from_here(here / "models/base") == "models/base"
    assert seen_from_here(here / "models") == "./models"  # a bare name would be a run in ./runs
    monkeypatch.chdir(here / "models")
    assert seen_from_here(here / "file") == str(here / "file")
