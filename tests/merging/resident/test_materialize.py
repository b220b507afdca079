"""The resident model: overwritten in place, and bit for bit the checkpoint that `merge` writes."""

from __future__ import annotations

import math
import time

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError, TrialError
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident import building, materialize
from evomerge.merging.resident import sharding as sharding_module
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.building import check_buildable
from evomerge.merging.resident.materialize import Resident
from evomerge.merging.resident.sharding import Sharding, device_map
from evomerge.recipe.mergekit import parse_recipe, write_recipe
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.registry import METHODS

IDS = torch.arange(1, 19)[None]


def resident(models, dtype="float32"):
    return Resident(Checkpoint.open(str(models["base"])), SourceBank(), dtype)


def document(method, models, dtype, name=None, seed=11):
    """A recipe of `method` with slices, gradients and filters."""
    declared = METHODS[method]
    sources = ["a", "b", "c"][: int(min(3, declared.sources[1]))]
    values = {
        "weight": ({"filter": "mlp", "value": (0.3, 0.9)}, {"value": 0.41}),
        "density": 0.37,
        "scale": 0.9,
        "t": (0.2, 0.7),
        "lambda": 1.1,
        "isotropy": (0.2, 0.7),
        "rank": (0.2, 0.7),
    }
    of = {s: {p.name: values[p.name] for p in declared.parameters if p.scope == s and p.name in values} for s in
          ("source", "tensor")}  # fmt: skip
    spans = [(0, 1), (1, 3)]
    base = [Input(str(models["base"]), None)] if declared.base != "ordinary" else []
    slices = tuple(
        Slice(tuple(Input(i.model, span, i.parameters) for i in
                    (*(Input(str(models[s]), None, of["source"]) for s in sources), *base)), of["tensor"])
        for span in spans
    )  # fmt: skip
    seed = seed if declared.stochastic else 0
    return Document(method, slices, str(models["base"]) if base else None, out_dtype=dtype, name=name, seed=seed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_was_scored_is_what_is_exported(method, dtype, models, models_bf16, tmp_path):
    family = models if dtype == "float32" else models_bf16
    scored = resident(family, dtype)
    recipe = Recipe((document(method, family, dtype),))
    digest = scored.materialize(recipe)
    (tmp_path / "recipe.yaml").write_text(write_recipe(recipe))
    folder = merge(tmp_path / "recipe.yaml", tmp_path / "out")
    assert checkpoint_digest(folder) == digest
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == getattr(torch, dtype)
    assert torch.equal(loaded(IDS).logits, scored.model(IDS).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_several_documents_too(dtype, models, models_bf16, tmp_path):
    family = models if dtype == "float32" else models_bf16
    stages = [document("dare_ties", family, dtype, "one"), document("linear", family, dtype, "two")]
    stack = (Slice((Input("one", (0, 2)),)), Slice((Input("two", (2, 3)),)))
    recipe = Recipe((*stages, Document("passthrough", stack, out_dtype=dtype)))
    scored = resident(family, dtype)
    digest = scored.materialize(recipe)
    (tmp_path / "recipe.yaml").write_text(write_recipe(recipe))
    assert checkpoint_digest(merge(tmp_path / "recipe.yaml", tmp_path / "out")) == digest


def test_tied_models_too(tied_models, tmp_path):
    scored = resident(tied_models)
    recipe = Recipe((document("dare_ties", tied_models, "float32"),))
    digest = scored.materialize(recipe)
    folder = merge(recipe, tmp_path / "out")
    assert checkpoint_digest(folder) == digest
    assert "lm_head.weight" not in tiny_models.read(folder)
    assert scored.model.lm_head.weight.data_ptr() == scored.model.model.embed_tokens.weight.data_ptr()


def test_parameters_are_overwritten_in_place_and_sources_stay(models):
    scored = resident(models)
    model, places = scored.model, {n: p.data_ptr() for n, p in scored.model.named_parameters()}
    recipe = Recipe((document("ties", models, "float32"),))
    first = scored.materialize(recipe)
    scored.load(str(models["a"]))
    assert scored.materialize(recipe) == first
    assert scored.model is model
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == places
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    for name in "abc":
        stored = load_file(models[name] / "model.safetensors")
        assert all(torch.equal(scored.bank.tensor(str(models[name]), n), t) for n, t in stored.items())


def test_nothing_is_read_or_written_after_the_first_candidate(models, tmp_path, monkeypatch):
    scored = resident(models)
    recipe = Recipe((document("dare_ties", models, "float32"),))
    digest = scored.materialize(recipe)
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a source was read again"))
    monkeypatch.setattr(Checkpoint, "open", lambda *_: pytest.fail("a checkpoint was opened again"))
    assert scored.materialize(recipe) == digest


def test_load_is_the_checkpoint_as_it_is(models):
    scored = resident(models)
    for name in ("a", "base"):
        assert scored.load(str(models[name])) == checkpoint_digest(models[name]) == scored.digest()
        loaded = AutoModelForCausalLM.from_pretrained(models[name])
        assert torch.equal(loaded(IDS).logits, scored.model(IDS).logits)


def test_a_fresh_resident_is_its_base(models):
    assert resident(models).digest() == checkpoint_digest(models["base"])


def test_the_digest_tells_bits_apart(models):
    scored = resident(models)
    first = scored.digest()
    with torch.no_grad():
        scored.model.lm_head.weight[0, 0] = torch.nextafter(scored.model.lm_head.weight[0, 0], torch.tensor(9.0))
    assert scored.digest() != first


def test_another_depth_keeps_the_model_object(models, tmp_path):
    scored = resident(models)
    model = scored.model
    deep = tuple(Slice((Input(str(models[m]), span),)) for m, span in (("a", (0, 3)), ("b", (1, 3))))
    recipe = Recipe((Document("passthrough", deep, out_dtype="float32"),))
    digest = scored.materialize(recipe)
    folder = merge(recipe, tmp_path / "deep")
    assert checkpoint_digest(folder) == digest
    assert scored.model is model
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(IDS).logits, model(IDS).logits)
    assert scored.load(str(models["base"])) == checkpoint_digest(models["base"])


def test_values_that_are_not_finite_fail_the_trial_and_name_the_tensor(models):
    scored = resident(models)
    good = Recipe((document("linear", models, "float32"),))
    digest = scored.materialize(good)
    inputs = tuple(Input(str(models[m]), None, {"weight": w}) for m, w in (("a", 1.0), ("b", -1.0)))
    with pytest.raises(TrialError, match=r"model.embed_tokens.weight came out of linear with NaN or Inf \(weight"):
        scored.materialize(Recipe((Document("linear", (Slice(inputs),)),)))
    assert scored.materialize(good) == digest


def test_a_recipe_of_a_dtype_that_the_resident_cannot_hold(models):
    scored = resident(models, "bfloat16")
    with pytest.raises(InputError, match="give the recipe out_dtype: bfloat16"):
        scored.materialize(Recipe((document("linear", models, "float32"),)))


def test_a_wider_resident_holds_a_narrow_recipe_exactly(models, tmp_path):
    scored = resident(models, "float32")
    recipe = Recipe((document("ties", models, "bfloat16"),))
    digest = scored.materialize(recipe)
    assert checkpoint_digest(merge(recipe, tmp_path / "out")) == digest


def test_nan_in_a_source_names_the_tensor(models, tmp_path):
    tensors = tiny_models.base_tensors()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = math.nan
    folder = tiny_models.write(tmp_path / "broken", tensors)
    with pytest.raises(InputError, match=r"model.layers.1.mlp.up_proj.weight holds 1 values that are NaN or Inf"):
        SourceBank().load(str(folder))
    with pytest.raises(InputError, match="NaN or Inf"):
        resident(models).load(str(folder))


def test_a_prefix_of_the_base_model_may_differ(models, tmp_path):
    """Checkpoints of a bare model lack the prefix that the causal model gives its parameters."""
    tensors = {n.removeprefix("model."): t for n, t in tiny_models.base_tensors(tied=True).items()}
    folder = tiny_models.write(tmp_path / "bare", tensors, tie_word_embeddings=True)
    scored = resident({"base": folder})
    assert scored.digest() == scored.load(str(folder)) == checkpoint_digest(folder)


def test_tensors_that_the_model_does_not_read(models, tmp_path):
    """Prediction layers, value heads: they are merged to disk, and so they count in the digest."""
    folder = tmp_path / "more"
    tensors = tiny_models.base_tensors() | {"mtp.fc.weight": torch.ones(4, 4)}
    scored = resident({"base": tiny_models.write(folder, tensors)})
    assert scored.digest() == scored.load(str(folder)) == checkpoint_digest(folder)
    assert scored.load(str(models["base"])) == checkpoint_digest(models["base"])
    recipe = Recipe((Document("linear", (Slice((Input(str(folder), None, {"weight": 0.5}),)),), str(folder)),))
    digest = scored.materialize(recipe)
    assert scored.digest() == digest == checkpoint_digest(merge(recipe, tmp_path / "out"))


def test_parameters_that_the_checkpoint_does_not_have(models, tmp_path):
    tensors = tiny_models.base_tensors()
    del tensors["model.layers.0.mlp.up_proj.weight"]
    folder = tiny_models.write(tmp_path / "odd", tensors)
    with pytest.raises(InputError, match=r"stores no model.layers.0.mlp.up_proj.weight"):
        resident({"base": folder})


def test_a_model_that_takes_for_ever_to_build(models, monkeypatch):
    base = Checkpoint.open(str(models["base"]))
    planned = plan(Recipe((document("linear", models, "float32"),)), SourceBank().open)

    def built(config):
        for _ in range(3000):
            time.sleep(0.01)

    monkeypatch.setattr(building, "skeleton", built)
    monkeypatch.setattr(building, "_SKELETON_SECONDS", 0.05)
    with pytest.raises(InputError, match=r"cannot be loaded .* \(it takes more than 0.05 s to build\)"):
        check_buildable(base, planned)


def test_code_from_a_checkpoint_is_not_run(models, tmp_path):
    folder = tiny_models.write(
        tmp_path / "m", tiny_models.base_tensors(), model_type="mystery", auto_map={"AutoConfig": "code.Config"}
    )
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InputError, match="needs its own Python code"):
        resident({"base": folder})


