"""The copy of a run's items: what it holds, what it is good for, and that nothing is lost where it fails."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import evomerge
from evomerge.cli import main
from evomerge.study.observer import Observer
from evomerge.study.run.copies import copying, items_copy
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.items import append_items, write_items
from evomerge.types import ItemScore

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))
from _damage import Drawn, free_executor, write_free_study  # noqa: E402

URL = "memory://bucket/items"

Study = Callable[..., Path]


class Said(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def study(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> MemoryFileSystem:
    """A study whose scores are a function of the recipe, and an empty object store. Candidates race: their items are
    several files."""
    tiny_study()
    write_free_study(Path(), Path("models").absolute(), "racing", 24)
    monkeypatch.setattr("evomerge.study.search.executor_of", free_executor)
    system = fsspec.filesystem("memory")
    system.store.clear()
    return system


def copied(system: Any, run: str = "study") -> dict[str, bytes]:
    files = {Path(name).name: system.cat_file(name) for name in system.find(f"/bucket/items/{run}")}
    return {name: content for name, content in files.items() if name.startswith("trial-")}


def kept(run: str = "study") -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(f"runs/{run}/items").glob("trial-*")}


def test_it_holds_the_files_of_the_run(study: MemoryFileSystem) -> None:
    said = Said()
    evomerge.search("space.yaml", run="study", copy_items=URL, observer=said)
    assert copied(study) == kept()
    evomerge.resume("study", trials=26)
    assert copied(study) == kept()
    assert said.lines == []


def test_parts_of_a_trial_come_and_go(study: MemoryFileSystem, tmp_path: Path) -> None:
    folder, said = RunFolder(tmp_path / "runs" / "study"), Said()
    folder.items.mkdir(parents=True)
    first, second = ({"a": [ItemScore(f"items/{at}", 1.0)]} for at in range(2))
    for write, names in (
        ([partial(write_items, items=first), partial(append_items, items=second)], [".", ".1."]),
        ([partial(write_items, items=second)], ["."]),
    ):
        copy = items_copy(URL, folder, said.warn)
        assert copy is not None
        with copying(copy):
            for step in write:
                step(folder.items, 7, "search")
                copy.changed(7, "search")
        assert copied(study).keys() == {f"trial-00007.search{name}parquet" for name in names}
        assert copied(study) == kept()
    assert said.lines == []


def test_lost_items_are_read_from_it(study: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    evomerge.search("space.yaml", run="study", copy_items=URL)
    before = kept()
    for name in list(before)[:5]:
        (Path("runs/study/items") / name).unlink()
    (Path("runs/study/items") / list(before)[7]).write_bytes(b"damaged")
    with monkeypatch.context() as patched:
        patched.setattr(Drawn, "answers", lambda *_: pytest.fail("an item is scored again"))
        evomerge.resume("study")
    assert kept() == before
    # What the copy has lost, too, is scored again, and copied again.
    name = next(iter(before))
    (Path("runs/study/items") / name).unlink()
    study.rm_file(f"/bucket/items/study/{name}")
    evomerge.resume("study")
    assert kept().keys() == before.keys()
    assert copied(study) == kept()


def test_a_store_that_fails_costs_nothing(study: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evomerge.search("space.yaml", run="whole")
    write = MemoryFileSystem.pipe_file

    def refuse(self: Any, path: str, value: bytes, **settings: Any) -> None:
        if "trial-" in path:
            raise PermissionError("the token has expired")
        write(self, path, value, **settings)

    said = Said()
    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "pipe_file", refuse)
        result = evomerge.search("space.yaml", run="study", copy_items=URL, observer=said)
    assert [t.scores for t in result.search.trials] == [t.scores for t in whole.search.trials]
    assert said.lines == [
        f"items cannot be copied to {URL} (the token has expired); the run has them",
        f"not all items are in {URL} (the token has expired); the run has them, and its next session copies them",
    ]
    assert copied(study) == {}
    evomerge.resume("study")
    assert copied(study) == kept()


def test_a_path_is_a_place_too_and_the_launch_remembers_it(study: MemoryFileSystem, tmp_path: Path) -> None:
    evomerge.search("space.yaml", run="study", copy_items="disk")
    assert json.loads(Path("runs/study/environment.json").read_text())["copy_items"] == f"file://{tmp_path}/disk"
    shutil.rmtree("disk")
    evomerge.resume("study", trials=26)
    assert {file.name for file in Path("disk/study").glob("trial-*")} == kept().keys()
    evomerge.resume("study", copy_items=URL)
    assert copied(study) == kept()


def test_what_is_refused(study: MemoryFileSystem, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    study.pipe_file("/bucket/items/there/trial-00000.search.parquet", b"")
    refused = {
        ("new", "nonsense://x"): "Protocol not known: nonsense); give a URL that fsspec knows, and install its package",
        ("new", "gs://bucket/items"): "Please install gcsfs",
        ("new", "ftp://me:secret@host/items"): "the URL holds a password, which a run would have to remember",
        ("new", "file"): "cannot be written",
        ("there", URL): "holds items of a run 'there' already; choose another --run NAME, or another URL",
    }
    for (run, url), said in refused.items():
        assert main(["search", "space.yaml", "--run", run, "--copy-items", url]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: --copy-items: "), line
        assert said in line
        assert "secret" not in line
        assert not Path(f"runs/{run}/environment.json").exists()
