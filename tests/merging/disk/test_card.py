"""The card of a merge: front matter that the hub reads, and no path of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_models
from huggingface_hub import ModelCard, ModelCardData

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.disk.origin import Origin
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.recipe.mergekit import parse_recipe, read_recipe
from evomerge.recipe.relocated import anchored
from evomerge.registry import METHODS, PAPERS
from tests.checkpoints.variants import write_adapter

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(root: Path, source: Path, name: str, card: str = "") -> Path:
    """A copy of a model where the hub's cache has it."""
    folder = root / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT
    shutil.copytree(source, folder)
    if card:
        (folder / "README.md").write_text(f"---\n{card}\n---\n")
    return folder


def recipe_of(base: Path, *sources: Path | str) -> str:
    listed = "".join(f"- {{model: '{source}', parameters: {{weight: 0.5}}}}\n" for source in sources)
    return f"merge_method: ties\nbase_model: '{base}'\nparameters: {{density: 0.5}}\nmodels:\n{listed}"


def metadata(folder: Path) -> dict[str, object]:
    return ModelCard.load(folder / "README.md").data.to_dict()


def test_the_front_matter_names_all_models_and_the_strictest_licence(models: dict[str, Path], tmp_path: Path) -> None:
    base = cached(tmp_path, models["base"], "org/base", "license: apache-2.0\nlanguage: en\ndatasets: [a/x]")
    one = cached(tmp_path, models["a"], "org/one", "license: llama3.1\nlanguage: [ja, en]\ndatasets: [a/x, b/y]")
    adapter = write_adapter(tmp_path / "lora", Checkpoint.open(str(base)))
    notes: list[str] = []
    folder = merge(parse_recipe(recipe_of(base, one, f"{base}+{adapter}")), tmp_path / "out", note=notes.append)
    found = metadata(folder)
    assert isinstance(ModelCard.load(folder / "README.md").data, ModelCardData)
    assert found == {
        "base_model": ["org/base", "org/one"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": ["en", "ja"],
        "license": "llama3.1",
        "datasets": ["a/x", "b/y"],
        "tags": ["merge", "mergekit", "evomerge", "arxiv:2306.01708"],
    }
    text = (folder / "README.md").read_text()
    assert f"- [`org/base`](https://huggingface.co/org/base) (commit `{COMMIT}`), apache\\-2.0\n" in text
    assert "with `lora`" in text
    assert any("no model card of lora names a licence" in line for line in notes)


def test_a_conflict_of_licences_is_a_warning_that_names_both(models: dict[str, Path], tmp_path: Path) -> None:
    base = cached(tmp_path, models["base"], "org/base", "license: gemma")
    one = cached(tmp_path, models["a"], "org/one", "license: llama3.1")
    notes: list[str] = []
    folder = merge(parse_recipe(recipe_of(base, one)), tmp_path / "out", note=notes.append)
    (line,) = [note for note in notes if "licences" in note]
    assert line.startswith("warning: the licences of org/base (gemma) and org/one (llama3.1) cannot both be kept")
    assert "> the licences of org/base" in (folder / "README.md").read_text()
    assert metadata(folder)["license"] == "gemma"


def test_the_text_of_a_licence_goes_with_the_merge(models: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(models["base"], tmp_path / "base")
    (tmp_path / "base/README.md").write_text("---\nlicense: other\nlicense_name: lab\nlicense_link: LICENSE\n---\n")
    (tmp_path / "base/LICENSE").write_text("You may.")
    folder = merge(parse_recipe(recipe_of(tmp_path / "base", models["a"])), tmp_path / "out")
    found = metadata(folder)
    assert (found["license"], found["license_name"], found["license_link"]) == ("other", "lab", "LICENSE")
    assert (folder / "LICENSE").read_text() == "You may."


def test_local_models_go_by_the_names_of_their_folders(models: dict[str, Path], tmp_path: Path) -> None:
    for name in ("x/chat", "y/chat"):
        shutil.copytree(models["a"], tmp_path / "home/alice" / name)
    text = recipe_of(models["base"], tmp_path / "home/alice/x/chat", tmp_path / "home/alice/y/chat")
    folder = merge(parse_recipe(text), tmp_path / "home/alice/out")
    card = (folder / "README.md").read_text()
    assert "base_model" not in metadata(folder)
    assert "\n- `chat`\n- `chat-2`\n" in card
    assert "- model: chat-2\n" in card
    written = (folder / "mergekit_config.yml").read_text()
    assert "model: ../x/chat\n" in written
    for file in (folder / "reproduce.json", folder / "README.md", folder / "mergekit_config.yml"):
        assert str(tmp_path) not in file.read_text()
        assert "alice" not in file.read_text()
    again = merge(anchored(read_recipe(folder / "mergekit_config.yml")), tmp_path / "again")
    assert checkpoint_digest(again) == checkpoint_digest(folder)


def test_a_folder_on_another_branch_of_the_tree_goes_by_its_name(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path from one to the other would spell the folders above it."""
    (tmp_path / "home/alice").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home/alice"))
    shutil.copytree(models["a"], tmp_path / "home/bob/tuned")
    folder = merge(parse_recipe(recipe_of(models["base"], tmp_path / "home/bob/tuned")), tmp_path / "home/alice/out")
    written = (folder / "mergekit_config.yml").read_text()
    assert "model: tuned\n" in written
    assert "bob" not in written
    assert "bob" not in (folder / "reproduce.json").read_text()


def test_a_card_takes_no_markup_from_names(models: dict[str, Path], tmp_path: Path) -> None:
    """A folder and a model with names that are Markdown, HTML and YAML; results with a line that ends nothing."""
    hostile = tmp_path / "a`b [x](y) <img src=x> | '---"
    shutil.copytree(models["a"], hostile)
    (hostile / "README.md").write_text("---\nlicense: \"mit\\n---\\n<script>\"\nlanguage: ['en: x', '- y']\n---\n")
    file = tmp_path / "recipe.yaml"
    text = f'# ```\n# <script>\nmerge_method: linear\nmodels:\n- {{model: "{hostile}", parameters: {{weight: 1.0}}}}\n'
    file.write_text(text)
    folder = merge(file, tmp_path / "# out <b>|`x`", origin=Origin("## Results\n\nnone"))
    card = (folder / "README.md").read_text()
    assert "\n# \\# out \\<b\\>\\|\\`x\\`\n" in card
    assert f"\n- ``{hostile.name}``\n" in card
    body = card.split("\n---\n", 1)[1]
    assert "<script>" not in body.replace("```", "")
    assert "\n## Results\n\nnone\n" in card
    assert metadata(folder) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "mergekit", "evomerge", "arxiv:2203.05482"],
    }


def test_papers_are_of_methods_that_exist() -> None:
    assert PAPERS.keys() <= METHODS.keys()
    assert all(len(number) == 10 and number[4] == "." for numbers in PAPERS.values() for number in numbers)


def test_a_model_without_a_configuration_names_no_library(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        tiny_models.write(tmp_path / name, tiny_models.base_tensors(seed))
        (tmp_path / name / "config.json").unlink()
    # Without embeddings nothing asks for a configuration.
    from safetensors.torch import load_file, save_file

    for name in ("a", "b"):
        state = {k: v for k, v in load_file(tmp_path / name / "model.safetensors").items() if "layers" in k}
        save_file(state, tmp_path / name / "model.safetensors", {"format": "pt"})
    folder = merge(
        parse_recipe(
            "merge_method: linear\nparameters: {weight: 1}\n"
            f"models: [{{model: {tmp_path}/a}}, {{model: {tmp_path}/b}}]"
        ),
        tmp_path / "out",
    )
    assert metadata(folder) == {"tags": ["merge", "mergekit", "evomerge", "arxiv:2203.05482"]}
