"""stdout is for a command's results: nothing else gets into it, and nothing is lost of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.cli import main
from evomerge.streams import results_only
from tests.conftest import INTERRUPTIBLE

Study = Callable[..., Path]

NOISY = """
import ctypes, os, subprocess, sys
def noise():
    os.write(1, b"noise: raw\\n")
    ctypes.CDLL(None).puts(b"noise: by C, which writes it when it likes")
    subprocess.run(["echo", "noise: by a child"])
"""


def python(program: str, shell: str = "") -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, NOISY + program]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_whatever_else_writes_there_goes_to_stderr() -> None:
    done = python("""
from evomerge.streams import results_only
with results_only():
    noise()
    print("result")
    noise()
print("after")
""")
    assert done.stdout == "result\nafter\n"
    assert done.stderr.count("noise") == 6


def test_a_reader_that_has_left_is_noticed() -> None:
    """Also where little enough is written that it fits into the buffer."""
    done = python("""
from evomerge.streams import results_only
r, w = os.pipe()
os.dup2(w, 1), os.close(w), os.close(r)
try:
    with results_only():
        print("result")
except BrokenPipeError:
    os.write(2, b"noticed")
    os.dup2(2, 1)
""")
    assert done.stderr == "noticed"


@pytest.mark.parametrize(("closed", "output"), [(">&-", ""), ("2>&-", "result\n"), ("<&- >&- 2>&-", "")])
def test_streams_that_are_closed_stay_out_of_files(closed: str, output: str, tmp_path: Path) -> None:
    done = python(
        f"""
from evomerge.streams import results_only
with results_only():
    with open({str(tmp_path / "file")!r}, "w") as file:
        noise()
        print("result")
        print("result", file=sys.stderr)
        file.write("whole")
""",
        closed,
    )
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "whole"
    assert done.stdout == output


def test_a_stream_that_is_not_the_process_stdout_stays(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with results_only():
        assert sys.stdout is before
        print("result")
    assert capsys.readouterr().out == "result\n"


@pytest.mark.slow
def test_a_reader_of_the_progress_that_has_left_costs_nothing(tiny_study: Study) -> None:
    tiny_study()
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*INTERRUPTIBLE, "search", "space.yaml", "--trials", "6", "--json"], stdout=subprocess.PIPE, stderr=writer
    )
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    output = process.communicate(timeout=300)[0]
    assert process.returncode in (0, 1)
    assert json.loads(output)["run"]


SCORER = """
import os, subprocess
calls = 0
def score(model, tokenizer, items):
    global calls
    calls += 1
    os.write(1, b"noise")
    subprocess.run(["echo", "noise"])
    if calls == 6:
        os._exit(0)
    if calls == 7:
        raise SystemExit
    if calls == 8:
        while True:
            pass
    if os.fork() == 0:
        os._exit(0)  # a process of the scorer's own may end
    os.wait()
    return [calls % 3 + item["n"] for item in items]
"""


@pytest.mark.slow
def test_a_scorer_neither_breaks_the_json_nor_ends_the_search(tiny_study: Study) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"] = {"x": {"python": "noisy:score", "data": "items.jsonl", "timeout": "1s"}}
        fitness["pruning"] = False

    space = tiny_study(change)
    Path("noisy.py").write_text(SCORER)
    Path("items.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(8)))
    command = [*INTERRUPTIBLE, "search", str(space), "--trials", "10", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0
    assert json.loads(done.stdout)["winner"]
    assert "Traceback" not in done.stderr
    failed = [line.partition(" failed: ")[2] for line in done.stderr.splitlines() if " failed: " in line]
    assert [reason.partition(" |")[0] for reason in failed] == [
        "slice x: noisy:score raised SystemExit: os._exit was called (noisy.py:10)",
        "slice x: noisy:score raised SystemExit (noisy.py:12)",
        "slice x: noisy:score did not end within 1 s",
    ]


def test_the_dry_run_and_the_run_name_the_time_limits(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    space = tiny_study(lambda space, fitness: fitness["slices"]["a"].update(timeout="2m"))
    assert main(["search", str(space), "--dry-run"]) == 0
    assert "timeouts: a 120 s" in capsys.readouterr().out
    assert main(["search", str(space), "--trials", "5"]) == 0
    assert yaml.safe_load(Path("runs/space/fitness.yaml").read_text())["slices"]["a"]["timeout"] == 120
    copy = Path("runs/space/fitness.yaml")
    copy.write_text(copy.read_text().replace("timeout: 120.0", "timeout: 5m"))  # one that had hung goes on
    assert main(["resume", "space", "--trials", "6"]) == 0
    assert main(["search", str(space), "--set", "fitness.slices.a.timeout=soon", "--run", "other"]) == 2
    assert "timeout: 'soon' is not a span of time" in capsys.readouterr().err
