"""Every step that writes fails in turn: one line says so, what was scored is kept, and a resume ends as if nothing had
happened."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli import main
from evomerge.evaluator.executor import InProcess
from evomerge.study import search as module
from evomerge.study.after.status import status
from evomerge.study.run.items import load_items
from evomerge.study.run.trial import Trial
from evomerge.study.trials import Trials
from evomerge.types import SplitName
from tests.faults import chosen, failing

Study = Callable[..., Path]
_SPLITS: tuple[SplitName, ...] = ("search", "holdout")
WAYS: dict[str, dict[str, Any]] = {
    "full": {"error": errno.ENOSPC},
    "read-only": {"error": errno.EROFS},
    "once": {"error": errno.EIO, "forever": False},
}


@pytest.fixture
def study(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of a few trials. Its models are loaded once for all runs."""
    loaded: list[Any] = []
    real = module.executor_of

    @contextmanager
    def executor(*about: Any) -> Iterator[Any]:
        if not loaded:
            with real(*about) as first:
                assert isinstance(first, InProcess)
                loaded.append(first._evaluator)
        yield InProcess(loaded[0], about[-1])

    monkeypatch.setattr(module, "executor_of", executor)
    return tiny_study()


def ended(run: str) -> Any:
    """What a run came to: all that does not depend on the clock, or on the run's name."""
    state = status(run)
    trials = [
        (t.number, t.kind, t.state, t.label, t.genome, t.recipe_id, t.scores, t.digest) for t in state.search.trials
    ]
    assert state.winner is not None
    best = state.folder.best.read_text().replace(state.folder.name, "RUN")
    items = [load_items(state.folder.items, t.number, s) for t in state.search.trials for s in _SPLITS]
    return trials, state.winner.number, state.finished, best, items


@pytest.mark.parametrize("command", ["search", "resume"])
@pytest.mark.parametrize("way", WAYS)
def test_every_write_fails_in_turn(
    command: str, way: str, study: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    def run(words: list[str], trials: int = 6) -> tuple[Any, str]:
        try:
            code: Any = main([*words, "--trials", str(trials)])
        except BaseException as error:  # never: each is one line
            code = repr(error)
        return code, capsys.readouterr().err

    def begun(name: str) -> list[str]:
        """The command, and what it needs: nothing, or a run that has stopped."""
        launch = ["search", str(study), "--run", name]
        if command == "resume":
            if not stopped.is_dir():
                assert run([*launch[:-1], "stopped"], trials=5)[0] == 0
            shutil.copytree(stopped, root / name)
        return launch if command == "search" else ["resume", name]

    root = Path.cwd() / "runs"
    stopped = root / "stopped"
    words = begun("healthy")
    with failing(root) as disk:
        assert run(words)[0] == 0
    healthy, faults = ended("healthy"), []
    for at in chosen(disk, 4 if command == "search" else 2, request, list(WAYS).index(way)):
        name = f"fault-{at}"
        words = begun(name)
        with failing(root, at, **WAYS[way]) as failed:
            code, said = run(words)
        errors = [line for line in said.splitlines() if line.startswith(("error:", "interrupted:"))]
        problems = []
        wrong = failed.failed and code != 0
        if wrong and (code != 2 or len(errors) != 1 or "Traceback" in said or str(root) not in errors[0]):
            problems.append(f"code {code}, {errors}")
        if not wrong and (code or errors or "Traceback" in said):
            problems.append(f"code {code}, {errors}")
        if (root / name / "environment.json").is_file():
            shown = [int(line[1:].partition("/")[0]) for line in said.splitlines() if line.startswith("[")]
            kept = sum(t.state not in ("running", "failed") for t in status(name).search.trials)
            if shown and kept < shown[-1]:
                problems.append(f"{kept} of {shown[-1]} trials are kept")
            words = ["resume", name]
        code, said = run(words)
        if code != 0:
            problems.append(f"{words[0]} after it: code {code}, {said[-300:]}")
        elif (found := ended(name)) != healthy:
            differs = [pair for pair in zip(found, healthy, strict=True) if pair[0] != pair[1]]
            problems.append(f"{words[0]} after it differs: {differs}")
        if problems:
            faults.append((at, failed.failed[:1], problems))
    for fault in faults:
        print(fault)
    assert not faults


def test_a_log_that_cannot_be_written_costs_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with failing(Path.cwd(), 0, only="search.log") as disk:
        assert main(["search", str(study), "--run", "silent", "--trials", "6"]) == 0
    assert {kind for kind, _ in disk.failed} == {"open"}
    with failing(Path.cwd(), 8, only="search.log") as disk:  # once it is open
        assert main(["resume", "silent", "--trials", "8"]) == 0
    assert disk.failed
    assert "search.log" not in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_a_disk_that_is_really_full(
    storage: str,
    study: Path,
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system itself fails, and so do the libraries that write by other ways than Python's. Where the storage is a
    database on that disk, the run's folder stands on another one."""
    run = small_disk / "run" if storage == "journal" else Path("runs/run")
    url = [] if storage == "journal" else ["--storage", f"sqlite:///{small_disk}/study.db"]
    launch = ["search", str(study), "--trials", "6", "--run"]
    assert main([*launch, "healthy"]) == 0
    capsys.readouterr()
    end, other = Trials.end, small_disk / "another program's"

    def then_fill(trials: Trials, trial: Trial, result: Any) -> Trial:
        done = end(trials, trial, result)
        if done.number == 4:
            with suppress(OSError), other.open("wb", buffering=0) as stream:
                while stream.write(b"x" * 4096):
                    pass
        return done

    monkeypatch.setattr(Trials, "end", then_fill)
    assert main([*launch, str(run), *url]) == 2
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert "full" in line
    assert f"evomerge resume {'disk/run' if storage == 'journal' else 'run'}" in line
    assert "Traceback" not in said
    assert status(run).done >= 5
    other.unlink()
    assert main(["resume", str(run)]) == 0
    found, wanted = ended(str(run)), ended("healthy")
    assert found[:3] + found[4:] == wanted[:3] + wanted[4:]  # best.yaml names the run by its path
