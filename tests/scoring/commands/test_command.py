"""Slices that a program scores: what it gets, what it may answer, and how it ends."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import evomerge
from evomerge.cli import main
from evomerge.files import objects
from evomerge.scoring.commands.command import item_ids
from evomerge.scoring.commands.folder import _MEMORY, _PREFIX
from evomerge.scoring.commands.line import filled
from evomerge.scoring.commands.program import run
from evomerge.study.run.items import load_items
from tests.faults import dying

Study = Callable[..., Path]
Command = Callable[..., Path]
Said = pytest.CaptureFixture[str]

EVAL = """
import argparse, array, json, struct
from pathlib import Path

options = argparse.ArgumentParser()
for name in ("model", "items", "out"):
    options.add_argument(f"--{name}", type=Path)
options = options.parse_args()
data = (options.model / "model.safetensors").read_bytes()
size = struct.unpack("<Q", data[:8])[0]
begin, end = json.loads(data[8 : 8 + size])["model.layers.0.mlp.up_proj.weight"]["data_offsets"]
values = array.array("f", data[8 + size + begin : 8 + size + end])
weight = sum(map(abs, values)) / len(values)
rows = [json.loads(line) for line in options.items.read_text().splitlines()]
assert (options.model / "config.json").exists()
print("read", len(rows), "items")
found = [{"id": r["id"], "score": r["target"] - weight, "answer": f"{r['target']} of {len(rows)}"} for r in rows]
options.out.write_text(json.dumps(found))
"""


@pytest.fixture
def commanded(tiny_study: Study) -> Command:
    """Writes a study whose slice `c` is scored by a program."""

    def make(code: str = EVAL, **keys: Any) -> Path:
        def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
            told = f"{sys.executable} -IS eval.py --model {{model}} --items {{items}} --out {{scores}}"
            slice_ = {"command": told, "data": "items.jsonl", **keys}
            fitness["slices"]["c"] = {k: v for k, v in slice_.items() if v is not None}
            space["budget"] = {"trials": 6}

        Path("eval.py").write_text(code)
        rows = ({"id": f"q{n}", "target": n / 10} for n in range(12))
        Path("items.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return tiny_study(change)

    return make


def answering(answer: str) -> str:
    """The program with another last line."""
    return EVAL.replace("options.out.write_text(json.dumps(found))", answer)


def candidate_folders() -> set[str]:
    return {folder.name for folder in _MEMORY.glob(f"{_PREFIX}*")}


def test_a_program_scores_the_checkpoint_of_each_candidate(commanded: Command, capsys: Said) -> None:
    before = candidate_folders()
    result = evomerge.search(commanded())
    for trial in result.search.trials:
        merged = evomerge.merge(trial.recipe, "merged", overwrite=True)
        with safe_open(merged / "model.safetensors", "pt") as file:
            weight = file.get_tensor("model.layers.0.mlp.up_proj.weight").double().abs().mean().item()
        items = load_items(result.folder.items, trial.number, "search")["c"].values()
        targets = [float((item.answer or "").split()[0]) for item in items]
        assert [item.score for item in items] == pytest.approx([target - weight for target in targets], abs=1e-12)
    assert {t.state for t in result.search.trials} == {"complete"}
    assert {t.number for t in result.holdout.trials} & {t.number for t in result.search.trials if t.genome}
    # What it printed is in the log.
    assert "eval.py" not in capsys.readouterr().out
    log = (result.folder.path / "search.log").read_text()
    assert "slice c: " in log
    assert "read " in log
    del result
    gc.collect()
    assert candidate_folders() <= before


def test_evaluate_finds_the_recorded_scores(commanded: Command) -> None:
    result = evomerge.search(commanded())
    trial = result.search.trials[-1]
    evomerge.export("space", "best.yaml", trial=trial.number, allow_infeasible=True, checkpoint="merged")
    for model in ("best.yaml", "merged"):
        scored = evomerge.evaluate(model, "fitness.yaml", split="search", references={"base": "models/base"})
        assert scored.scores["c"].value == trial.scores["c"]


def test_a_program_without_items_scores_all_once_a_candidate(commanded: Command) -> None:
    whole = """
rows = [json.loads(line) for line in open("items.jsonl")]
open("runs.txt", "a").write("x")
options.out.write_text(json.dumps({row["id"]: row["target"] * weight for row in rows}))
"""
    code = EVAL.partition("rows =")[0] + whole
    told = f"{sys.executable} -IS eval.py --model {{model}} --out {{scores}}"
    result = evomerge.search(commanded(code, command=told))
    assert {t.state for t in result.search.trials} == {"complete"}
    merges = len({t.digest for t in (*result.search.trials, *result.holdout.trials)})
    assert merges <= len(Path("runs.txt").read_text()) <= merges + len(result.holdout.trials)


@pytest.mark.slow
def test_a_killed_search_goes_on_as_if_nothing_had_been(commanded: Command) -> None:
    space = commanded()
    whole = evomerge.search(space, run="whole", trials=6)
    with dying(6), pytest.raises(KeyboardInterrupt):
        evomerge.search(space, run="parts", trials=6)
    parts = evomerge.resume("parts")
    assert [(t.scores, t.digest) for t in parts.search.trials] == [(t.scores, t.digest) for t in whole.search.trials]


BAD = {
    "import sys; print('no model'); sys.exit(3)": "ended with code 3 after .* 'no model'",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": r"ended with code 137 \(SIGKILL\)",
    "": r"wrote no \{scores\}",
    "options.out.write_text('[1, 2]')": "neither an object of scores by id nor a list",
    "options.out.write_text('{')": r"the scores of python\d*: scores.json is not valid JSON",
    "options.out.write_text(json.dumps({'q99': 1}))": "scored 'q99', which is no item's id",
    "options.out.write_text(json.dumps(found[1:]))": r"gave no score for 1 of \d items, the first 'q",
    "options.out.write_text(json.dumps(found + found))": "scored item 'q.*' twice",
    "options.out.write_text(json.dumps({r['id']: 'good' for r in rows}))": "the score 'good', not a finite number",
    "options.out.write_text(json.dumps({r['id']: float('nan') for r in rows}))": "the score nan, not a finite",
}


@pytest.mark.parametrize("answer", BAD)
def test_what_a_program_may_do_wrong_is_one_line(answer: str, commanded: Command, capsys: Said) -> None:
    commanded(answering(answer))
    assert main(["search", "space.yaml"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "slice c: " in line
    assert re.search(BAD[answer], line), line


@pytest.mark.slow
def test_a_program_that_hangs_is_ended_with_all_that_it_started(commanded: Command) -> None:
    hang = """
