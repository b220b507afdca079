"""Slices that are public benchmarks are known, and a search over them says what their scores are worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.cli import main
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.scoring.tasks.benchmarks import Benchmark, benchmark_doubts, benchmarks
from tests.conftest import write_task

Study = Callable[..., Path]


def fitness(*tasks: str, include: tuple[Path, ...] = ()) -> FitnessSpec:
    return FitnessSpec(Path("fitness.yaml"), {task: SliceSpec(task, task=task) for task in tasks}, include)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("arc_easy", Benchmark("arc_easy", "test", "allenai/ai2_arc", "ARC-Easy")),
        ("hellaswag", Benchmark("hellaswag", "validation", "Rowan/hellaswag")),
        ("gsm8k", Benchmark("gsm8k", "test", "openai/gsm8k", "main")),
        ("no_such_task", None),
    ],
)
def test_lm_eval_s_own_tasks_are_benchmarks(task: str, expected: Benchmark | None) -> None:
    assert benchmarks(fitness(task)).get(task) == expected


def test_a_task_of_the_user_s_is_none(tmp_path: Path) -> None:
    for name in ("arc_easy", "own"):
        write_task(tmp_path, name, 1)
    assert benchmark_doubts(fitness("arc_easy", "own", include=(tmp_path,))) == []
    (line,) = benchmark_doubts(fitness("arc_easy", "own", "gsm8k", include=(tmp_path,)))
    assert line.startswith("gsm8k (test) is a public benchmark: scores on that split will be optimistic")


def test_a_dry_run_and_a_search_warn(
    tiny_study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def public(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["c"] = {"task": "arc_easy", "metric": "acc"}

    tiny_study(public)
    assert main(["search", "space.yaml", "--dry-run"]) == 0
    assert "arc_easy (test) is a public benchmark" in capsys.readouterr().out
    # No test downloads a benchmark: the user's own task stands for lm-eval's.
    monkeypatch.setattr(
        "evomerge.scoring.tasks.benchmarks.benchmarks", lambda _: {"a": Benchmark("tiny_a", "test", "org/tiny")}
    )
    tiny_study()
    assert main(["search", "space.yaml", "--trials", "6"]) in (0, 1)
    assert "tiny_a (test) is a public benchmark" in capsys.readouterr().err
    evomerge.export("space", checkpoint="out", allow_infeasible=True)
    assert "Warning: tiny\\_a \\(test\\) is a public benchmark" in (tmp_path / "out/README.md").read_text()
