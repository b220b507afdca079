"""A file or folder of another kind is named as what it is, with the command that takes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.errors import InputError
from evomerge.files.fitness_file import read_fitness
from evomerge.files.space_file import read_space
from evomerge.recipe.mergekit import read_recipe

FILES = {
    "space.yaml": "base: a\nsources: {b: c}\ngenes: {weight: 1}\nfitness: f.yaml\n",
    "recipe.yaml": "merge_method: linear\nslices: [{sources: []}]\n",
    "several.yaml": "name: first\nmerge_method: linear\nmodels: []\n---\nmerge_method: linear\nmodels: []\n",
    "fitness.yaml": "include: [tasks]\nslices: {a: {task: t}}\n",
    "task.yaml": "task: t\ndataset_path: json\ndoc_to_text: '{{x}}'\n",
    "group.yaml": "group: g\ntask: [a, b]\n",
}
READERS: dict[str, Callable[[Path], object]] = {
    "a search space": read_space,
    "a fitness file": read_fitness,
    "a mergekit recipe": read_recipe,
}
KINDS = {
    "space.yaml": ("a search space", "`evomerge search {file}` searches it"),
    "recipe.yaml": ("a mergekit recipe", "`evomerge merge {file} OUT_DIR` writes its checkpoint"),
    "several.yaml": ("a mergekit recipe", "`evomerge evaluate {file} --fitness FILE` scores it"),
    "fitness.yaml": ("a fitness file", "name it in a search space (`fitness: {file}`), or give it as --fitness"),
    "task.yaml": ("an lm-eval task", "name its folder under `include` of a fitness file"),
    "group.yaml": ("an lm-eval task", "name its folder under `include`"),
    "run": ("a run", "`evomerge resume {file}` goes on with it, `evomerge export {file} -o RECIPE.yaml`"),
    "model": ("a model", "`evomerge evaluate {file} --fitness FILE` scores it"),
    "adapter": ("a LoRA adapter", "`evomerge evaluate {file} --fitness FILE` scores it"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    for name, inside in {"run": "environment.json", "model": "config.json", "adapter": "adapter_config.json"}.items():
        Path(name).mkdir()
        Path(name, inside).write_text("{}")


@pytest.mark.parametrize("wanted", READERS)
@pytest.mark.parametrize("given", KINDS)
def test_another_kind_is_named(given: str, wanted: str) -> None:
    kind, use = KINDS[given]
    if kind == wanted or (given == "several.yaml" and wanted != "a mergekit recipe"):
        return
    said = f"{given}: is {kind}, not {wanted}; "
    with pytest.raises(InputError, match=re.escape(said)) as error:
        READERS[wanted](Path(given))
    assert use.format(file=given) in str(error.value)


@pytest.mark.parametrize("wanted", READERS)
def test_a_file_of_no_kind_gets_the_reader_s_own_line(wanted: str) -> None:
    Path("other.yaml").write_text("a: 1\n")
    with pytest.raises(InputError, match=r"other.yaml:1: (a: unknown key|has no)"):
        READERS[wanted](Path("other.yaml"))
    Path("typo.yaml").write_text("bsae: x\nsources: {a: b}\ngenes: {}\nfitness: f\nslices: {}\nmerge_method: x\n")
    if wanted != "a fitness file":
        with pytest.raises(InputError, match=r"typo.yaml:\d: ") as error:
            READERS[wanted](Path("typo.yaml"))
        assert ", not a" not in str(error.value)
