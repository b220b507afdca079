"""Folders of task YAML: what is read of them, what is not, and how much."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import InputError, Where
from evomerge.files.objects import SliceSpec
from evomerge.scoring.preflight import check_task
from evomerge.scoring.tasks import task_files
from evomerge.scoring.tasks.task_files import scan

GOOD: dict[str, Any] = {
    "task": "good",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "metric_list": [{"metric": "acc"}],
}
BROKEN = {
    "recursion": "a: &a [*a]\ntask: recursion\n",
    "boolean": "task: boolean\nx: !!bool maybe\n",
    "integer": "task: integer\nx: !!int ''\n",
    "date": "task: date\nx: !!timestamp x\n",
    "digits": "task: digits\nx: 0x" + "1" * 6000 + "\n",
    "deep": "task: deep\nx: " + "[" * 400 + "]" * 400 + "\n",
    "aliases": "task: aliases\nx0: &x0 [1]\n"
    + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 8)),
    "list": "- task: list\n",
    "tag": "task: tag\nx: !python/name x\n",
    "itself": "task: itself\ninclude: itself.yaml\n",
    "nowhere": "task: nowhere\ninclude: missing.yaml\n",
    "number": "task: number\ninclude: 5\n",
    "folder": "task: folder\ninclude: .\n",
    "user": "task: user\ninclude: ~nosuchuser/x.yaml\n",
}  # fmt: skip
ODD: Mapping[str, dict[str, Any]] = {
    "tags that are no names": {"tag": [5, {"a": 1}, None, "fine"]},
    "a tag that is a number": {"tag": 5},
    "a path that is a list": {"dataset_path": ["json"]},
    "data files that are numbers": {"dataset_kwargs": {"data_files": 5}},
    "a name that is too long": {"dataset_kwargs": {"data_files": {"test": "a" * 300}}},
    "a zero character": {"dataset_kwargs": {"data_files": {"test": "a\0b"}}},
    "a user who is not there": {"dataset_kwargs": {"data_files": {"test": "~nosuchuser/x"}}},
    "a pattern that is none": {"dataset_kwargs": {"data_files": {"test": "a**/b*"}}},
    "metrics that are a number": {"metric_list": 5},
    "a kind that is a list": {"output_type": ["x"], "metric_list": None},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(GOOD))
    (tmp_path / "items.jsonl").write_text("{}\n")
    return tmp_path


def test_a_broken_file_is_told_only_to_those_that_want_its_task(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.files.trees.MOST_VALUES", 3_000)
    for name, text in BROKEN.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "other_name.yaml").write_text("task: elsewhere\nx: [1\n")
    os.mkfifo(folder / "pipe.yaml")
    local = scan([folder])
    check_task(SliceSpec("s", task="good", metric="acc"), local)
    for name in [*BROKEN, "elsewhere", "pipe"]:
        with pytest.raises(InputError) as caught:
            check_task(SliceSpec("s", task=name, metric="acc", where=Where("fitness.yaml", 3)), local)
        file = {"elsewhere": "other_name", "nowhere": "missing"}.get(name, name)
        if name not in ("folder", "user"):
            assert f"the task file {folder / file}.yaml cannot be read (" in str(caught.value)
        assert str(caught.value).startswith("fitness.yaml:3: the task file ")
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("case", ODD)
def test_odd_values_of_a_task(case: str, folder: Path) -> None:
    (folder / "good.yaml").write_text(yaml.safe_dump({**GOOD, **ODD[case]}))
    local = scan([folder])
    assert set(local.files) == {"good"}
    with suppress(InputError):  # whether it is wrong is lm-eval's business, but for missing data
        check_task(SliceSpec("s", task="good", metric="acc"), local)


def test_tags_and_numbers_are_read_as_lm_eval_reads_them(folder: Path) -> None:
    text = "task: code\ndoc_to_text: !function utils.prompt\nnum_fewshot: 010\nx: {2: a, yes: b}\n"
    (folder / "code.yaml").write_text(text)
    config = scan([folder]).files["code"].config
    assert config["doc_to_text"] == "!function utils.prompt"
    assert config["num_fewshot"] == 8
    assert config["x"] == {2: "a", True: "b"}


def test_the_walk_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = Where("fitness.yaml", 1, "include")
    deep = folder / "deep"
    deep.mkdir()
    (deep / "loop").symlink_to(folder)
    assert set(scan([folder], where).files) == {"good"}
    for i in range(20):
        (deep / f"{i}.txt").touch()
    monkeypatch.setattr(task_files, "_MOST_VISITED", 20)
    with pytest.raises(
        InputError, match=r"^fitness.yaml:1: include: .* holds more than 20 files and folders; include only"
    ):
        scan([folder], where)
    monkeypatch.setattr(task_files, "_MOST_VISITED", 100)
    monkeypatch.setattr(task_files, "_MOST_BYTES", 100)
    with pytest.raises(InputError, match=r"the YAML files up to .*good.yaml have more than"):
        scan([folder], where)


def test_a_task_of_many_files(folder: Path) -> None:
    for i in range(150):
        (folder / f"part{i}").write_text(f"include: part{i + 1}\n")
    (folder / "part150").write_text("x: 1\n")
    (folder / "long.yaml").write_text("task: long\ninclude: part0\n")
    assert "is the file number 101 of a task" in scan([folder]).broken["long"]
