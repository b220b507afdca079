"""Runs whose files were damaged: whoever reads them says which file, and never shows a traceback or an empty run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.errors import InputError
from evomerge.study.after.status import Unreadable, runs, status
from evomerge.study.run.folder import RunFolder

Study = Callable[..., Path]


@pytest.fixture
def run(tiny_study: Study) -> RunFolder:
    return evomerge.search(tiny_study(), run="old", trials=6).folder


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "[" * 99_999, '{"launch": 3}', '{"launch": {}, "more": 1}'])
def test_environment(run: RunFolder, text: str) -> None:
    run.environment.write_text(text)
    check(run, run.environment, "is damaged")


def test_values_of_the_environment(run: RunFolder) -> None:
    text = run.environment.read_text()
    for key in (
        "device",
        "memory",
        "storage",
        "study",
        "versions",
        "optimizer",
        "space",
        "trust_tasks",
        "allow_pickle",
    ):
        for value in (-1, [{}]):
            whole = json.loads(text)
            (whole["launch"] if key in whole["launch"] else whole)[key] = value
            run.environment.write_text(json.dumps(whole))
            check(run, run.environment, f"is damaged (TypeError: {key} is {value!r})")
    run.environment.write_text(json.dumps({**json.loads(text), "workers": 0}))
    check(run, run.environment, "is damaged (ValueError: workers is 0)")


def torn(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], b'{"op_code": 4, "wor\n', *lines[3:]]


def other(lines: list[bytes]) -> list[bytes]:
    return [b'"something else"\n', *lines]


def incomplete(lines: list[bytes]) -> list[bytes]:
    return [json.dumps({"op_code": 4}).encode() + b"\n", *lines]


@pytest.mark.parametrize("change", [torn, other, incomplete])
def test_a_line_of_the_journal(run: RunFolder, change: Any) -> None:
    run.journal.write_bytes(b"".join(change(run.journal.read_bytes().splitlines(keepends=True))))
    check(run, run.journal, "is damaged")


@pytest.mark.parametrize("text", [None, ""])
def test_no_journal(run: RunFolder, text: str | None) -> None:
    run.journal.unlink()
    if text is not None:
        run.journal.write_text(text)
    check(run, run.journal, "has scores, and its storage holds no study 'old'; restore ")


def check(run: RunFolder, file: Path, message: str) -> None:
    found = re.escape(message)
    for read in (status, evomerge.resume, evomerge.export, lambda name: evomerge.search("space.yaml", from_run=name)):
        with pytest.raises(InputError, match=found) as caught:
            read("old")
        assert str(file) in str(caught.value)
    [only] = runs()
    assert isinstance(only, Unreadable)
