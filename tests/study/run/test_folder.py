"""Names of runs: what a new one may be called, and what is said where there is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evomerge.errors import InputError
from evomerge.study.run.folder import RunFolder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs `space` and `elsewhere/other`, files and a model."""
    for run in ("runs/space", "elsewhere/other"):
        (tmp_path / run / "items").mkdir(parents=True)
        for name in ("environment.json", "space.yaml"):
            (tmp_path / run / name).write_text("{}")
    for name in ("space.yaml", "new.yaml", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "models/base").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ABSENT = {
    "spaec": "did you mean 'space'?",
    "elsewhere/ohter": "elsewhere; did you mean 'other'?",
    "space.yaml": "space.yaml is a file, not a run; did you mean the run 'space'?",
    "new.yaml": "new.yaml is a file, not a run; `evomerge search new.yaml` launches one",
    "notes.txt": "notes.txt is no run; `evomerge status` lists the runs",
    "runs/space/space.yaml": "runs/space/space.yaml is a part of a run, not a run; give its folder: space",
    "runs/space/items": "is a part of a run, not a run; give its folder: space",
    "elsewhere/other/items/": "is a part of a run, not a run; give its folder: elsewhere/other",
    "runs": "runs is a folder of runs, not a run; use one of: space",
    "./elsewhere": "./elsewhere is a folder of runs, not a run; use one of: elsewhere/",
    "models/base": "models/base is no run; `evomerge status` lists the runs",
    "nowhere/x": "nowhere; launch one with `evomerge search`",
    "~nosuchuser/x": "there is no user of that name here",
    "loop/x": "loop/x: too many levels of symbolic links",
    "a" * 300: "file name too long",
}


@pytest.mark.parametrize("run", ABSENT)
def test_what_is_no_run_is_told_with_what_to_do(run: str) -> None:
    with pytest.raises(InputError, match=re.escape(ABSENT[run])) as error:
        RunFolder.existing(run)
    assert str(error.value).isprintable()


def test_runs_are_found_by_name_and_by_path(folder: Path) -> None:
    assert RunFolder.existing("space").path == folder / "runs/space"
    for path in ("elsewhere/other", "runs/../elsewhere/other/", folder / "elsewhere/other"):
        assert RunFolder.existing(path).path == folder / "elsewhere/other"


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("", "--run: '' is empty, so it cannot name a run; use letters"),
        ("a b", "--run: 'a b' has other characters than letters, digits, ., - and _, so it cannot name a run"),
        ("a\nb", "--run: 'a\\nb' has characters that do not print"),
        ("new\n", "--run: 'new\\n' has characters that do not print"),
        ("\x1b[31mred", "--run: '\\x1b[31mred' has characters that do not print"),
        ("-x", "begins with '-'"),
        (".x", "begins with '.'"),
        ("x" * 200, "has 200 characters"),
        ("elsewhere/a b", "--run: 'a b' has other characters"),
        ("~nosuchuser/x", "--run: ~nosuchuser/x: there is no user"),
        ("space", "the run 'space' is there already"),
        ("elsewhere/other", "the run 'other' is there already"),
        ("./models", "holds files that are no run's"),
        ("space.yaml/x", "is no folder that can be written"),
    ],
)
def test_what_cannot_be_a_new_run(run: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        RunFolder.launched(run, "new.yaml")


def test_a_new_run_by_name_by_path_and_by_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    for run, path in {
        None: "runs/new",
        "x.1-a_b": "runs/x.1-a_b",
        "../beside": "../beside",
        str(folder / "q/x"): "q/x",
        "~/x": "home/x",
    }.items():
        assert RunFolder.launched(run, "sub/new.yaml").path == (folder / path).resolve()
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["elsewhere", "models", "runs"]


def test_a_file_whose_name_is_none_for_a_run_says_how_to_name_it() -> None:
    Path("my space.yaml").write_text("")
    with pytest.raises(InputError, match=r"'my space' has other .*; give it a name by --run NAME"):
        RunFolder.launched(None, "my space.yaml")
    with pytest.raises(InputError, match="the run 'space' is there already"):
        RunFolder.launched(None, "space.yaml")
    for absent in ("space.yml", "nowhere/space.yaml", "my  space"):
        RunFolder.launched(None, absent)  # no such file, which its reader tells
