"""Merging to disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError, StoppedError
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.recipe.mergekit import parse_recipe, read_recipe
from evomerge.recipe.relocated import anchored


@pytest.fixture
def recipe(models, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"# kept as it is\nmerge_method: dare_ties\nbase_model: {models['base']}\nrandom_seed: 5\n"
        f"models:\n- {{model: {models['a']}, parameters: {{weight: 0.5, density: 0.4}}}}\n"
        f"- {{model: {models['b']}, parameters: {{weight: 0.5, density: 0.4}}}}\nout_dtype: bfloat16\n"
    )
    return file


def test_the_folder_is_a_whole_checkpoint(recipe, models, tmp_path):
    seen = []
    folder = merge(recipe, tmp_path / "out", progress=lambda name, share: seen.append((name, share)))
    assert folder == tmp_path / "out"
    assert seen[-1][1] == 1.0
    assert len(seen) == len(tiny_models.shapes())
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["num_hidden_layers"]) == ("bfloat16", 3)
    written = read_recipe(folder / "mergekit_config.yml")
    assert (folder / "mergekit_config.yml").read_text().startswith("# kept as it is\nmerge_method: dare_ties\n")
    assert anchored(written).id == read_recipe(recipe).id
    text = (folder / "README.md").read_text()
    assert read_recipe(recipe).id in text
    assert checkpoint_digest(folder) in text
    assert "`dare_ties`" in text
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("w1 w2")["input_ids"] == [4, 5]


def test_sharded_output_is_the_same_model(recipe, tmp_path):
    whole = merge(recipe, tmp_path / "whole")
    sharded = merge(recipe, tmp_path / "sharded", shard_bytes=3000)
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    assert checkpoint_digest(whole) == checkpoint_digest(sharded)
    a, b = (AutoModelForCausalLM.from_pretrained(f)(torch.arange(9)[None]).logits for f in (whole, sharded))
    assert torch.equal(a, b)


def test_the_seed_selects_the_masks(recipe, tmp_path):
    text = recipe.read_text()
    first = checkpoint_digest(merge(recipe, tmp_path / "first"))
    assert checkpoint_digest(merge(parse_recipe(text), tmp_path / "again")) == first
    other = parse_recipe(text.replace("random_seed: 5", "random_seed: 6"))
    assert checkpoint_digest(merge(other, tmp_path / "other")) != first


def test_a_merge_is_a_source_for_the_next(recipe, models, tmp_path):
    folder = merge(recipe, tmp_path / "out")
    text = f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {folder}}}, {{model: {models['a']}}}]"
    assert checkpoint_digest(merge(parse_recipe(text), tmp_path / "next"))


def test_models_are_found_beside_the_recipe(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = models["base"].parent / "beside.yaml"
    file.write_text("merge_method: passthrough\nmodels: [{model: a}]\n")
    assert checkpoint_digest(merge(file, tmp_path / "out")) == checkpoint_digest(models["a"])


def test_kill_leaves_nothing_like_a_checkpoint(recipe, tmp_path):
    code = (
        "import os, signal, sys; from evomerge.merging.disk.stream import merge\n"
        "merge(sys.argv[1], sys.argv[2], progress=lambda n, s: s > 0.9 and os.kill(os.getpid(), signal.SIGKILL))"
    )
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", code, str(recipe), str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    left = [p for p in tmp_path.iterdir() if p.name.startswith(".out.partial-") and p.is_dir()]
    assert len(left) == 1
    assert not list(left[0].glob("*.safetensors"))
    assert not (left[0] / "config.json").exists()
    with pytest.raises(InputError):
        Checkpoint.open(str(left[0]))
    merge(recipe, out)  # sweeps
    assert sorted(os.listdir(tmp_path)) == ["out", "recipe.yaml"]


def test_a_source_that_changes_meanwhile_leaves_nothing(recipe, models, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(models["a"], copy)
    text = recipe.read_text().replace(str(models["a"]), str(copy))

    def change(name, share):
        if 0.4 < share < 0.6:
            with (copy / "model.safetensors").open("r+b") as stream:
                stream.seek(-4, os.SEEK_END)
                stream.write(bytes(4))

    with pytest.raises(StoppedError, match=r"copy/model.safetensors has changed while it was merged; merge again"):
        merge(parse_recipe(text), tmp_path / "out", progress=change)
    assert sorted(os.listdir(tmp_path)) == ["copy", "recipe.yaml"]


def test_existing_targets(recipe, tmp_path):
    folder = merge(recipe, tmp_path / "out")
    with pytest.raises(InputError, match="exists and is not empty"):
        merge(recipe, folder)
    (folder / "stale").write_text("")
    merge(recipe, folder, overwrite=True)
    assert not (folder / "stale").exists()


def test_values_that_are_not_finite_leave_nothing(models, tmp_path):
    text = (
        f"merge_method: linear\nmodels: [{{model: {models['a']}, parameters: {{weight: 1}}}}, "
        f"{{model: {models['b']}, parameters: {{weight: -1}}}}]"
    )
    with pytest.raises(InputError, match="NaN or Inf"):
        merge(parse_recipe(text), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class TestTokenizer:
    def recipe(self, models, extra):
        listed = ", ".join(f"{{model: {models[n]}}}" for n in ("a", "b"))
        text = (
            f"merge_method: linear\nbase_model: {models['a']}\nparameters: {{weight: 1}}\nmodels: [{listed}]\n{extra}\n"
        )
        return parse_recipe(text)

    @pytest.fixture
    def pair(self, tmp_path):
        folders = {n: tiny_models.write(tmp_path / n, tiny_models.base_tensors(i)) for i, n in enumerate("ab")}
        (folders["a"] / "chat_template.jinja").write_text("A {{ messages }}")
        (folders["b"] / "chat_template.jinja").write_text("B {{ messages }}")
        return folders

    def template(self, pair, tmp_path, extra):
        return (merge(self.recipe(pair, extra), tmp_path / "out") / "chat_template.jinja").read_text()

    def test_the_base_s_files_are_copied(self, pair, tmp_path):
        assert self.template(pair, tmp_path, "") == "A {{ messages }}"

    @pytest.mark.parametrize("source", ["union", "base", "<b>"])
    def test_sources_of_equal_vocabularies(self, pair, tmp_path, source):
        source = source.replace("<b>", str(pair["b"]))
        wanted = "B" if "/" in source else "A"
        assert self.template(pair, tmp_path, f"tokenizer_source: {source}")[0] == wanted

    def test_chat_templates(self, pair, tmp_path):
        assert self.template(pair, tmp_path / "1", "chat_template: 'own {{ x }}'") == "own {{ x }}"
        assert self.template(pair, tmp_path / "2", f"chat_template: {pair['b']}")[0] == "B"
        assert self.template(pair, tmp_path / "3", "chat_template: auto")[0] == "A"
        (pair["a"] / "chat_template.jinja").unlink()
        assert self.template(pair, tmp_path / "4", "chat_template: auto")[0] == "B"
        with pytest.raises(InputError, match="chat_template 'chatmi' is not known"):
            merge(self.recipe(pair, "chat_template: chatmi"), tmp_path / "5")
