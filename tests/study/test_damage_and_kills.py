"""Whatever a killed process or a damaged disk leaves, a run goes on as if nothing had been, or says why it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.cli import main
from evomerge.study.observer import Observer
from evomerge.study.run.items import items_file, load_items

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from _damage import free_executor, write_free_study  # noqa: E402

WHOLE = ["optimizer.warm_start=false"]
"""Budgets of 4 + 8n trials then end between two generations. What is left of a divided one races by itself."""

Study = Callable[..., Path]


class Said(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)

    warn = note


@pytest.fixture(params=["racing", "cma-es"])
def finished(request: pytest.FixtureRequest, tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run `study`, in the current folder; scores are a function of the recipe."""
    tiny_study()
    write_free_study(Path(), Path("models").absolute(), str(request.param))
    monkeypatch.setattr("evomerge.study.search.executor_of", free_executor)
    return evomerge.search("space.yaml", run="study", settings=WHOLE).folder.path


def content(run: Path) -> dict[str, bytes]:
    skipped = ("search.log", "run.lock", "report.html", "summary.txt")
    return {f.name: f.read_bytes() for f in sorted(run.rglob("*")) if f.is_file() and f.name not in skipped}


def table(result: Any) -> Any:
    winner = result.winner and result.winner.number
    return winner, [(t.number, t.state, t.scores, t.digest) for t in result.holdout.ranked()], result.search.ranked()


def test_a_finished_run_stays_as_it_is(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(finished)
    said = Said()
    first = evomerge.resume("study", observer=said)
    assert said.lines == ["the run is finished: nothing to do; --trials N, a larger total, goes on with it"]
    assert content(finished) == before
    assert table(evomerge.resume("study", trials=20)) == table(first)
    (finished / "best.yaml").unlink()
    code = main(["resume", "study"])
    assert code == (0 if first.winner else 1)
    assert content(finished) == before
    capsys.readouterr()


def test_more_trials_are_those_of_one_search(finished: Path) -> None:
    """Promotions of the smaller budget change neither what is proposed, nor who is in the release."""
    whole = evomerge.search("space.yaml", run="whole", trials=36, settings=WHOLE)
    more = evomerge.resume("study", trials=36)
    ended = [list(r.search.trials) for r in (whole, more)]
    assert [t.genome for t in ended[0]] == [t.genome for t in ended[1]]
    assert table(whole)[:2] == table(more)[:2]
    assert table(evomerge.resume("study"))[:2] == table(more)[:2]


def emptied(run: Path) -> None:
    items_file(run / "items", 1, "search").write_bytes(b"")


def halved(run: Path) -> None:
    file = items_file(run / "items", 3, "holdout")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def turned(run: Path) -> None:
    for number in range(0, 20, 5):
        file = items_file(run / "items", number, "search")
        damaged = bytearray(file.read_bytes())
        damaged[100 + number] ^= 4
        file.write_bytes(damaged)


def missing(run: Path) -> None:
    shutil.rmtree(run / "items")


def folders(run: Path) -> None:
    for number in (0, 6):
        items_file(run / "items", number, "search").unlink()
        items_file(run / "items", number, "search").mkdir()


def a_part(run: Path) -> None:
    first = min(run.glob("items/*.search.1.parquet"), default=items_file(run / "items", 4, "search"))
    first.unlink()


@pytest.mark.parametrize("damage", [emptied, halved, turned, missing, folders, a_part])
def test_lost_items_are_scored_again(finished: Path, damage: Callable[[Path], None]) -> None:
    def items() -> Any:
        splits: Any = ("search", "holdout")
        return {(n, s): load_items(finished / "items", n, s) for n in range(20) for s in splits}

    before, winner = items(), evomerge.status("study").winner
    damage(finished)
    said = Said()
    evomerge.resume("study", observer=said)
    assert any(line.startswith("items are damaged or missing, and are scored again: ") for line in said.lines)
    assert items() == before
    assert evomerge.status("study").winner == winner
    said = Said()
    evomerge.resume("study", observer=said)
    assert len(said.lines) == 1


def test_a_kill_between_the_notes_of_a_trial(finished: Path) -> None:
    """The journal ends behind a trial's digest, and its items are there."""
    expected = evomerge.status("study")
    journal = finished / "study.journal"
    whole = journal.read_bytes()
    ends = [at for key in (b'"digest"', b'"seconds"') for at in _lines_with(whole, key)]
    for end in ends[4::7]:
        journal.write_bytes(whole[:end])
        evomerge.resume("study")
        found = evomerge.status("study")
        assert [(t.genome, t.scores, t.state) for t in found.search.trials] == [
            (t.genome, t.scores, t.state) for t in expected.search.trials
        ]
        assert (found.winner and found.winner.number) == (expected.winner and expected.winner.number)


def _lines_with(content: bytes, key: bytes) -> list[int]:
    """The ends of the lines that hold a key."""
    ends, at = [], 0
    for line in content.splitlines(keepends=True):
        at += len(line)
        if b'"user_attr":{' + key in line:
            ends.append(at)
    return ends


@pytest.mark.slow
def test_the_benchmark() -> None:
    """One kill of each kind, and a few cuts and turned bits; the benchmark takes hundreds."""
    counts = ["--kills", "1", "--kinds", "default", "--merges", "1", "--cuts", "8", "--flips", "8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), *counts]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