def test_a_model_without_a_tokenizer(models, tmp_path):
    folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors())
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="tokenizer cannot be loaded"):
        resident({"base": folder})


def test_whole_numbers_that_differ_cannot_be_merged(tmp_path):
    made = {}
    for i, name in enumerate("ab"):
        tensors = tiny_models.base_tensors() | {"model.layers.0.positions": torch.arange(4) + i}
        made[name] = tiny_models.write(tmp_path / name, tensors)
    text = f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {made['a']}}}, {{model: {made['b']}}}]"
    with pytest.raises(InputError, match=r"model.layers.0.positions is torch.int64 and differs between the models"):
        merge(parse_recipe(text), tmp_path / "out")


# Devices


def sharding(stored, devices):
    sizes = {name: info.bytes for name, info in stored.tensors.items()}
    return Sharding(sizes, stored.stack, dict.fromkeys(devices, 10**9))


def skeleton(family):
    return sharding_module._skeleton(AutoConfig.from_pretrained(family["base"]), torch.float32)


def test_every_module_has_its_device(models):
    stored = Checkpoint.open(str(models["base"]))
    found = device_map(skeleton(models), sharding(stored, ["cuda:0", "cuda:1"]))
    assert list(found) == [
        "model.embed_tokens", *(f"model.layers.{i}" for i in range(3)), "model.norm", "lm_head", "model.rotary_emb"
    ]  # fmt: skip
    assert found["model.embed_tokens"] == found["model.layers.0"] == found["model.rotary_emb"] == "cuda:0"
    assert found["model.layers.2"] == found["model.norm"] == found["lm_head"] == "cuda:1"


