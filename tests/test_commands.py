"""Where results are written: `-o` and `--items`, whole or not at all, and never at the price of the results."""

from __future__ import annotations

import errno
import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge import commands, run_commands
from evomerge.cli import main
from tests.faults import failing

Study = Callable[..., Path]
Said = pytest.CaptureFixture[str]
EVALUATE = ["evaluate", "models/one", "--fitness", "fitness.yaml", "--reference", "base=models/base"]
PATH = ["path", "models/one", "models/two", "--fitness", "fitness.yaml", "--reference", "base=models/base"]
PATH += ["--points", "2"]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """What `evaluate` and `path` have returned: computed once."""
    return {}


@pytest.fixture
def study(tiny_study: Study, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("evaluate", "path"):
        real = getattr(commands, name)

        @functools.wraps(real)
        def once(*args: Any, real: Any = real, name: str = name, **options: Any) -> Any:
            if name not in results:
                results[name] = real(*args, **options)
            return results[name]

        monkeypatch.setattr(commands, name, once)
    return tiny_study()


@pytest.fixture
def run(study: Path, results: dict[str, Any]) -> Path:
    """A finished run, with files of an earlier test."""
    if "run" not in results:
        assert main(["search", str(study), "--run", "kept", "--trials", "6"]) == 0
        results["run"] = {p.relative_to("runs"): p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()}
    for name, content in results["run"].items():
        (Path("runs") / name).parent.mkdir(parents=True, exist_ok=True)
        (Path("runs") / name).write_bytes(content)
    return Path("runs/kept")


COMMANDS = [
    ([*EVALUATE, "-o", "out/x.json"], "out/x.json"),
    ([*EVALUATE, "--items", "out/x.jsonl"], "out/x.jsonl"),
    ([*EVALUATE, "--items", "out/x.parquet"], "out/x.parquet"),
    ([*PATH, "-o", "out/x.png"], "out/x.png"),
    (["rank", "kept", "--fitness", "fitness.yaml", "-o", "out/x.yaml"], "out/x.yaml"),
    (["export", "kept", "-o", "out/x.yaml"], "out/x.yaml"),
]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize(("words", "name"), COMMANDS)
def test_every_write_of_a_file_fails_in_turn(words: list[str], name: str, error: int, run: Path, capsys: Said) -> None:
    Path("out").mkdir()
    file, folder = Path(name), Path("out").resolve()
    assert main([*words, "--json"]) == 0
    healthy, whole = capsys.readouterr().out, file.read_bytes()
    file.write_text("old")
    with failing(folder) as steps:
        main(words)
    assert len(steps.steps) > 4
    for at in range(len(steps.steps)):
        file.write_text("old")
        capsys.readouterr()
        with failing(folder, at, error=error) as disk:
            code = main([*words, "--json"])
        said = capsys.readouterr()
        wrong = [line for line in said.err.splitlines() if line.startswith("error:")]
        if code == 0:  # nothing was asked of the disk any more
            assert not wrong
            assert file.read_bytes() == whole
            continue
        assert (code, len(wrong)) == (2, 1), (disk.failed, said.err)
        assert name in wrong[0]
        assert "Traceback" not in said.err
        assert file.read_text() == "old"
        assert error != errno.ENOSPC or [p.name for p in Path("out").iterdir()] == [file.name]
        if words[0] != "export":  # which says the same without -o
            told, expected = json.loads(said.out), json.loads(healthy)
            assert told == {**expected, "figure": None} if words[0] == "path" else told == expected


@pytest.mark.parametrize(("words", "name"), COMMANDS[:-1])
def test_a_folder_that_is_gone_meanwhile_costs_no_result(
    words: list[str], name: str, run: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out").mkdir()
    real = commands.output_file

    def then_gone(*args: Any, **options: Any) -> Any:
        file = real(*args, **options)
        if file is not None:
            Path("out").rmdir()
        return file

    for module in (commands, run_commands):
        monkeypatch.setattr(module, "output_file", then_gone)
    assert main(words) == 2
    said = capsys.readouterr()
    assert name in said.err
    assert len(said.out.splitlines()) > 3


@pytest.mark.parametrize("words", [EVALUATE, ["export", "kept"], ["rank", "kept", "--fitness", "fitness.yaml"]])
def test_devices_pipes_and_links(words: list[str], run: Path, capsys: Said) -> None:
    assert main([*words, "-o", "plain"]) == 0
    wanted = Path("plain").read_text()
    assert main([*words, "-o", "/dev/null"]) == 0
    assert main([*words, "-o", "/dev/full"]) == 2
    assert "/dev/full" in capsys.readouterr().err
    Path("far").mkdir()
    Path("link").symlink_to("far/file")
    for _ in range(2):
        assert main([*words, "-o", "link"]) == 0
        assert Path("link").is_symlink()
        assert Path("far/file").read_text() == wanted
    os.mkfifo("pipe")
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.append(Path("pipe").read_text()))
    listener.start()
    assert main([*words, "-o", "pipe"]) == 0
    listener.join(60)
    assert heard == [wanted]
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize("how", ["pipe", "file", "appended file"])
def test_standard_output_as_a_file(how: str, run: Path) -> None:
    """What is printed and what is written stand one after the other, not over one another."""
    command = [sys.executable, "-m", "evomerge", "rank", "kept", "--fitness", "fitness.yaml", "-o", "/dev/stdout"]
    if how == "pipe":
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    else:
        Path("all.txt").write_text("before\n")
        with Path("all.txt").open("a" if how == "appended file" else "w") as stream:
            subprocess.run(command, check=True, stdout=stream)
        told = Path("all.txt").read_text()
        assert told.startswith("before\n") == (how == "appended file")
    assert told.count("merge_method:") == 1
    assert "winner on the holdout split" in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*EVALUATE, "-o", "fitness.yaml"], "fitness.yaml is read"),
        ([*EVALUATE, "-o", "link"], "link is read"),
        ([*EVALUATE, "-o", "x.jsonl", "--items", "x.jsonl"], "x.jsonl"),
        ([*EVALUATE, "-o", "tasks"], "tasks is a folder"),
        ([*EVALUATE, "-o", "nowhere/x"], "no folder nowhere"),
        ([*EVALUATE, "-o", "dangling"], "no folder"),
        (["rank", "kept", "--fitness", "fitness.yaml", "-o", "fitness.yaml"], "fitness.yaml is read"),
    ],
)
def test_a_file_that_cannot_be_is_told_before_anything_is_computed(
    words: list[str], said: str, study: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("link").symlink_to("fitness.yaml")
    Path("dangling").symlink_to("nowhere/x")
    before = Path("fitness.yaml").read_bytes()
    monkeypatch.setattr(commands, "call", lambda *_, **__: pytest.fail("it was computed"))
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert Path("fitness.yaml").read_bytes() == before
