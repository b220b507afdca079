"""Layer stacks in place: linked to the sources' own tensors, and the model that `merge` writes, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.merging.resident import stacks as stacks_module
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.materialize import Resident
from evomerge.merging.resident.placement import FILE, HOST, Placement
from evomerge.merging.resident.stacks import hold_stages, lay_out
from evomerge.recipe.recipe import Document, Input, Recipe, Slice

_COMMON = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 20,
           "intermediate_size": 48, "num_hidden_layers": 4}  # fmt: skip
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FAMILIES = {
    "llama": _COMMON,
    "qwen3": {**_COMMON, "tie_word_embeddings": True},
    "gemma2": {**_COMMON, "sliding_window": 4},
    "mixtral": {**_COMMON, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {**_COMMON, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
IDS = torch.arange(1, 13)[None]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request, tmp_path_factory):
    """Two models of one architecture, by name."""
    folder, models = tmp_path_factory.mktemp(request.param), {}
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(request.param, **_TOKENS, **FAMILIES[request.param])
        config.initializer_range = 0.3
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder / name)
        tiny_models.write_tokenizer(folder / name)
        models[name] = str(folder / name)
    return models


def stack(*slices: tuple, dtype: str = "float32") -> Recipe:
    """A stack of (model, first layer, layer behind the last, scale of what the layers add)."""
    listed = []
    for model, start, end, scale in slices:
        values: Mapping = {}
        if scale != 1:
            filters = [{"filter": part, "value": scale} for part in ("o_proj", "down_proj", "w2")]
            values = {"scale": (*filters, {"value": 1.0})}
        listed.append(Slice((Input(model, (start, end), values),)))
    return Recipe((Document("passthrough", tuple(listed), out_dtype=dtype),))


def stacks(models):
    a, b = models["a"], models["b"]
    return {
        "two sources": stack((a, 0, 2, 1), (b, 2, 4, 1)),
        "deeper": stack((a, 0, 3, 1), (b, 0, 4, 1), (a, 3, 4, 1)),
        "repeated": stack((a, 0, 2, 1), (a, 0, 2, 1), (b, 1, 2, 1), (b, 1, 2, 1), (a, 3, 4, 1)),
        "scaled": stack((a, 0, 2, 1), (b, 1, 3, 0.7), (b, 1, 3, 1.9), (a, 3, 4, 0.5)),
        "shallower": stack((a, 0, 1, 1), (a, 3, 4, 1)),
    }


NAMES = ["two sources", "deeper", "repeated", "scaled", "shallower"]


def filled(models, placement=None, keep=0):
    """A resident model of `a`, its bank laid out for stacks."""
    bank = SourceBank(placement=placement)
    for model in models.values():
        bank.add(Checkpoint.open(model))
    lay_out(bank)
    resident = Resident(bank.open(models["a"]), bank, "float32")
    resident.most_kept = keep
    return resident


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_in_place_is_the_checkpoint_that_is_written(family, name, tmp_path):
    resident, recipe = filled(family), stacks(family)[name]
    digest = resident.materialize(recipe)
    folder = merge(recipe, tmp_path / "out")
    assert checkpoint_digest(folder) == digest == resident.digest()
    written = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(written(IDS).logits, resident.model(IDS).logits)
    config = resident.model.config
    assert config.num_hidden_layers == written.config.num_hidden_layers == len(resident.model.model.layers)
    assert getattr(config, "layer_types", None) == getattr(written.config, "layer_types", None)


@pytest.mark.parametrize("name", NAMES)
def test_generation_with_the_cache_is_that_without(family, name):
    resident = filled(family)
    resident.materialize(stacks(family)[name])
    settings = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    cached, plain = (resident.model.generate(IDS, use_cache=cache, **settings) for cache in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("name", ["two sources", "deeper", "repeated", "shallower"])
def test_no_weight_is_copied(family, name):
    """Each layer's parameters are the source's memory, and nothing but modules is allocated."""
    resident, recipe = filled(family), stacks(family)[name]
    for model in family.values():
        resident.bank.load(model)
    kept = {t.untyped_storage().data_ptr() for t in resident.bank._tensors.values()}
    resident.materialize(recipe)
    layers = resident.model.model.layers
    assert all(p.untyped_storage().data_ptr() in kept for p in layers.parameters())
    before = resident.bank.bytes()
    resident.materialize(stacks(family)["two sources"])
    assert resident.bank.bytes() == before


def test_stacks_and_merges_take_turns(family):
    """Each candidate is the same whatever was there before it, and no merge writes into a source."""
    resident, recipes = filled(family, keep=1 << 20), stacks(family)
    inputs = tuple(Input(family[n], None, {"weight": 0.5}) for n in "ab")
    recipes["merge"] = Recipe((Document("linear", (Slice(inputs),), out_dtype="float32"),))
    digests = {name: filled(family).materialize(recipe) for name, recipe in recipes.items()}
    for name in (*recipes, *reversed(recipes), "merge", "scaled", "merge", "repeated"):
        assert resident.materialize(recipes[name]) == digests[name] == resident.digest()
    for model in family.values():
        assert resident.load(model) == checkpoint_digest(model)


def everywhere(home: str) -> Placement:
    class Everywhere(dict):
        def get(self, key, default=None):
            return home

    return Placement(room={"cpu": 1}, resident={}, weights={}, reserves={}, peaks={}, totals={}, moved=0, seconds=0.0,
                     homes=Everywhere())  # fmt: skip


def fail(*_):
    raise RuntimeError("a layer that fails")


@pytest.mark.parametrize("name", NAMES)
def test_what_stays_in_files_is_streamed_through_the_layers(family, name, monkeypatch):
    """A stack that is deeper than the resident model has memory for."""
    recipe = stacks(family)[name]
    linked, streamed = filled(family, everywhere(HOST)), filled(family, everywhere(FILE))
    assert linked.materialize(recipe) == streamed.materialize(recipe)
    reads = []
    read = Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda self, name: reads.append(name) or read(self, name))
    with torch.no_grad():
        assert torch.equal(linked.model(IDS).logits, streamed.model(IDS).logits)
    assert bool(reads) == (name in ("deeper", "repeated", "scaled"))
    before = [p.untyped_storage().nbytes() for p in streamed.model.model.layers.parameters()]
    handle = streamed.model.model.layers[-1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a layer that fails"):
        streamed.model(IDS)
    handle.remove()
    assert [p.untyped_storage().nbytes() for p in streamed.model.model.layers.parameters()] == before
    assert streamed.digest() == linked.digest()


def test_sources_are_read_again_where_code_wrote_into_them(family, monkeypatch):
    resident, recipe = filled(family), stacks(family)["two sources"]
    digest = resident.materialize(recipe)
    with monkeypatch.context() as patched:
        patched.setattr(resident.bank, "forget", lambda: pytest.fail("nothing was written"))
        resident.distrust()
    with torch.no_grad():
        next(resident.model.model.layers[0].parameters()).add_(1)
    resident.distrust()
    assert resident.materialize(recipe) == digest == resident.digest()


def test_a_merge_that_a_stack_takes_layers_from_is_made_once(family, tmp_path, monkeypatch):
    a, b = family["a"], family["b"]
    inputs = tuple(Input(model, None, {"weight": 0.5}) for model in (a, b))
    merged = Document("linear", (Slice(inputs),), out_dtype="float32", name="winner")
    layers = (Slice((Input("winner", (0, 2)),)), Slice((Input(b, (1, 3)),)), Slice((Input("winner", (3, 4)),)))
    recipe = Recipe((merged, Document("passthrough", layers, out_dtype="float32")))
    bank = SourceBank()
    for model in family.values():
        bank.add(Checkpoint.open(model))
    whole = sum(info.bytes for info in bank.open(a).tensors.values())
    assert hold_stages(bank, recipe) == whole
    lay_out(bank)
    resident = Resident(bank.open(a), bank, "float32")
    digest = resident.materialize(recipe)
    assert checkpoint_digest(merge(recipe, tmp_path / "out")) == digest
    kept = {t.untyped_storage().data_ptr() for t in bank._tensors.values()}
    assert all(p.untyped_storage().data_ptr() in kept for p in resident.model.parameters())
    monkeypatch.setattr(stacks_module, "execute", lambda *_: pytest.fail("merged again"))
    shorter = replace(recipe.output, slices=layers[::2])
    assert resident.materialize(Recipe((merged, shorter))) != digest
    assert resident.materialize(recipe) == digest