def test_a_shared_head_lies_with_the_embeddings(tied_models):
    stored = Checkpoint.open(str(tied_models["base"]))
    found = device_map(skeleton(tied_models), sharding(stored, ["cuda:0", "cuda:1"]))
    assert found["model.embed_tokens"] == found["lm_head"] == "cuda:0"
    assert found["model.norm"] == "cuda:1"


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_is_built_shard_by_shard(tied, models, tied_models, monkeypatch):
    """With every device the CPU: what is built on its shards is the model, once it is filled."""
    family = tied_models if tied else models
    maps = []
    whole = sharding_module.device_map

    def on_the_cpu(model, cut):
        maps.append(whole(model, cut))
        return dict.fromkeys(maps[-1], "cpu")

    monkeypatch.setattr(sharding_module, "device_map", on_the_cpu)
    bank, base = SourceBank(), Checkpoint.open(str(family["base"]))
    cut = Resident(base, bank, "float32", {"cuda:0": 1000, "cuda:1": 3000})
    assert cut.devices == "cuda:0,cuda:1"
    assert set(maps[0].values()) == {"cuda:0", "cuda:1"}
    assert cut.digest() == checkpoint_digest(family["base"])
    deep = tuple(Slice((Input(str(family[m]), span),)) for m, span in (("a", (0, 3)), ("b", (1, 3))))
    recipe = Recipe((Document("passthrough", deep, out_dtype="float32"),))
    alone = resident(family)
    assert cut.materialize(recipe) == alone.materialize(recipe)
    assert len([m for m in maps[-1] if "layers" in m]) == 5
    assert torch.equal(cut.model(IDS).logits, alone.model(IDS).logits)
    embedding, head = cut.model.get_input_embeddings().weight, cut.model.lm_head.weight
    assert (embedding.data_ptr() == head.data_ptr()) == tied


