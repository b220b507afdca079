"""`merge -I DIR`: the outputs of the named documents stand in DIR, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.errors import InputError
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.recipe.mergekit import parse_recipe
from evomerge.recipe.recipe import Recipe


def staged(models: dict[str, Path], *names: str, last: str = "") -> Recipe:
    """A recipe with a document of each name; `last` is further YAML of the output."""
    documents = [
        f"name: {name}\nmerge_method: linear\nparameters: {{weight: {i}}}\n"
        f"models: [{{model: {models['a']}}}, {{model: {models['b']}}}]"
        for i, name in enumerate(names, start=1)
    ]
    listed = ", ".join(f"{{model: {name}}}" for name in names)
    output = f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{listed}, {{model: {models['c']}}}]\n{last}"
    return parse_recipe("\n---\n".join([*documents, output]))


def renamed(recipe: Recipe, *names: str) -> Recipe:
    """The recipe with other names, as a caller could make it: no file was read."""
    documents = [replace(d, name=name) for d, name in zip(recipe.documents, names, strict=False)]
    return Recipe((*documents, *recipe.documents[len(names) :]))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["../victim", "/tmp/victim", ".", "..", "", "a/b", "-x", "x\x1b", "x" * 300])
def test_a_name_that_is_a_path_is_refused(models, tmp_path, name):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "config.json").write_text("precious")
    before = everything(tmp_path)
    with pytest.raises(InputError, match="cannot name a document"):
        merge(renamed(staged(models, "mean"), name), tmp_path / "out", intermediate=tmp_path / "in", overwrite=True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize(("names", "given"), [("ab", ["Mean", "mean"]), ("ab", ["é", "e\u0301"]), ("ab", ["x", "x"])])
def test_names_that_are_one_folder_on_some_file_systems_are_refused(models, tmp_path, names, given):
    recipe = renamed(staged(models, *names), *given)
    with pytest.raises(InputError, match="would be written to one folder"):
        merge(recipe, tmp_path / "out", intermediate=tmp_path / "in")
    assert not list(tmp_path.iterdir())


def test_a_link_or_a_file_in_the_place_is_refused(models, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "victim").mkdir()
    for make in (
        lambda: (tmp_path / "in" / "mean").symlink_to("../victim"),
        lambda: (tmp_path / "in" / "mean").touch(),
    ):
        make()
        with pytest.raises(InputError, match=r"is a link|is a file"):
            merge(staged(models, "mean"), tmp_path / "out", intermediate=tmp_path / "in", overwrite=True)
        (tmp_path / "in" / "mean").unlink()
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "victim").iterdir())


@pytest.mark.parametrize(("out", "stages"), [("in/mean", "in"), ("in", "in"), ("in/mean/out", "in")])
def test_outputs_stand_apart(models, tmp_path, out, stages):
    with pytest.raises(InputError, match="another output"):
        merge(staged(models, "mean"), tmp_path / out, intermediate=tmp_path / stages, overwrite=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["output", "stage"])
def test_no_input_is_written_over(models, tmp_path, place):
    """The document has the name of an input's folder."""
    before = everything(models["a"])
    targets = {"output": (models["a"], tmp_path / "in"), "stage": (tmp_path / "out", models["a"].parent)}
    out, stages = targets[place]
    with pytest.raises(InputError, match=r"is read"):
        merge(staged(models, "a"), out, intermediate=stages, overwrite=True)
    assert everything(models["a"]) == before
    assert not list(tmp_path.iterdir())


def test_the_recipe_is_not_written_over(models, tmp_path):
    first = merge(staged(models, "mean"), tmp_path / "out")
    before = everything(first)
    with pytest.raises(InputError, match=r"mergekit_config.yml in it is read"):
        merge(first / "mergekit_config.yml", first, overwrite=True)
    assert everything(first) == before


def test_a_document_comes_before_a_folder_of_its_name(models, tmp_path, monkeypatch):
    alone = checkpoint_digest(merge(staged(models, "mean"), tmp_path / "out"))
    (tmp_path / "mean").symlink_to(models["base"])
    monkeypatch.chdir(tmp_path)
    assert checkpoint_digest(merge(staged(models, "mean"), tmp_path / "again")) == alone


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("chat_template: chatmi", "chatmi"),
        ("random_seed: 1", "NaN or Inf"),  # its weights, 1 and -1, are divided by their sum
    ],
)
def test_nothing_is_written_where_the_last_document_is_wrong(models, tmp_path, last, said):
    text = (
        f"name: mean\nmerge_method: linear\nmodels: [{{model: {models['a']}, parameters: {{weight: 1}}}}]\n---\n"
        f"merge_method: linear\nmodels: [{{model: mean, parameters: {{weight: 1}}}}, "
        f"{{model: {models['c']}, parameters: {{weight: -1}}}}]\n{last}"
    )
    with pytest.raises(InputError, match=said):
        merge(parse_recipe(text), tmp_path / "out", intermediate=tmp_path / "in")
    assert not list(tmp_path.iterdir())


def test_stages_appear_with_the_output(models, tmp_path):
    seen = []
    done = merge(
        staged(models, "first", "second"),
        tmp_path / "out",
        intermediate=tmp_path / "in",
        progress=lambda text, share: seen.append([p.name for p in (tmp_path / "in").iterdir() if p.name[0] != "."]),
    )
    assert all(not names for names in seen)
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["first", "second"]
    assert done == tmp_path / "out"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
