"""The code of tasks is run only where the user said that it may stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.errors import InputError
from evomerge.scoring.preflight import check_fitness
from evomerge.scoring.suite import Suite
from evomerge.scoring.tasks.trust import code_listed
from evomerge.study.dry_run import dry_run

from ..conftest import Bench

SLICE = {"s": {"task": "task", "metric": "acc"}}
CODE = """
from pathlib import Path
Path(__file__).with_name("was_run").touch()
def text(doc):
    return doc["question"]
"""


@pytest.fixture
def outside(bench: Bench) -> Path:
    """A folder beside that of the tasks, with code that says when it is run, and YAML that names it."""
    folder = bench.folder / "outside"
    folder.mkdir()
    (folder / "code.py").write_text(CODE)
    (folder / "part.yaml").write_text("doc_to_text: !function code.text\n")
    (folder / "plain.yaml").write_text("target_delimiter: ' '\n")
    bench.choice("task")
    return folder


def change(bench: Bench, **config: Any) -> None:
    """Gives the task other keys. A text that begins with ``!function`` is that tag."""
    file = bench.tasks / "task.yaml"
    text = yaml.safe_dump({**yaml.safe_load(file.read_text()), **config}, sort_keys=False)
    file.write_text(text.replace("'!function ", "!function '"))


def link(bench: Bench, outside: Path) -> None:
    (bench.tasks / "linked.py").symlink_to(outside / "code.py")
    change(bench, doc_to_text="!function linked.text")


def link_yaml(bench: Bench, outside: Path) -> None:
    file = bench.tasks / "task.yaml"
    file.rename(outside / "task.yaml")
    (bench.tasks / "task.jsonl").rename(outside / "task.jsonl")
    (bench.tasks / "task_shots.jsonl").rename(outside / "task_shots.jsonl")
    file.symlink_to(outside / "task.yaml")


def group(bench: Bench, outside: Path) -> None:
    members = [{"task": "task", "doc_to_text": f"!function {outside}/code.text"}]
    text = yaml.safe_dump({"group": "both", "task": members}).replace("'!function ", "!function '")
    (bench.tasks / "both.yaml").write_text(text)


ELSEWHERE: dict[str, tuple[Callable[[Bench, Path], None], str]] = {
    "an included YAML": (
        lambda b, o: change(b, include="../outside/part.yaml"),
        "includes YAML of .*outside",
    ),
    "an included YAML without code": (
        lambda b, o: change(b, include=str(o / "plain.yaml")),
        "includes YAML of .*outside",
    ),
    "a function by its whole path": (
        lambda b, o: change(b, doc_to_text=f"!function {o}/code.text"),
        "code.py .doc",
    ),
    "a function behind a link": (link, r"code.py \(doc_to_text\)"),
    "a YAML behind a link": (link_yaml, "task.yaml"),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_code_from_elsewhere_is_refused(case: str, bench: Bench, outside: Path, model: Any, tokenizer: Any) -> None:
    make, what = ELSEWHERE[case]
    make(bench, outside)
    fitness = bench.fitness(SLICE)
    line = rf"fitness.yaml:\d+: slices.s.task: task 'task' runs code in .*outside.*: .*{what}.*; `include` its"
    with pytest.raises(InputError, match=line):
        check_fitness(fitness, [])
    with pytest.raises(InputError, match=line):
        Suite.build(fitness, model, tokenizer)
    assert not (outside / "was_run").exists()
    check_fitness(replace(fitness, trust_tasks=True), [])
    check_fitness(bench.fitness(SLICE, include=["tasks", "outside"]), [])


def test_a_member_of_a_group_is_held_to_it(bench: Bench, outside: Path) -> None:
    group(bench, outside)
    with pytest.raises(InputError, match=r"task .* runs code in .*code.py"):
        check_fitness(bench.fitness({"s": {"task": "both", "metric": "acc"}}), [])


def test_what_is_trusted_is_run(bench: Bench, outside: Path, model: Any, tokenizer: Any) -> None:
    change(bench, include="../outside/part.yaml", doc_to_text=None)
    file = bench.tasks / "task.yaml"
    file.write_text(file.read_text().replace("doc_to_text: null\n", ""))
    Suite.build(replace(bench.fitness(SLICE), trust_tasks=True), model, tokenizer)
    assert (outside / "was_run").exists()


def test_a_function_that_is_overridden_is_not_imported(bench: Bench, outside: Path, model: Any, tokenizer: Any) -> None:
    """lm-eval imports it all the same: the preflight does not see it, as the task has another value."""
    (bench.tasks / "part.yaml").write_text(f"doc_to_text: !function {outside}/code.text\n")
    change(bench, include="part.yaml")
    check_fitness(bench.fitness(SLICE), [])
    with pytest.raises(InputError, match=r"slices.s.task: task 'task' runs code in .*outside/code.py"):
        Suite.build(bench.fitness(SLICE), model, tokenizer)
    assert not (outside / "was_run").exists()


@pytest.mark.parametrize("function", ["statistics.mean", "lm_eval.tasks.utils.text", "numpy.mean", "no_such.thing"])
def test_installed_packages_are_trusted(function: str, bench: Bench, outside: Path) -> None:
    change(bench, doc_to_text=f"!function {function}")
    check_fitness(bench.fitness(SLICE), [])


def test_a_module_of_the_current_folder_is_not(bench: Bench, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(outside))
    (outside / "here_only.py").write_text(CODE)
    change(bench, doc_to_text="!function here_only.text")
    with pytest.raises(InputError, match=r"runs code in .*here_only.py"):
        check_fitness(bench.fitness(SLICE), [])


def test_scripts_of_the_hub_are_refused(bench: Bench, outside: Path, model: Any, tokenizer: Any) -> None:
    change(bench, metric_list=[{"metric": "acc", "hf_evaluate": True}])
    with pytest.raises(InputError, match=r"runs code on the hub: the metric acc \(hf_evaluate\); say --trust-tasks if"):
        check_fitness(bench.fitness(SLICE), [])
    # lm-eval looks for a metric that it does not know on the hub.
    change(bench, metric_list=[{"metric": "bleurt_"}])
    with pytest.raises(InputError, match=r"task 'task' cannot be built: lm-eval knows no metric 'bleurt_'"):
        Suite.build(bench.fitness({"s": {"task": "task", "metric": "bleurt_"}}), model, tokenizer)


def test_the_dry_run_lists_the_code(tiny_study: Callable[..., Path], tmp_path: Path) -> None:
    bench = Bench(tmp_path / "made")
    bench.choice("task")
    change(bench, doc_to_choice="!function c.both")
    (bench.tasks / "c.py").write_text("raise SystemExit('run')\n")

    def with_code(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["include"].append(str(bench.tasks))
        fitness["slices"]["own"] = {"python": "mine:score", "data": "own.jsonl"}
        fitness["slices"]["program"] = {"command": "cat {model} {scores}", "data": "own.jsonl"}
        fitness["slices"]["more"] = {"task": "task", "metric": "acc"}

    space = tiny_study(with_code)
    (space.parent / "mine.py").write_text("def score(model, tokenizer, items): ...\n")
    (space.parent / "own.jsonl").write_text("".join(f'{{"n": {i}}}\n' for i in range(20)))
    facts = dry_run(space)
    code = [f"{space.parent}/mine.py (score)", "cat {model} {scores}", f"{bench.tasks}/c.py (doc_to_choice)"]
    assert facts["code that is run"] == code


def test_nothing_is_listed_where_nothing_is_run(bench: Bench) -> None:
    bench.text()
    assert code_listed(bench.fitness({"s": {"task": "text", "metric": "bits_per_byte"}})) == []


def test_a_resumed_run_trusts_what_its_launch_did(tiny_study: Callable[..., Path], tmp_path: Path) -> None:
    """And so does a run of an earlier version, whose launch says nothing."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    space = tiny_study()
    fitness = yaml.safe_load((space.parent / "fitness.yaml").read_text())
    [folder] = fitness["include"]
    for file in list((space.parent / folder).glob("*.yaml")):
        (elsewhere / file.name).write_text("target_delimiter: ' '\n")
        config = f"include: {elsewhere / file.name}\n" + file.read_text()
        file.write_text(config)
    with pytest.raises(InputError, match=r"runs code in .*elsewhere.*; `include` its folder, or say --trust-tasks"):
        evomerge.search(space, trials=5)
    evomerge.search(space, trials=5, trust_tasks=True)
    record = space.parent / "runs/space/environment.json"
    assert json.loads(record.read_text())["launch"]["trust_tasks"] is True
    evomerge.resume("space", trials=6)
    data = json.loads(record.read_text())
    del data["launch"]["trust_tasks"]
    record.write_text(json.dumps(data))
    assert len(evomerge.resume("space", trials=7).search.trials) == 7
