"""Exported recipes: they run from anywhere, and name no path of this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import evomerge
from evomerge.cli import main
from evomerge.merging.disk.stream import checkpoint_digest

Study = Callable[..., Path]


def named(text: str) -> set[str]:
    document = yaml.safe_load(text)
    found = {i["model"] for i in document.get("models", ())}
    found |= {i["model"] for s in document.get("slices", ()) for i in s["sources"]}
    return found | ({document["base_model"]} if "base_model" in document else set())


def test_an_exported_recipe_runs_from_anywhere(
    tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evomerge.search(tiny_study(), trials=6)
    best = result.search.merges()[0]
    (tmp_path / "deep/er").mkdir(parents=True)
    options = ["--trial", str(best.number), "--allow-infeasible"]
    assert main(["export", "space", "-o", "deep/er/best.yaml", *options]) == 0
    text = (tmp_path / "deep/er/best.yaml").read_text()
    assert named(text) == {"../../models/base", "../../models/one", "../../models/two"}
    assert str(tmp_path) not in text
    assert named(evomerge.export("space", trial=best.number, allow_infeasible=True)) == {
        "models/base",
        "models/one",
        "models/two",
    }
    (tmp_path / "far/away").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "far/away")
    folder = evomerge.merge(tmp_path / "deep/er/best.yaml", "out")
    assert checkpoint_digest(folder) == best.digest
    # The scores of the same recipe, from there
    fitness = str(tmp_path / "fitness.yaml")
    assert main(["evaluate", str(tmp_path / "deep/er/best.yaml"), "--fitness", fitness, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == best.digest
    assert main(["doctor", str(tmp_path / "deep/er/best.yaml"), "--quick"]) in (0, 1)


def test_a_portable_recipe_has_names_only(tiny_study: Study, tmp_path: Path) -> None:
    evomerge.search(tiny_study(), trials=6)
    text = evomerge.export("space", "best.yaml", allow_infeasible=True, portable=True)
    assert named(text) == {"base", "one", "two"}
    assert (tmp_path / "best.yaml").read_text() == text


def test_a_recipe_of_models_that_are_gone_is_exported_all_the_same(tiny_study: Study, tmp_path: Path) -> None:
    evomerge.search(tiny_study(), trials=6)
    shutil.rmtree(tmp_path / "models")
    assert named(evomerge.export("space", allow_infeasible=True)) == {"models/base", "models/one", "models/two"}


def test_a_path_that_means_two_models_is_refused(
    tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evomerge.search(tiny_study(), trials=6)
    evomerge.export("space", "best.yaml", allow_infeasible=True)
    shutil.copytree(tmp_path / "models", tmp_path / "other/models")
    monkeypatch.chdir(tmp_path / "other")
    assert main(["merge", "../best.yaml", "out"]) == 2
    assert "is in the current folder, and beside the file" in capsys.readouterr().err


def test_a_ranked_winner_is_written_without_paths_too(tiny_study: Study, tmp_path: Path) -> None:
    evomerge.search(tiny_study(), trials=8)
    assert main(["rank", "space", "--fitness", "fitness.yaml", "-o", "ranked.yaml"]) == 0
    assert str(tmp_path) not in (tmp_path / "ranked.yaml").read_text()


def own(**genes: object) -> Callable[[dict, dict], None]:
    """A space of methods that mergekit lacks."""

    def change(space: dict, fitness: dict) -> None:
        weight = {"low": 0.1, "high": 1.0, "init": 0.4, "per": ["sources", "layers"]}
        space["genes"] = {"weight": weight, **genes}
        gradient = genes["method"] == "isotropy"
        space["optimizer"] = {"name": "gradient", "steps": 4} if gradient else {"name": "random"}
        space["optimizer"]["seed"] = 3

    return change


SPACES = [
    own(method="isotropy", isotropy={"low": 0.0, "high": 1.0, "per": ["layers"]}),
    own(method={"choices": ["rank", "tsv", "consensus"], "per": ["layers"]}, rank={"low": 0.1, "high": 0.9}),
    own(method={"choices": ["resmerge", "stitch"], "per": ["layers"]}, density={"low": 0.1, "high": 0.5}),
]


@pytest.mark.parametrize("change", SPACES)
def test_what_mergekit_cannot_say_is_said_and_merged(tiny_study: Study, change: Callable[[dict, dict], None]) -> None:
    result = evomerge.search(tiny_study(change), trials=8)
    trial = result.search.trials[-1]
    text = evomerge.export("space", "best.yaml", trial=trial.number, allow_infeasible=True)
    methods = {d["merge_method"] for d in yaml.safe_load_all(text)} - {"passthrough"}
    header = text.partition("\n\n")[0]
    assert methods
    assert f"mergekit has no {' and no '.join(sorted(methods))}: it cannot run it" in header.replace("\n# ", " ")
    assert "mergekit-" not in text
    folder = evomerge.merge("best.yaml", "out")
    assert checkpoint_digest(folder) == trial.digest
    tags = (folder / "README.md").read_text().partition("\n---")[0]
    assert "evomerge" in tags
    assert "mergekit" not in tags
    if methods == {"isotropy"}:  # which has a slope where it begins, at task arithmetic
        first = next(t for t in result.search.trials if t.slopes)
        slopes = dict(zip(first.genome, first.slopes["b"]["slopes"], strict=True))
        assert {first.genome[key] for key in slopes if key.startswith("isotropy")} == {0.0}
        assert all(slope for key, slope in slopes.items() if key.startswith("isotropy"))
