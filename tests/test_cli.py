"""The command line: results on stdout, progress on stderr, exit codes, --json, quick answers."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.cli import COMMANDS, OPTIONS, main, parser
from tests.conftest import INTERRUPTIBLE

Study = Callable[..., Path]
HEAVY = {"torch", "transformers", "lm_eval", "pandas", "cma", "datasets", "matplotlib", "plotly"}

REQUIRED = "required"
SWITCHES = (
    "cuda gpu-rich unsafe-truncate-embeddings allow-crimes quiet safe-serialization clone-tensors lazy-unpickle"
    " async-write low-cpu-memory read-to-gpu trust-remote-code multi-gpu lazy"
)
VALUES = "--transformers-cache --lora-merge-cache --lora-merge-dtype --write-threads --out-path"
FLAGS: dict[str, dict[str, Any]] = {
    "quickstart": {"--dir": "evomerge-quickstart", "--trials": None, "--device": "auto"},
    "init": {
        **dict.fromkeys(["--fitness", "--trials", "--from-mergekit-evolve"]),
        "--tasks": [],
        **dict.fromkeys(["-o", "--output"], "space.yaml"),
        **dict.fromkeys(["--force", "--allow-pickle"], False),
    },
    "check": {
        "--require-token": [],
        **dict.fromkeys(["--figure", "--memory"]),
        "--device": "auto",
        "--allow-pickle": False,
    },
    "search": {
        **dict.fromkeys(
            [
                "--run",
                "--trials",
                "--time",
                "--items",
                "--optimizer",
                "--seed",
                "--memory",
                "--fitness",
                "--storage",
                "--copy-items",
                "--from",
            ]
        ),
        "--device": "auto",
        "--workers": None,
        "--ray": None,
        "--set": [],
        "--tasks": [],
        "--track": [],
        **dict.fromkeys(["--asynchronous", "--full", "--dry-run", "--trust-tasks", "--allow-pickle"], False),
    },
    "resume": dict.fromkeys(
        ["--trials", "--time", "--items", "--device", "--memory", "--workers", "--ray", "--copy-items", "--track"]
    ),
    "status": {"--watch": False, "--runs": "runs"},
    "dashboard": {"--port": 8080, "--host": "127.0.0.1"},
    "export": {
        **dict.fromkeys(["-o", "--output", "--trial", "--checkpoint", "--rank", "--push-to-hub"]),
        "--device": "cpu",
        **dict.fromkeys(["--allow-infeasible", "--portable", "--as-adapter", "--overwrite", "--public"], False),
    },
    "rank": {"--fitness": REQUIRED, "-o": None, "--output": None},
    "compare": {"--split": None, "--slice": [], "--answers": False, "--most": None},
    "report": dict.fromkeys(["-o", "--output", "--compare"]),
    "merge": {
        "--device": "cpu",
        "--out-shard-size": "5GB",
        **dict.fromkeys(["-j", "--num-threads", "--random-seed", "-I", "--intermediate-dir", "--rank"]),
        **dict.fromkeys([f"--{no}{name}" for name in SWITCHES.split() for no in ("", "no-")], False),
        **dict.fromkeys(
            [f"--{no}{name}" for name in ("copy-tokenizer", "write-model-card") for no in ("", "no-")], True
        ),
        **dict.fromkeys(["--as-adapter", "--overwrite", "-v", "--allow-pickle", "--public"], False),
        **dict.fromkeys([*VALUES.split(), "--push-to-hub"]),
    },
    "reproduce": {
        "--models": [],
        **dict.fromkeys(["-o", "--output"]),
        "--device": "cpu",
        "--allow-pickle": False,
    },
    "evaluate": {
        "--fitness": REQUIRED,
        "--split": "holdout",
        "--reference": [],
        "--prompt": [],
        "--device": "auto",
        **dict.fromkeys(["-o", "--output", "--items", "--memory"]),
        **dict.fromkeys(["--eval-results", "--trust-tasks", "--allow-pickle"], False),
    },
    "doctor": {
        **dict.fromkeys(["--fitness", "--base", "-o", "--output", "--memory"]),
        "--source": [],
        "--prompt": [],
        "--split": "holdout",
        "--device": "auto",
        **dict.fromkeys(["--quick", "--trust-tasks", "--allow-pickle"], False),
    },
    "path": {
        "--fitness": REQUIRED,
        "--split": "holdout",
        "--reference": [],
        "--points": 11,
        "--from": 0.0,
        "--to": 1.0,
        "-o": "path.png",
        "--output": "path.png",
        "--device": "auto",
        "--memory": None,
        "--trust-tasks": False,
        "--allow-pickle": False,
    },
    "extract": {
        "--rank": REQUIRED,
        "--device": "cpu",
        **dict.fromkeys(["--overwrite", "--allow-pickle"], False),
    },
    "align": {
        **dict.fromkeys(["--spec", "--fitness", "--memory"]),
        "--seed": 0,
        "--device": "auto",
        **dict.fromkeys(["--overwrite", "--trust-tasks", "--allow-pickle"], False),
    },
}
"""Command -> flag -> default."""

HANDLED: dict[str, set[str]] = {
    "search": {"full", "dry_run", "tasks"},
    "check": {"figure"},
    "status": {"runs", "watch"},
    "merge": {"cuda", "hub_cache", "out_path", "quiet", "without_effect", "values_without_effect"},
    "evaluate": {"output", "items"},
    "doctor": {"output"},
    "path": {"output"},
}
"""The options that the command line handles by itself; all others are parameters of the Python function."""


FUNCTIONS = {"report": "write_report"}
"""The functions that have another name than their command: `evomerge.report` is a package."""


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_keeps_its_spelling_and_its_default(name: str) -> None:
    commands = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert list(commands) == list(FLAGS)
    found = {
        flag: REQUIRED if option.required else option.default
        for option in commands[name]._actions
        for flag in option.option_strings
    }
    assert found == {"-h": argparse.SUPPRESS, "--help": argparse.SUPPRESS, "--json": False, **FLAGS[name]}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_reaches_the_function_of_its_command(name: str) -> None:
    command = COMMANDS[name]
    names = {OPTIONS[option][1].get("dest", option) for option in command.options}
    parameters = inspect.signature(getattr(evomerge, FUNCTIONS.get(name, name))).parameters
    assert (names | {*command.positionals}) - HANDLED.get(name, set()) <= {*parameters}
    assert {*command.overrides} <= {*command.options}


def imported_by(*arguments: str, cwd: Path | None = None, among: set[str] = HEAVY) -> set[str]:
    """The heavy packages that a command imports."""
    code = f"import sys; from evomerge.cli import main\ntry: main({list(arguments)!r})\nexcept SystemExit: pass\n"
    code += "print(' '.join(m for m in sys.modules if '.' not in m), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=True)
    return among & set(done.stderr.splitlines()[-1].split())


def test_help_and_errors_import_nothing_heavy(tmp_path: Path) -> None:
    more = {*HEAVY, "numpy", "optuna", "rich"}
    assert imported_by("--help", among=more) == set()
    assert imported_by("search", "nothing.yaml", "--dry-run", cwd=tmp_path, among=more) == set()
    assert imported_by("search", "nothing.yaml", cwd=tmp_path) == set()
    for command in (["evaluate", "model"], ["path", "a", "b"]):
        assert imported_by(*command, "--fitness", "nothing.yaml", cwd=tmp_path) == set()


def test_status_and_input_errors_import_nothing_heavy(tiny_study: Study) -> None:
    space = tiny_study()
    evomerge.search(space, trials=5)
    assert imported_by("status") == set()
    assert imported_by("status", "space") == set()
    assert imported_by("export", "space") == set()
    space.write_text(space.read_text().replace("task_arithmetic", "task_arithmetik"))
    assert imported_by("search", "space.yaml", "--run", "x") == set()


def test_search_prints_the_table_and_the_next_step(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_study()
    assert main(["search", "space.yaml"]) == 0
    out = capsys.readouterr().out
    for word in ("base", "one", "two", "uniform average", "winner", "floor", "acc"):
        assert word in out
    assert "`evomerge export space -o best.yaml`" in out


def test_search_without_a_winner_exits_1_and_names_the_floors(
    tiny_study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    def impossible(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["a"]["floor"] = 1.0

    tiny_study(impossible)
    assert main(["search", "space.yaml"]) == 1
    said = capsys.readouterr().out
    assert "no winner" in said
    assert re.search(r"closest is .*: a 0\.\d+, floor 1\.0000", said)
    assert main(["export", "space"]) == 1
    assert "misses the floor of a" in capsys.readouterr().err
    assert main(["export", "space", "--allow-infeasible"]) == 0


def test_json_is_one_document(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_study()
    commands = [
        ["search", "space.yaml", "--dry-run"],
        ["search", "space.yaml"],
        ["status"],
        ["status", "space"],
        ["resume", "space"],
        ["export", "space", "-o", "best.yaml"],
        ["merge", "best.yaml", "out"],
        ["evaluate", "out", "--fitness", "fitness.yaml", "--reference", "base=models/base"],
    ]
    printed = []
    for command in commands:
        assert main([*command, "--json"]) == 0, command
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[1]["winner"]["digest"] == printed[7]["digest"]
    assert printed[3]["winner"] == printed[1]["winner"]["trial"]
    assert len(printed[3]["search"]["trials"]) == 12


def test_evaluate_exits_1_when_a_gate_fails(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    def strict(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["b"]["floor"] = 0.99

    tiny_study(strict)
    assert main(["evaluate", "models/one", "--fitness", "fitness.yaml"]) == 1
    assert "miss" in capsys.readouterr().out


def test_dry_run_writes_nothing(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_study()
    assert main(["search", "space.yaml", "--dry-run"]) == 0
    assert "4 searched values" in capsys.readouterr().out
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_search_says_how_to_go_on(tiny_study: Study, how: signal.Signals) -> None:
    tiny_study()
    command = [*INTERRUPTIBLE, "search", "space.yaml", "--trials", "2000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[6/"):
            break
    process.send_signal(how)
    out, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest.splitlines()[-1] == "interrupted: every finished trial is kept; go on with `evomerge resume space`"
    assert "Traceback" not in rest
    assert out == ""
    state = evomerge.status("space")
    done = sum(t.state in ("complete", "pruned") for t in state.search.trials)
    assert done >= 6
    assert main(["resume", "space", "--trials", str(done + 2)]) == 0


@pytest.mark.slow
def test_killed_runs_resume_as_if_nothing_had_happened(tiny_study: Study) -> None:
    """Real processes, killed for real."""
    tiny_study()
    trials = 30
    evomerge.search("space.yaml", run="whole", trials=trials)
    arguments = ["search", "space.yaml", "--run", "pieces", "--trials", str(trials)]
    for stop in ("[2/", "[9/", "[20/"):
        process = subprocess.Popen(
            [sys.executable, "-m", "evomerge", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(stop):
                break
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        arguments = ["resume", "pieces"]
    evomerge.resume("pieces")
    facts = [
        [(t.number, t.label, t.genome, t.recipe_id, t.digest, t.scores) for t in evomerge.status(run).search.trials]
        for run in ("whole", "pieces")
    ]
    assert facts[0] == facts[1]
    assert len(facts[0]) == trials


def test_status_of_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 0
    assert "no runs" in capsys.readouterr().out


REFUSED: dict[str, list[str]] = {
    # command -> a line that it must refuse
    "quickstart": ["--trials", "0"],
    "init": ["base", "source", "--tasks", "absent.yaml"],
    "check": ["nothing.yaml"],
    "search": ["nothing.yaml"],
    "resume": ["nothing"],
    "status": ["nothing"],
    "dashboard": ["nothing"],
    "export": ["nothing"],
    "rank": ["nothing", "--fitness", "nothing.yaml"],
    "compare": ["nothing", "1"],
    "report": ["nothing"],
    "merge": ["nothing.yaml", "out"],
    "reproduce": ["nothing.json"],
    "evaluate": ["~nosuchuser/x", "--fitness", "fitness.yaml"],
    "doctor": ["nothing"],
    "path": ["loop", "other", "--fitness", "fitness.yaml"],
    "extract": ["nothing/a", "nothing/b/c", "out", "--rank", "4"],
    "align": ["nothing/a", "nothing/b/c", "out"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_wrong_is_one_line_and_no_json(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "fitness.yaml").write_text("slices: {a: {python: 'x:y'}}\n")
    before = sorted(tmp_path.iterdir())
    assert main([name, *REFUSED[name], "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", printed.err)
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_there_already_is_told_before_the_imports(tmp_path: Path) -> None:
    for run in ("taken", "space"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "environment.json").write_text("{}")
    (tmp_path / "models/base").mkdir(parents=True)
    (tmp_path / "models/base/config.json").write_text("{}")
    (tmp_path / "space.yaml").write_text("")
    (tmp_path / "recipe.yaml").write_text("merge_method: linear\nmodels: [{model: models/base}]\n")
    more = {*HEAVY, "numpy", "optuna", "rich"}
    for line in (
        ["search", "space.yaml"],
        ["search", "x.yaml", "--run", "taken"],
        ["search", "x.yaml", "--run", "a b"],
        ["search", "x.yaml", "--run", "taken", "--dry-run"],
        ["merge", "recipe.yaml", "models"],
        ["merge", "models/base", "out"],
        ["evaluate", "models/bsae", "--fitness", "x.yaml"],
    ):
        assert imported_by(*line, cwd=tmp_path, among=more if line[0] != "evaluate" else HEAVY) == set(), line


def test_a_target_that_is_there_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("base", "taken"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text("merge_method: linear\nmodels: [{model: models/base}]\n")
    assert main(["merge", "recipe.yaml", "models/taken"]) == 2
    said = capsys.readouterr().err
    assert "models/taken exists and is not empty; name another folder, or replace it with --overwrite" in said


UNEXPECTED: dict[str, tuple[Exception, str]] = {
    "disk": (
        OSError(28, "No space left on device", "x.json"),
        "error: x.json: no space left on device; free some space",
    ),
    "memory": (MemoryError(), "error: there is not enough memory; lower --memory, --workers or"),
    "depth": (RecursionError("maximum recursion depth exceeded"), "error: something that was given is nested too deep"),
    "text": (
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        "error: a text cannot be read or written",
    ),
    "fault": (KeyError("a\nb\x1b[31m"), "error: this is a fault of evomerge (KeyError in test_cli.py:"),
}


@pytest.mark.parametrize("name", UNEXPECTED)
def test_an_error_that_nobody_expected_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, said = UNEXPECTED[name]

    def failing(*arguments: Any, **others: Any) -> None:
        raise error

    monkeypatch.setattr("evomerge.study.after.status.runs", failing)
    assert main(["status", "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(said)
    assert printed.err[:-1].isprintable()
    monkeypatch.setenv("EVOMERGE_DEBUG", "1")
    assert main(["status", "--json"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith(printed.err)


def test_a_fault_in_a_search_is_in_its_log(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*arguments: Any, **others: Any) -> None:
        raise KeyError("odd")

    tiny_study()
    monkeypatch.setattr("evomerge.study.loop.run", failing)
    assert main(["search", "space.yaml"]) == 2
    log = Path("runs/space/search.log").resolve()
    assert f"please report it ({log} shows more)" in capsys.readouterr().err
    assert "KeyError: 'odd'" in log.read_text()


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_full_disk_behind_stdout_is_one_line(option: list[str], tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "evomerge", "status", *option]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert re.fullmatch(r"error: stdout.*: no space left on device; free some space on its disk\n", done.stderr)
    assert done.returncode == 2


def test_errors_do_not_go_to_stdout_where_stderr_is_closed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evomerge", "status", "nothing", "--json"]
    line = f"{' '.join(command)} 2>&-"
    done = subprocess.run(line, shell=True, stdout=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
