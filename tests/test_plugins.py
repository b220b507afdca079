"""What another package adds: the package of docs/extend.md is installed beside evomerge, passes the tests that
evomerge's own methods and optimizers pass, is searched with, and its recipe runs. Broken plug-ins are a line of
warning."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge import plugins
from evomerge.registry import METHODS, Method, Parameter

Study = Callable[..., Path]
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extend.md").read_text()
FILES: dict[str, str] = dict(re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE, re.S))


def install(folder: Path, files: dict[str, str], points: dict[str, dict[str, str]], name: str = "my-merges") -> None:
    """A package in a folder, as pip leaves it: files, and a dist-info with entry points."""
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    info = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in named.items()) for group, named in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    points = tomllib.loads(FILES["pyproject.toml"])["project"]["entry-points"]
    install(folder, {name: text for name, text in FILES.items() if name.endswith(".py")}, points)
    return folder


def run(site: Path, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process that finds the package."""
    path = os.pathsep.join([str(site), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=cwd)


@pytest.mark.slow
def test_it_passes_the_tests_of_evomerges_own(site: Path) -> None:
    done = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "test_my_merges.py", cwd=site)
    assert done.returncode == 0, done.stdout[-3000:]
    count = re.search(r"(\d+) passed", done.stdout)
    assert count is not None
    assert int(count[1]) > 70


@pytest.mark.slow
def test_a_plugin_that_is_wrong_does_not_pass(tmp_path: Path) -> None:
    """The suites find a method that changes its inputs, and an optimizer that draws from a global generator."""
    files = {name: text for name, text in FILES.items() if name.endswith(".py")}
    files["my_merges/median.py"] = files["my_merges/median.py"].replace(
        "    deltas =", "    inputs.tensors[0].add_(1)\n    deltas ="
    )
    files["my_merges/hill_climb.py"] = (
        files["my_merges/hill_climb.py"]
        .replace("generator.normal(0.0, step", "numpy.random.normal(0.0, step")
        .replace("from typing import Any", "from typing import Any\n\nimport numpy")
    )
    files["my_merges/scorer.py"] = files["my_merges/scorer.py"].replace(
        "return scores", "return [score + len(items) for score in scores]"
    )
    points = tomllib.loads(FILES["pyproject.toml"])["project"]["entry-points"]
    install(tmp_path, files, points)
    chosen = "inputs_are_not_changed or global_generators or scored_by_itself"
    options = ("-q", "-p", "no:cacheprovider", "-c", os.devnull, "-k", chosen)
    done = run(tmp_path, "-m", "pytest", *options, "test_my_merges.py", cwd=tmp_path)
    assert done.returncode == 1
    for name in ("test_inputs_are_not_changed", "test_global_generators", "test_an_item_is_scored_by_itself"):
        assert re.search(rf"FAILED .*{name}", done.stdout), name


@pytest.mark.slow
def test_it_is_searched_with_and_its_recipe_runs(site: Path, tiny_study: Study, tmp_path: Path) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["genes"]["method"] = "median"
        space["optimizer"] = {"name": "hill-climb", "seed": 3, "step": 0.3, "warm_start": False}
        fitness["slices"]["a"] = {"scorer": "exact_answer", "data": "items.jsonl"}

    tiny_study(change)
    items = [{"question": a + b, "answer": b} for a in "abcdefgh" for b in "abc"]
    Path("items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    done = run(site, "-m", "evomerge", "search", "space.yaml", "--trials", "7", "--json")
    assert done.returncode in (0, 1), done.stderr
    kept = yaml.safe_load(Path("runs/space/fitness.yaml").read_text())
    assert kept["slices"]["a"]["scorer"] == "exact_answer"
    done = run(site, "-m", "evomerge", "resume", "space", "--trials", "9", "--json")
    assert done.returncode in (0, 1), done.stderr
    state = json.loads(run(site, "-m", "evomerge", "status", "space", "--json").stdout)
    searched = [trial for trial in state["search"]["trials"] if trial["genome"]]
    assert len(searched) == 5
    assert {trial["state"] for trial in searched} <= {"complete", "pruned"}
    number = str(searched[-1]["trial"])
    done = run(site, "-m", "evomerge", "export", "space", "--trial", number, "--allow-infeasible", "-o", "best.yaml")
    assert done.returncode == 0, done.stderr
    assert "merge_method: median" in Path("best.yaml").read_text()
    done = run(site, "-m", "evomerge", "merge", "best.yaml", "merged")
    assert done.returncode == 0, done.stderr
    assert searched[-1]["digest"] in Path("merged/README.md").read_text()


def test_without_the_package_its_names_are_unknown(tiny_study: Study, tmp_path: Path) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["genes"]["method"] = "median"

    tiny_study(change)
    done = run(tmp_path / "nothing", "-m", "evomerge", "search", "space.yaml", "--dry-run")
    assert done.returncode == 2
    assert "unknown" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_broken_ones_are_a_line_each_and_left_out(tmp_path: Path) -> None:
    files = {
        "broken/__init__.py": "",
        "broken/raises.py": "raise RuntimeError('first\\nsecond')",
        "broken/ends.py": "raise SystemExit(3)",
        "broken/declared.py": (
            "from evomerge.registry import Method, OptimizerPlugin\n"
            "GOOD = Method('broken.code:f', (), 'subtracted')\nLOST = Method('broken.absent:f', (), 'subtracted')\n"
            "LATER = OptimizerPlugin('broken.code')\n"
        ),
        "broken/code.py": "",
    }
    points = {
        "evomerge.methods": {
            "ties": "broken.declared:GOOD",
            "uniform_soup": "broken.declared:GOOD",
            "raises": "broken.raises:X",
            "ends": "broken.ends:X",
            "lost": "broken.declared:LOST",
            "other": "broken.declared:LATER",
            "a.b": "broken.declared:GOOD",
            "good": "broken.declared:GOOD",
        },
        "evomerge.optimizers": {"cma-es": "broken.declared:LATER", "later": "broken.declared:LATER"},
        "evomerge.scorers": {"absent": "broken.nowhere:score"},
    }
    install(tmp_path, files, points, "broken-merges")
    code = (
        "from evomerge.registry import METHODS, OPTIMIZERS; from evomerge.plugins import scorers\n"
        "print('good' in METHODS, METHODS['ties'].function, 'lost' in METHODS, 'later' in OPTIMIZERS, scorers())"
    )
    done = run(tmp_path, "-c", code)
    assert done.stdout == "True evomerge.merging.methods.ties:ties False False {}\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 10
    assert all(re.match(r"the plug-in '[\w.-]+' of broken-merges \(\w+\) is left out: \S", line) for line in lines)
    said = {line.split("'")[1]: line.partition("left out: ")[2] for line in lines}
    assert said["ties"] == said["uniform_soup"] == said["cma-es"] == "its name is taken"
    assert said["raises"] == "RuntimeError: first second"
    assert said["lost"] == "there is no module broken.absent"
    assert said["other"] == "broken.declared:LATER is no Method"
    done = run(tmp_path, "-m", "evomerge", "--version")
    assert done.returncode == 0


def test_an_entry_point_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", "evomerge.registry:WEIGHT", "evomerge.methods")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point, point])
    assert [*plugins.found("methods", METHODS, lambda p: plugins.loaded(p, Parameter))] == ["mine"]
    assert plugins.found("methods", METHODS, lambda p: plugins.loaded(p, Method)) == {}