def test_a_resident_of_another_configuration_is_filled_by_its_first_recipe(models):
    deep = tuple(Slice((Input(str(models[m]), span),)) for m, span in (("a", (0, 3)), ("b", (1, 3))))
    recipe = Recipe((Document("passthrough", deep, out_dtype="float32"),))
    bank, base = SourceBank(), Checkpoint.open(str(models["base"]))
    scored = Resident(base, bank, "float32", planned=plan(recipe, bank.open), tokenizer="mine")
    assert scored.tokenizer == "mine"
    assert len(scored.model.model.layers) == 5
    model = scored.model
    assert scored.materialize(recipe) == resident(models).materialize(recipe)
    assert scored.model is model


def test_memory_that_runs_out_is_told(models, monkeypatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("evomerge.merging.resident.building.load", full)
    with pytest.raises(InputError, match=r"--device: .*base cannot be loaded .* CUDA out of memory"):
        resident(models)


def test_kept_candidates_are_copied_not_merged_again(models, monkeypatch):
    model = resident(models)
    recipes = [
        Recipe((document("task_arithmetic", models, "float32"),)),
        Recipe((document("ties", models, "float32"),)),
        Recipe((document("linear", models, "float32"),)),
    ]
    fresh = [model.materialize(recipe) for recipe in recipes]
    merged = []
    carry_out = materialize.carry_out
    monkeypatch.setattr(materialize, "carry_out", lambda jobs, *about: merged.extend(jobs) or carry_out(jobs, *about))
    model.materialize(recipes[0])
    assert merged, "without room nothing is kept"
    size = sum(p.nbytes for p in model.model.state_dict().values())
    model.most_kept = 2 * size + 1
    for recipe in recipes:  # there is room for the last two
        model.materialize(recipe)
    merged.clear()
    for at in (1, 2, 1):
        with torch.no_grad():
            next(model.model.parameters()).fill_(7.0)  # as a scorer may leave it
        assert model.materialize(recipes[at]) == fresh[at] == model.digest()
    assert not merged
    assert model.materialize(recipes[0]) == fresh[0] == model.digest()
    assert merged
