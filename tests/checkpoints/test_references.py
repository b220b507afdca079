"""A reference is a folder or a hub id. What looks like a folder here, and is none, is a misspelt path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evomerge.checkpoints.references import check_reference, locate
from evomerge.errors import InputError, Where


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("models/base", "models/one", "empty", "spaces"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models/file").write_text("")
    (tmp_path / "models/one/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


MISSPELT = {
    "models/bsae": "there is no folder models/bsae; did you mean the folder models/base? (on the hub it is models",
    "modles/base": "did you mean the folder models/base?",
    "modles/bsae": "did you mean the folder models/base?",
    "models/xyz": "there is no folder models/xyz; use one of: base, one (on the hub it is models/xyz@main)",
    "empty/xyz": "there is no folder empty/xyz; empty holds no folder",
    "models/one+models/bsae": "there is no folder models/bsae; did you mean the folder models/base?",
    "modles/one+org/adapter": "there is no folder modles/one; did you mean the folder models/one?",
    "org/name+models/bsae": "there is no folder models/bsae",
    "./modles": "there is no folder ./modles; did you mean models?",
    "mdels": "there is no folder mdels; did you mean models?",
    "models/file": "models/file is a file, not a model folder",
    "../nowhere/at/all": "there is no folder ../nowhere/at/all; give a model folder or a hub id",
    "models": "models holds models, and is none; use one of: one",
    "~nosuchuser/x": "there is no user of that name",
    "": "an empty text",
}


@pytest.mark.parametrize("ref", MISSPELT)
def test_misspelt_paths_are_no_hub_ids(ref: str) -> None:
    with pytest.raises(InputError, match=re.escape(MISSPELT[ref])):
        check_reference(ref, Where("recipe.yaml", 3, "models.0.model"))


@pytest.mark.parametrize(
    "ref",
    [
        "org/name",
        "org/name@main",
        "models/bsae@main",
        "modles/base@v1",
        "meta-llama/Llama-3.1-8B",
        "gpt2",
        "org/base+org/adapter@v1",
        "models/base+org/adapter",
        "models/base",
        "models/base/",
    ],
)
def test_hub_ids_and_folders_pass(ref: str) -> None:
    check_reference(ref)


def test_a_path_starts_where_its_file_says(folder: Path) -> None:
    here = Where(folder / "spaces/space.yaml", folder=folder / "spaces")
    check_reference("models/bsae", here)  # nothing like it in `spaces`
    with pytest.raises(InputError, match=r"did you mean the folder models/base\?"):
        check_reference("models/bsae", Where("--set", folder=folder))
    assert locate("models/base", here) is None
    assert locate("../models/base", here) == folder / "models/base"
    assert locate("models/base", Where(folder / "spaces/recipe.yaml")) == folder / "models/base"
