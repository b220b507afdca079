"""Tensors that not all models of a recipe store: merged, kept from the base, left out, or refused."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from evomerge.errors import InputError
from evomerge.merging.disk.stream import merge
from evomerge.recipe.mergekit import parse_recipe

V_HEAD = "v_head.summary.weight"
MTP = {"mtp.fc.weight": torch.full((16, 32), 2.0), "mtp.norm.weight": torch.ones(16)}
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def merged(models, tmp_path):
    """Merges a recipe whose <names> are models of the family, or of `folders`: the output's tensors, the lines told."""

    def make(text, **folders):
        for name, folder in {**models, **folders}.items():
            text = text.replace(f"<{name}>", str(folder))
        lines: list[str] = []
        out = merge(parse_recipe(text, "recipe.yaml"), tmp_path / "out", note=lines.append, overwrite=True)
        for name, folder in {**models, **folders}.items():
            lines = [line.replace(str(folder), name) for line in lines]
        return tiny_models.read(out), lines

    return make


def with_more(folder, seed, extra, **changes):
    tensors = tiny_models.base_tensors() if seed == 0 else tiny_models.tuned(tiny_models.base_tensors(), seed)
    return tiny_models.write(folder, tensors | extra, **changes)


AVERAGE = """
merge_method: linear
models:
- {model: <a>, parameters: {weight: 0.5}}
- {model: <b>, parameters: {weight: 0.5}}
"""
TIES = """
merge_method: ties
base_model: <base>
models:
- {model: <a>, parameters: {weight: 0.5, density: 0.5}}
- {model: <b>, parameters: {weight: 0.5, density: 0.5}}
"""


def test_what_all_models_store_is_merged_whether_or_not_it_is_read(merged, tmp_path):
    a = with_more(tmp_path / "a", 1, MTP)
    b = with_more(tmp_path / "b", 2, {name: tensor * 3 for name, tensor in MTP.items()})
    tensors, lines = merged(AVERAGE, a=a, b=b)
    assert tensors["mtp.fc.weight"].equal(torch.full((16, 32), 4.0))
    assert lines == ["mtp.fc.weight, mtp.norm.weight: written, and not read by transformers"]


def test_a_value_head_of_one_source_is_left_out(merged, tmp_path):
    tensors, lines = merged(TIES, a=with_more(tmp_path / "a", 1, {V_HEAD: torch.zeros(1, 16)}))
    assert V_HEAD not in tensors
    assert lines == [f"{V_HEAD}: left out, as only a has it"]


def test_prediction_layers_that_sources_lack_are_the_bases(merged, tmp_path):
    tensors, lines = merged(TIES, base=with_more(tmp_path / "base", 0, MTP))
    assert tensors["mtp.fc.weight"].equal(MTP["mtp.fc.weight"])
    assert lines == [
        "mtp.fc.weight, mtp.norm.weight: kept from base, as a and b lack it",
        "mtp.fc.weight, mtp.norm.weight: written, and not read by transformers",
    ]


def test_without_a_base_the_first_model_keeps_its_own(merged, tmp_path):
    tensors, lines = merged(AVERAGE, a=with_more(tmp_path / "a", 1, MTP))
    assert tensors["mtp.norm.weight"].equal(MTP["mtp.norm.weight"])
    assert lines[0] == "mtp.fc.weight, mtp.norm.weight: kept from a, as b lacks it"


def test_a_layer_that_lacks_a_weight_is_refused(merged, tmp_path):
    tensors = tiny_models.base_tensors()
    del tensors[UP]
    with pytest.raises(InputError, match=f"has no tensor {UP}, which another model"):
        merged(TIES, a=tiny_models.write(tmp_path / "a", tensors))
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(16)}
    with pytest.raises(InputError, match=r"has no tensor .*q_proj\.bias, which another model"):
        merged(TIES, a=with_more(tmp_path / "b", 1, bias, attention_bias=True))


def test_names_of_a_compiled_model_and_of_one_without_its_head(merged, models, tmp_path):
    stored = tiny_models.read(models["a"])
    compiled = tiny_models.write(tmp_path / "c", {f"_orig_mod.{n}": t for n, t in stored.items()})
    bare = {n.removeprefix("model."): t for n, t in stored.items() if n != "lm_head.weight"}
    headless = tiny_models.write(tmp_path / "h", bare, architectures=["LlamaModel"])
    expected, _ = merged(AVERAGE.replace("<a>", "<base>").replace("<b>", "<a>"))
    tensors, lines = merged(AVERAGE.replace("<a>", "<base>").replace("<b>", str(compiled)))
    assert lines == []
    assert all(tensors[name].equal(tensor) for name, tensor in expected.items())
    tensors, lines = merged(AVERAGE.replace("<a>", "<base>").replace("<b>", "<headless>"), headless=headless)
    assert lines == ["lm_head.weight: kept from base, as headless lacks it"]
    assert tensors["lm_head.weight"].equal(tiny_models.read(models["base"])["lm_head.weight"])
    assert all(tensors[name].equal(tensor) for name, tensor in expected.items() if name != "lm_head.weight")