import subprocess, time
open(f"run-{time.monotonic_ns()}", "w")
if len(list(Path(".").glob("run-*"))) in (5, 6):
    subprocess.Popen(["sleep", "61.5"])
    time.sleep(60)
options.out.write_text(json.dumps(found))
"""
    # Base, sources and average are scored before; the next two hang.
    result = evomerge.search(commanded(answering(hang), timeout="2s"), trials=6)
    states = {trial.number: trial.state for trial in result.search.trials}
    assert states == {0: "complete", 1: "complete", 2: "complete", 3: "complete", 4: "failed", 5: "failed"}
    assert re.search(r"slice c: python\d* did not end within 2 s", result.search.trials[-1].reason)
    assert not sleeping("61.5")


def sleeping(argument: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if argument in (process.info["cmdline"] or ())]


@pytest.mark.slow
def test_a_killed_search_leaves_nothing_running_and_its_folder_goes_with_the_next(commanded: Command) -> None:
    commanded(answering('import subprocess\nsubprocess.run(["sleep", "62.5"])'))
    before = candidate_folders()
    process = subprocess.Popen([sys.executable, "-m", "evomerge", "search", "space.yaml"], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: bool(sleeping("62.5")))
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not sleeping("62.5"))
    Path("eval.py").write_text(EVAL)
    evomerge.search("space.yaml", run="next")
    gc.collect()
    assert candidate_folders() <= before


@pytest.mark.slow
def test_workers_leave_no_checkpoints_behind(commanded: Command) -> None:
    before = candidate_folders()
    evomerge.search(commanded(), workers=2)
    assert candidate_folders() <= before


def test_a_program_may_stand_in_the_command(commanded: Command) -> None:
    code = f"import sys; exec(open('eval.py').read()) # {'long ' * 60}"
    told = f'{sys.executable} -IS -c "{code}" --model {{model}} --items {{items}} --out {{scores}}'
    assert {t.state for t in evomerge.search(commanded(command=told)).search.trials} == {"complete"}


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"command": "no-such-eval {model} {scores}"}, "there is no program 'no-such-eval' that can be run"),
        ({"command": "./eval.py {model} {scores}"}, "there is no program './eval.py' that can be run"),
        ({"command": "{model} {scores}"}, "begins with a placeholder"),
        ({"command": "true {modle} {scores}"}, "has an unknown {modle}; did you mean 'model'"),
        ({"command": "true {scores}"}, "has no {model}, the folder of the candidate's checkpoint"),
        ({"command": "true {model}"}, "has no {scores}, the JSON file"),
        ({"command": "true 'a {model} {scores}"}, "is no command line (No closing quotation)"),
        ({"command": ""}, "command"),
        ({"cwd": "nowhere"}, "no such folder"),
        ({"data": None}, "has no 'data'"),
        ({"data": "none.jsonl"}, "no data file"),
        ({"num_fewshot": 2}, "only goes with an lm-eval `task`"),
        ({"task": "tiny_a"}, "needs one of `task`"),
    ],
)
def test_a_dry_run_says_what_is_wrong(keys: dict[str, Any], line: str, commanded: Command, capsys: Said) -> None:
    commanded(**keys)
    assert main(["search", "space.yaml", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert "fitness.yaml" in said


def test_arguments_reach_the_program_as_they_are_written(tmp_path: Path) -> None:
    command = objects.Command("", ("python", "-c", "a b;$HOME", "{{x}}={model}", "--out={scores}"), tmp_path)
    assert filled(command, {"model": "/m", "scores": "/s"})[1:] == ["-c", "a b;$HOME", "{x}=/m", "--out=/s"]


def test_output_without_end_is_cut(tmp_path: Path) -> None:
    lines = "for i in range(9999): print(i, 'y' * 50)"
    said = run([sys.executable, "-c", lines], tmp_path, 30)
    assert len(said) < 100_000
    assert said.rstrip().endswith(f"9998 {'y' * 50}")


def test_items_without_ids_go_by_their_numbers() -> None:
    assert item_ids([{"id": 3}, {"id": "a"}]) == ["3", "a"]
    assert item_ids([{"id": 3}, {"id": "3"}]) == ["0", "1"]
    assert item_ids([{"id": "a"}, {}]) == ["0", "1"]


def test_pickled_sources_stay_allowed(commanded: Command) -> None:
    space = commanded()
    weights = Path("models/two/model.safetensors")
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    result = evomerge.search(space, allow_pickle=True)
    assert {t.state for t in result.search.trials} == {"complete"}
