"""Every step that writes fails in turn: one line says so, what was scored is kept, and a resume ends as if nothing had
happened."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli import main
from evomerge.evaluator.executor import InProcess
from evomerge.study import search as module
from evomerge.study.after.status import status
from tests.faults import failing, places

Study = Callable[..., Path]
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
    return trials, state.winner.number, state.finished, best, sorted(p.name for p in state.folder.items.iterdir())


@pytest.mark.parametrize("way", WAYS)
def test_every_write_of_a_search_fails_in_turn(
    way: str, study: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    def run(name: str, *words: str) -> tuple[int, str, str]:
        code = main([*words, "--trials", "6"])
        return code, *capsys.readouterr()

    root = Path.cwd() / "runs"
    launch = ["search", str(study), "--run"]
    assert run("healthy", *launch, "healthy")[0] == 0
    with failing(root) as disk:
        assert run("counted", *launch, "counted")[0] == 0
    healthy = ended("counted")
    assert healthy == ended("healthy")
    faults = []
    for at in places(len(disk.steps), 12, request.config.getoption("--long", default=None)):
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
        if code != 0 or ended(name) != healthy:
            problems.append(f"{words[0]} after it: code {code}, {said[-300:]}")
        if problems:
            faults.append((at, failed.failed[:1], problems))
    for fault in faults:
        print(fault)
    assert not faults
