"""Every step that writes fails in turn: one line says so, what was scored is kept, and a resume ends as if nothing had
happened."""

from __future__ import annotations

import errno
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
    real = module._executor

    @contextmanager
    def executor(plan: Any, device: str, memory: str | None, workers: int, observer: Any) -> Iterator[Any]:
        if not loaded:
            with real(plan, device, memory, workers, observer) as first:
                assert isinstance(first, InProcess)
                loaded.append(first._evaluator)
        yield InProcess(loaded[0], observer)

    monkeypatch.setattr(module, "_executor", executor)
    return tiny_study()


def ended(run: str) -> Any:
    """What a run came to: all that does not depend on the clock, or on the run's name."""
    state = status(run)
    trials = [
        (t.number, t.kind, t.state, t.label, t.genome, t.recipe_id, t.scores, t.digest) for t in state.search.trials
    ]
    assert state.winner is not None
    best = state.folder.best.read_text().replace(run, "RUN")
    items = [load_items(state.folder.items, t.number, s) for t in state.search.trials for s in _SPLITS]
    return trials, state.winner.number, state.finished, best, items


@pytest.mark.parametrize("way", WAYS)
def test_every_write_of_a_search_fails_in_turn(
    way: str, study: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    def run(name: str, *words: str) -> tuple[Any, str, str]:
        try:
            code: Any = main([*words, "--trials", "6"])
        except BaseException as error:  # never: each is one line
            code = repr(error)
        return code, *capsys.readouterr()

    root = Path.cwd() / "runs"
    launch = ["search", str(study), "--run"]
    assert run("healthy", *launch, "healthy")[0] == 0
    with failing(root) as disk:
        assert run("counted", *launch, "counted")[0] == 0
    healthy = ended("counted")
    assert healthy == ended("healthy")
    faults = []
    for at in chosen(disk, 5, request, list(WAYS).index(way)):
        name = f"fault-{at}"
        with failing(root, at, **WAYS[way]) as failed:
            code, _, said = run(name, *launch, name)
        errors = [line for line in said.splitlines() if line.startswith(("error:", "interrupted:"))]
        problems = []
        if failed.failed and code != 0:
            if code != 2 or len(errors) != 1 or "Traceback" in said or str(root) not in errors[0]:
                problems.append(f"code {code}, {errors}")
        elif errors or "Traceback" in said:
            problems.append(f"code {code}, {errors}")
        if (root / name / "environment.json").is_file():
            shown = sum(line.startswith("[") for line in said.splitlines())
            kept = sum(t.state not in ("running", "failed") for t in status(name).search.trials)
            if kept < shown:
                problems.append(f"{kept} of {shown} trials are kept")
            words = ["resume", name]
        else:
            words = [*launch, name]
        code, _, said = run(name, *words)
        if code != 0:
            problems.append(f"{words[0]} after it: code {code}, {said[-300:]}")
        elif (found := ended(name)) != healthy:
            problems.append(
                f"{words[0]} after it differs: {[p for p in zip(found, healthy, strict=True) if p[0] != p[1]]}"
            )
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
    assert f"evomerge resume {run if storage == 'journal' else 'run'}" in line
    assert "Traceback" not in said
    assert status(run).done >= 5
    other.unlink()
    assert main(["resume", str(run)]) == 0
    found, wanted = ended(str(run)), ended("healthy")
    assert found[:3] + found[4:] == wanted[:3] + wanted[4:]  # best.yaml names the run by its path
