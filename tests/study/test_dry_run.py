"""A dry run refuses what a launch would refuse, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import evomerge
from evomerge.cli import main

Study = Callable[..., Path]


WRONG = {
    "misspelt run": (["--from", "frist"], "--from: no run 'frist' in "),
    "file as a run": (["--from", "space.yaml"], "--from: space.yaml is a file, not a run"),
    "trial that is not there": (["--from", "first:99"], "--from: first has no searched trial 99"),
    "storage of no kind": (["--storage", "nonsense://x"], "--storage: cannot open 'nonsense://x'"),
    "storage with a password": (
        ["--storage", "nonsense://me:se/cr@et@host/x"],
        "--storage: cannot open 'nonsense://me:***@host/x'",
    ),
    "storage nowhere": (["--storage", "sqlite:///nowhere/x.db"], "--storage: there is no folder "),
    "storage in memory": (["--storage", "sqlite://"], "--storage: it keeps the study in memory only"),
    "run that is there": (["--run", "first"], "the run 'first' is there already"),
    "run without a name": (["--run", "a b"], "--run: 'a b' has other characters"),
    "misspelt base": (["--set", "base=models/bsae"], "no folder models/bsae; did you mean the folder models/base?"),
    "misspelt folder": (["--set", "base=modles/base"], "did you mean the folder models/base?"),
    "misspelt source beside a hub id": (
        ["--set", "base=org/base", "--set", "sources.one=models/noe"],
        "did you mean the folder models/one?",
    ),
    "absent source beside a hub id": (
        ["--set", "base=org/base", "--set", "sources.one=./x"],
        "sources.one: there is no folder",
    ),
    "misspelt adapter": (["--set", "sources.one=models/one+models/tow"], "did you mean the folder models/two?"),
    "run to begin with beside a hub id": (["--set", "base=org/base", "--from", "frist"], "--from: no run 'frist'"),
    "device beside a hub id": (["--set", "base=org/base", "--device", "cuda:7"], "--device: no device 'cuda:7' here"),
}


def test_what_a_launch_refuses_and_takes(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    evomerge.search(tiny_study(), run="first", trials=6)
    before = sorted(Path().rglob("*"))
    for name, (options, said) in WRONG.items():
        for dry in (["--dry-run"], []):
            if name.endswith("beside a hub id") and name.startswith(("run", "device")) and not dry:
                continue  # the launch asks the hub first
            assert main(["search", "space.yaml", *options, *dry]) == 2, name
            printed = capsys.readouterr()
            assert said in printed.err.splitlines()[-1], name
            assert printed.out == ""
    assert main(["search", "space.yaml", "--from", "first:5", "--storage", "sqlite:///study.db", "--dry-run"]) == 0
    assert "starts from: trial 5 of first" in capsys.readouterr().out
    assert main(["search", "space.yaml", "--set", "base=org/base", "--from", "first:5", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "starts from: trial 5 of first" in printed
    assert "not checked: checkpoints (there is no folder org/base, and the hub cannot be reached" in printed
    assert sorted(Path().rglob("*")) == before


def test_a_study_of_the_storage_is_not_launched_again(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    evomerge.search(tiny_study(), run="kept", trials=5, storage="sqlite:///study.db")
    Path("runs/kept").rename("runs/away")
    for dry in (["--dry-run"], []):
        assert main(["search", "space.yaml", "--run", "kept", "--storage", "sqlite:///study.db", *dry]) == 2
        assert "the storage has a study 'kept' already" in capsys.readouterr().err