def test_embeddings_that_are_padded_to_other_sizes(merged, tmp_path):
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(17))]
    larger = tiny_models.tuned(tiny_models.base_tensors(vocab=24), 1)
    a = tiny_models.write(tmp_path / "a", larger, tokens=words, vocab_size=24)
    tensors, lines = merged(AVERAGE, a=a)
    assert lines == ["embeddings have 20 and 24 rows for the same 20 tokens: padding is left out"]
    assert tensors["model.embed_tokens.weight"].shape == tensors["lm_head.weight"].shape == (20, 16)


def test_embeddings_of_other_tokens_stay_an_error(merged, tmp_path):
    words = [f"w{i}" for i in range(24)]
    a = tiny_models.write(tmp_path / "a", tiny_models.base_tensors(vocab=24), tokens=words, vocab_size=24)
    with pytest.raises(InputError, match="their vocabularies differ"):
        merged(AVERAGE, a=a)


def test_a_prediction_layer_moves_behind_a_stack_that_grows(merged, tmp_path):
    extra = {
        "model.layers.3.enorm.weight": torch.full((16,), 7.0),
        "model.layers.3.mlp.up_proj.weight": torch.ones(24, 16),
    }
    a = with_more(tmp_path / "a", 1, extra)
    stored = tiny_models.read(a)
    stack = """
merge_method: passthrough
slices:
- sources: [{model: <a>, layer_range: [0, 2]}]
- sources: [{model: <a>, layer_range: [1, 3]}]
"""
    tensors, lines = merged(stack, a=a)
    assert tensors["model.layers.3.mlp.up_proj.weight"].equal(stored["model.layers.2.mlp.up_proj.weight"])
    assert tensors["model.layers.4.mlp.up_proj.weight"].equal(extra["model.layers.3.mlp.up_proj.weight"])
    assert tensors["model.layers.4.enorm.weight"].equal(extra["model.layers.3.enorm.weight"])
    names = "model.layers.4.enorm.weight, model.layers.4.mlp.up_proj.weight"
    assert lines == [f"{names}: written, and not read by transformers"]


def test_a_prediction_layer_moves_behind_a_stack_that_shrinks(merged, tmp_path):
    a = with_more(tmp_path / "a", 1, {"model.layers.3.enorm.weight": torch.full((16,), 7.0)})
    text = "{merge_method: passthrough, slices: [{sources: [{model: <a>, layer_range: [1, 3]}]}]}"
    tensors, _ = merged(text, a=a)
    assert tensors["model.layers.2.enorm.weight"].equal(torch.full((16,), 7.0))
    assert "model.layers.3.enorm.weight" not in tensors


STACK = """
merge_method: passthrough
base_model: <base>
slices:
- sources: [{model: <a>, layer_range: [0, 1]}]
- sources: [{model: <b>, layer_range: [1, 2]}]
"""


@pytest.mark.parametrize("having", ["", "base", "a", "b", "base a", "base b", "a b", "base a b"])
def test_behind_a_stack_stands_what_the_base_stores(having, merged, tmp_path):
    """Prediction layers of the last model, of the base where that has none, of none where the base has none."""
    folders = {}
    for seed, name in enumerate(("base", "a", "b")):
        more = {key: tensor * (seed + 1) for key, tensor in MTP.items()} if name in having.split() else {}
        folders[name] = with_more(tmp_path / name, seed, more)
    tensors, lines = merged(STACK, **folders)
    told = [line for line in lines if "mtp" in line and "not read" not in line]
    names = having.split()
    if "base" not in names:
        assert not tensors.keys() & MTP.keys()
        line = (
            f"mtp.fc.weight, mtp.norm.weight: left out, as only {' and '.join(names)} ha{'ve' if names[1:] else 's'} it"
        )
        assert told == ([line] if names else [])
        return
    seed = 2 if "b" in names else 0
    assert tensors["mtp.fc.weight"].equal(MTP["mtp.fc.weight"] * (seed + 1))
    assert told == ([] if "b" in names else ["mtp.fc.weight, mtp.norm.weight: kept from base, as b lacks it"])
