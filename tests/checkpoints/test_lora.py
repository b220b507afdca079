"""Adapters by hand, against the formulas of their papers. The formulas were checked against PEFT 0.21 (same bits)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from evomerge.checkpoints import lora_config
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.preflight import check_finite
from evomerge.errors import InputError, Where

PREFIX = "base_model.model."
Q, UP, DOWN = (f"model.layers.1.{part}" for part in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"))
EMBED, HEAD = "model.embed_tokens", "lm_head"


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(module, base, rank=4, seed=1):
    """lora_A and lora_B of a linear layer whose weight is [outputs, inputs]."""
    outputs, inputs = base[f"{module}.weight"].shape
    return {f"{module}.lora_A.weight": noise(rank, inputs, seed=seed),
            f"{module}.lora_B.weight": noise(outputs, rank, seed=seed + 1)}  # fmt: skip


def write_adapter(folder, tensors, **config):
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": None, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({PREFIX + n: t.contiguous() for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def base():
    return tiny_models.base_tensors()


@pytest.fixture
def make(tmp_path, base):
    """Opens base+adapter; keys of `model` change the base's config.json."""

    def opened(tensors, model=None, stored=None, **config):
        tiny_models.write(tmp_path / "base", base if stored is None else stored, **(model or {}))
        adapter = write_adapter(tmp_path / "adapter", tensors, **config)
        return Checkpoint.open(f"{tmp_path / 'base'}+{adapter}")

    return opened


def moved(tensors, module, scale):
    return scale * tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]


def test_only_the_adapted_weights_change(make, base):
    tensors = pair(Q, base) | pair(DOWN, base, seed=5)
    opened = make(tensors)
    assert list(opened.tensors) == list(Checkpoint.open(str(opened.path)).tensors)
    for name, tensor in base.items():
        module = name.removesuffix(".weight")
        wanted = tensor + moved(tensors, module, 2.0) if module in (Q, DOWN) else tensor
        assert torch.allclose(opened.read(name), wanted, atol=1e-6), name


@settings(max_examples=20, deadline=None)
@given(rank=st.integers(1, 7), alpha=st.floats(0.5, 64), stable=st.booleans())
def test_scale_is_alpha_over_the_rank_or_its_root(tmp_path_factory, rank, alpha, stable):
    base, folder = tiny_models.base_tensors(), tmp_path_factory.mktemp("scale")
    tiny_models.write(folder / "base", base)
    tensors = pair(UP, base, rank)
    write_adapter(folder / "adapter", tensors, r=rank, lora_alpha=alpha, use_rslora=stable)
    found = Checkpoint.open(f"{folder / 'base'}+{folder / 'adapter'}").read(f"{UP}.weight")
    wanted = moved(tensors, UP, alpha / (rank**0.5 if stable else rank))
    assert torch.allclose(found - base[f"{UP}.weight"], wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_patterns_give_modules_their_own_rank_and_alpha(make, base):
    tensors = pair(Q, base, 2) | pair(UP, base) | pair(DOWN, base)
    patterns = {
        "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2, "k_proj": 9},
        "alpha_pattern": {"up_proj": 1, r".*\.mlp.*": 3},
    }
    opened = make(tensors, **patterns)
    for module, scale in ((Q, 8 / 2), (UP, 1 / 4), (DOWN, 3 / 4)):
        wanted = base[f"{module}.weight"] + moved(tensors, module, scale)
        assert torch.allclose(opened.read(f"{module}.weight"), wanted, atol=1e-5), module


def test_rounded_once_to_the_dtype_of_the_base(make, base):
    half = {n: t.bfloat16() for n, t in base.items()}
    tensors = pair(Q, base)
    opened = make(tensors, stored=half)
    assert opened.dtype == "bfloat16"
    wanted = (half[f"{Q}.weight"].float() + moved(tensors, Q, 2.0)).bfloat16()
    assert torch.equal(opened.read(f"{Q}.weight"), wanted)


def test_any_number_of_threads_gives_equal_bits(tmp_path):
    base = tiny_models.base_tensors()
    wide = {n: noise(600, 500, seed=3) if n == f"{UP}.weight" else t for n, t in base.items()}
    tiny_models.write(tmp_path / "base", wide)
    write_adapter(tmp_path / "adapter", pair(UP, wide, 64), r=64)
    opened, before = Checkpoint.open(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(opened.read(f"{UP}.weight"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], t) for t in found)


def test_dora_gives_every_output_its_magnitude(make, base):
    tensors = pair(UP, base) | {f"{UP}.lora_magnitude_vector": noise(tiny_models.INNER).abs() + 0.5}
    found = make(tensors, use_dora=True).read(f"{UP}.weight")
    assert torch.allclose(found.norm(dim=1), tensors[f"{UP}.lora_magnitude_vector"], atol=1e-5)
    direction = base[f"{UP}.weight"] + moved(tensors, UP, 2.0)
    assert torch.allclose(torch.cosine_similarity(found, direction), torch.ones(len(found)), atol=1e-5)


def test_embeddings_are_adapted_by_row(make, base):
    tensors = {f"{EMBED}.lora_embedding_A": noise(4, tiny_models.VOCAB),
               f"{EMBED}.lora_embedding_B": noise(tiny_models.HIDDEN, 4, seed=2)}  # fmt: skip
    a, b = tensors.values()
    wanted = base[f"{EMBED}.weight"] + 2.0 * (b @ a).T
    assert torch.allclose(make(tensors).read(f"{EMBED}.weight"), wanted, atol=1e-5)


def test_square_conv1d_weights_are_transposed(tmp_path):
    """GPT-2 stores [inputs, outputs], and its checkpoints may lack the prefix that adapters have."""
    size, layer = 8, "h.0.attn"
    stored = {"wte.weight": noise(12, size), f"{layer}.c_proj.weight": noise(size, size),
              f"{layer}.c_attn.weight": noise(size, 3 * size), "ln_f.weight": noise(size)}  # fmt: skip
    settings = {
        "model_type": "gpt2",
        "n_layer": 1,
        "vocab_size": 12,
        "num_hidden_layers": None,
        "tie_word_embeddings": True,
    }
    tiny_models.write(tmp_path / "base", stored, **settings)
    tensors = {}
    for part, outputs in (("c_proj", size), ("c_attn", 3 * size)):
        module = f"transformer.{layer}.{part}"
        tensors |= {f"{module}.lora_A.weight": noise(4, size, seed=3), f"{module}.lora_B.weight": noise(outputs, 4)}
    write_adapter(tmp_path / "adapter", tensors, fan_in_fan_out=True)
    opened = Checkpoint.open(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
    for part in ("c_proj", "c_attn"):
        wanted = stored[f"{layer}.{part}.weight"] + moved(tensors, f"transformer.{layer}.{part}", 2.0).T
        assert torch.allclose(opened.read(f"{layer}.{part}.weight"), wanted, atol=1e-5)


def test_biases(make, base):
    """`bias: all` saves them whole; `lora_bias` adds to them."""
    for module in (Q, UP):
        base[f"{module}.bias"] = noise(len(base[f"{module}.weight"]), seed=9)
    tensors = pair(Q, base) | {f"{Q}.lora_B.bias": noise(len(base[f"{Q}.bias"]), seed=7)}
    tensors |= {f"{UP}.base_layer.bias": noise(tiny_models.INNER, seed=8)}
    opened = make(tensors, lora_bias=True, bias="all")
    assert torch.allclose(opened.read(f"{Q}.bias"), base[f"{Q}.bias"] + 2.0 * tensors[f"{Q}.lora_B.bias"])
    assert torch.equal(opened.read(f"{UP}.bias"), tensors[f"{UP}.base_layer.bias"])


def test_trained_modules_replace_the_base_s(make, base):
    norm = noise(tiny_models.HIDDEN)
    tensors = pair(Q, base) | {
        "model.norm.modules_to_save.weight": norm,
        f"{HEAD}.weight": noise(*base["lm_head.weight"].shape),
    }
    opened = make(tensors, modules_to_save=["norm", "lm_head"])
    assert torch.equal(opened.read("model.norm.weight"), norm)
    assert torch.equal(opened.read("lm_head.weight"), tensors["lm_head.weight"])


def test_an_extended_vocabulary(make, base):
    rows = tiny_models.VOCAB + 3
    tensors = pair(Q, base) | {
        f"{n}.weight": noise(rows, tiny_models.HIDDEN, seed=i) for i, n in enumerate((EMBED, HEAD))
    }
    opened = make(tensors)
    assert opened.config["vocab_size"] == rows
    assert opened.tensors[f"{EMBED}.weight"].shape == (rows, tiny_models.HIDDEN)
    assert torch.equal(opened.read(f"{HEAD}.weight"), tensors[f"{HEAD}.weight"])


def test_trained_tokens_replace_rows(make, base):
    rows = noise(2, tiny_models.HIDDEN)
    tensors = {f"{EMBED}.token_adapter.trainable_tokens_delta": rows}
    found = make(tensors, trainable_token_indices=[5, 3]).read(f"{EMBED}.weight")
    wanted = base[f"{EMBED}.weight"].clone()
    wanted[5], wanted[3] = rows
    assert torch.equal(found, wanted)


class TestTied:
    """PEFT trains one of the two matrices alone, unless it is told otherwise."""

    @pytest.fixture
    def tied(self, make):
        stored = tiny_models.base_tensors(tied=True)
        return lambda tensors, **config: (
            make(tensors, {"tie_word_embeddings": True}, stored, **config), stored[f"{EMBED}.weight"]
        )  # fmt: skip

    def embedding_pair(self):
        return {f"{EMBED}.lora_embedding_A": noise(4, tiny_models.VOCAB),
                f"{EMBED}.lora_embedding_B": noise(tiny_models.HIDDEN, 4, seed=2)}  # fmt: skip

    def test_an_adapted_head_parts_from_the_embeddings(self, tied):
        shape = {"lm_head.weight": torch.empty(tiny_models.VOCAB, tiny_models.HIDDEN)}
        tensors = pair(HEAD, shape)
        opened, embedding = tied(tensors)
        assert not opened.tied
        assert torch.allclose(opened.read("lm_head.weight"), embedding + moved(tensors, HEAD, 2.0), atol=1e-5)
        assert torch.equal(opened.read(f"{EMBED}.weight"), embedding)

    def test_adapted_embeddings_part_from_the_head(self, tied):
        opened, embedding = tied(self.embedding_pair())
        assert not opened.tied
        assert torch.equal(opened.read("lm_head.weight"), embedding)
        assert not torch.equal(opened.read(f"{EMBED}.weight"), embedding)

    def test_adapted_together_they_stay_one(self, tied):
        assert tied(self.embedding_pair(), ensure_weight_tying=True)[0].tied

    def test_saved_alike_they_stay_one(self, tied):
        grown = noise(tiny_models.VOCAB + 2, tiny_models.HIDDEN)
        opened, _ = tied({f"{EMBED}.weight": grown, "lm_head.weight": grown.clone()})
        assert opened.tied
        assert "lm_head.weight" not in opened.stored
        assert torch.equal(opened.read(f"{EMBED}.weight"), grown)

    def test_saved_apart_they_part(self, tied):
        one, other = (noise(tiny_models.VOCAB, tiny_models.HIDDEN, seed=i) for i in (1, 2))
        opened, _ = tied({f"{EMBED}.weight": one, "lm_head.weight": other})
        assert not opened.tied
        assert torch.equal(opened.read("lm_head.weight"), other)

    def test_trained_tokens_are_the_head_s_too(self, tied):
        rows = {f"{EMBED}.token_adapter.trainable_tokens_delta": noise(1, tiny_models.HIDDEN)}
        assert tied(rows, trainable_token_indices={"embed_tokens": [4]})[0].tied


class TestReferences:
    @pytest.fixture
    def folders(self, tmp_path, base):
        tiny_models.write(tmp_path / "base", base)
        write_adapter(tmp_path / "adapter", pair(Q, base))
        return tmp_path

    def test_resolved_and_files_name_both(self, folders):
        opened = Checkpoint.open(f"{folders / 'base'}+{folders / 'adapter'}")
        assert opened.resolved() == f"{folders / 'base'}+{folders / 'adapter'}"
        assert Checkpoint.open(opened.resolved()).fingerprint() == opened.fingerprint()
        names = {f"{f.parent.name}/{f.name}" for f in opened.files()}
        assert {"base/model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"} <= names

    def test_the_fingerprint_is_of_both(self, folders, base):
        reference = f"{folders / 'base'}+{folders / 'adapter'}"
        before = Checkpoint.open(reference).fingerprint()
        assert before != Checkpoint.open(str(folders / "base")).fingerprint()
        write_adapter(folders / "adapter", pair(Q, base, seed=9))
        assert Checkpoint.open(reference).fingerprint() != before

    def test_both_halves_are_looked_for_beside_the_file(self, folders):
        opened = Checkpoint.open("base+adapter", Where(folders / "recipe.yaml", 3))
        assert opened.resolved() == f"{folders / 'base'}+{folders / 'adapter'}"

    def test_a_plus_in_a_folder_s_name_is_none_of_ours(self, folders, base):
        (folders / "a+b").mkdir()
        (folders / "base").rename(folders / "a+b" / "base")
        (folders / "adapter").rename(folders / "a+b" / "adapter")
        assert Checkpoint.open(f"{folders}/a+b/base").resolved() == f"{folders}/a+b/base"
        reference = f"{folders}/a+b/base+{folders}/a+b/adapter"
        assert Checkpoint.open(reference).resolved() == reference

    def test_an_adapter_alone_belongs_to_the_base_that_it_names(self, folders, base):
        write_adapter(folders / "adapter", pair(Q, base), base_model_name_or_path=str(folders / "base"))
        opened = Checkpoint.open(str(folders / "adapter"))
        assert opened.reference == str(folders / "adapter")
        assert opened.resolved() == f"{folders / 'base'}+{folders / 'adapter'}"

    @pytest.mark.parametrize("named", [None, "/home/somebody/llama"])
    def test_else_to_the_given_one(self, folders, base, named):
        write_adapter(folders / "adapter", pair(Q, base), base_model_name_or_path=named)
        given = Checkpoint.open(str(folders / "base"))
        opened = Checkpoint.open(str(folders / "adapter"), base=given)
        assert opened.resolved() == f"{folders / 'base'}+{folders / 'adapter'}"
        with pytest.raises(InputError, match=r"its base|name its base"):
            Checkpoint.open(str(folders / "adapter"))

    def test_the_tokenizer_is_the_adapter_s_if_it_brings_one(self, folders):
        reference = f"{folders / 'base'}+{folders / 'adapter'}"
        assert Checkpoint.open(reference).tokenizer_path == folders / "base"
        tiny_models.write_tokenizer(folders / "adapter")
        assert Checkpoint.open(reference).tokenizer_path == folders / "adapter"

    def test_opening_does_not_import_torch(self, folders):
        code = "import sys; from evomerge.checkpoints.checkpoint import Checkpoint; Checkpoint.open(sys.argv[1]);"
        code += "print('torch' in sys.modules)"
        command = [sys.executable, "-c", code, f"{folders / 'base'}+{folders / 'adapter'}"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


class TestBad:
    """Each is one line that says what and how to mend."""

    def problem(self, make, tensors, **config):
        with pytest.raises(InputError) as caught:
            make(tensors, **config)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ({"peft_type": "IA3"}, "it is of type IA3, not LORA"),
            ({"target_parameters": "experts"}, "target_parameters in its adapter_config.json is 'experts', not a list"),
            ({"layer_replication": [[0, 2]]}, "layer_replication in its"),
            ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens in its"),
            ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
            ({"r": "four"}, "r in its adapter_config.json is 'four', not a whole number above 0"),
            ({"rank_pattern": [1]}, "rank_pattern in its adapter_config.json is not a mapping"),
            ({"r": 8}, f"{Q} has rank 4, by its adapter_config.json 8"),
        ],
    )  # fmt: skip
    def test_configurations(self, make, base, config, said):
        assert said in self.problem(make, pair(Q, base), **config)

    def test_another_model_s_adapter(self, make, base):
        wide = {f"{Q}.weight": torch.empty(99, tiny_models.HIDDEN)}
        said = self.problem(make, pair(Q, wide))
        assert f"{Q} is for [99, 16], in " in said
        assert "it is [16, 16]; give the model that it was trained on" in said
        deep = {"model.layers.7.mlp.up_proj.weight": torch.empty(4, 4)}
        assert "it changes model.layers.7.mlp.up_proj.weight, which" in self.problem(
            make, pair("model.layers.7.mlp.up_proj", deep)
        )
        assert "model.norm.weight is [3], in" in self.problem(make, {"model.norm.weight": noise(3)})

    def test_half_a_pair(self, make, base):
        tensors = pair(Q, base)
        del tensors[f"{Q}.lora_B.weight"]
        assert f"{Q} has only one of lora_A and lora_B" in self.problem(make, tensors)

    def test_convolutions(self, make):
        tensors = {f"{Q}.lora_A.weight": noise(4, 3, 3, 3), f"{Q}.lora_B.weight": noise(8, 4, 1, 1)}
        assert "only LoRA on linear layers and embeddings" in self.problem(make, tensors)

    def test_tokens_out_of_range(self, make):
        tensors = {f"{EMBED}.token_adapter.trainable_tokens_delta": noise(1, tiny_models.HIDDEN)}
        assert "its trained tokens are [1, 16] for 1 of 20 rows" in self.problem(
            make, tensors, trainable_token_indices=[20]
        )

    def test_pickled_weights(self, tmp_path, base):
        tiny_models.write(tmp_path / "base", base)
        folder = write_adapter(tmp_path / "adapter", pair(Q, base))
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        with pytest.raises(InputError, match="holds pickled weights only"):
            Checkpoint.open(f"{tmp_path / 'base'}+{folder}")

    def test_two_adapters(self, tmp_path):
        with pytest.raises(InputError, match="more than one adapter"):
            Checkpoint.open("org/a+org/b+org/c")

    def test_a_model_is_no_adapter(self, models):
        with pytest.raises(InputError, match=r"is no adapter: it has no adapter_config\.json"):
            Checkpoint.open(f"{models['base']}+{models['a']}")

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ({"r": 0}, "r in its adapter_config.json is 0, not a whole number above 0"),
            ({"lora_alpha": None}, "lora_alpha in its adapter_config.json is None, not a number"),
            ({"lora_alpha": float("inf")}, "lora_alpha in its adapter_config.json is inf, not a number"),
            ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern.q_proj in its adapter_config.json is '4', not a whole"),
            ({"rank_pattern": {"(": 4}}, "'(' is no regular expression (missing ) at"),
            ({"alpha_pattern": {"a" * 2000: 4}}, "has 2000 characters"),
            ({"trainable_token_indices": [-1]}, "trainable_token_indices in its adapter_config.json is [-1], not a"),
            ({"base_model_name_or_path": 5}, "base_model_name_or_path in its adapter_config.json is 5, not a text"),
            ({"revision": []}, "revision in its adapter_config.json is [], not a text"),
        ],
    )  # fmt: skip
    def test_settings(self, make, base, config, said):
        assert said in self.problem(make, pair(Q, base), **config)

    @pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
    def test_a_pattern_that_backtracks(self, make, base, key, monkeypatch):
        monkeypatch.setattr(lora_config, "SECONDS", 0.2)
        said = self.problem(make, pair(Q, base), **{key: {r"(?:(\w|\.)+\3*)+[!?]": 4}})
        assert "takes more than 0.2 s" in said

    def test_many_patterns(self, make, base, monkeypatch):
        monkeypatch.setattr(lora_config, "SECONDS", 0.05)
        said = self.problem(make, pair(Q, base), rank_pattern={f"(a|aa)+x{i}": 4 for i in range(20_000)})
        assert "with those before it, takes more than 0.05 s" in said

    def test_values_that_are_not_finite_are_the_adapter_s(self, tmp_path, base):
        folder = tiny_models.write(tmp_path / "model", base)
        write_adapter(tmp_path / "lora", {name: part * torch.nan for name, part in pair(Q, base).items()})
        opened = Checkpoint.open(f"{folder}+{tmp_path / 'lora'}")
        name = f"{Q}.weight"
        with pytest.raises(InputError, match=rf"/lora: {name} holds \d+ values that are NaN"):
            check_finite(opened, name, opened.read(name))

    def test_an_adapter_that_is_its_own_base(self, tmp_path, base):
        for name, other in (("a", "b"), ("b", "a")):
            config = {"base_model_name_or_path": str(tmp_path / other)}
            write_adapter(tmp_path / name, pair(Q, base), **config)
        with pytest.raises(InputError, match=r"its base, by its .*, is an adapter \(.*/b\); write model\+adapter"):
            Checkpoint.open(str(tmp_path / "a"))

    def test_an_adapter_that_names_itself(self, tmp_path, base):
        """Saved into the folder that it was loaded from."""
        folder = write_adapter(tmp_path / "a", pair(Q, base), base_model_name_or_path=str(tmp_path / "a"))
        with pytest.raises(InputError, match=r"is an adapter .*; write model\+adapter"):
            Checkpoint.open(str(folder))
        given = Checkpoint.open(str(tiny_models.write(tmp_path / "base", base)))
        assert Checkpoint.open(str(folder), base=given).resolved() == f"{tmp_path / 'base'}+{folder}"

    def test_parts_of_other_lengths(self, make, base):
        size = len(base[f"{Q}.weight"])
        for part in ("lora_magnitude_vector", "lora_B.bias"):
            said = self.problem(
                make, pair(Q, base) | {f"{Q}.{part}": noise(size + 1)}, stored=base | {f"{Q}.bias": noise(size)}
            )
            assert f"has {size + 1} elements, not {size}" in said

    def test_an_adapter_of_whole_numbers(self, make, base):
        tensors = pair(Q, base)
        first = next(iter(tensors))
        said = self.problem(make, {**tensors, first: tensors[first].to(torch.int8)})
        assert f"{first} is int8, and only adapters of floats can be merged" in said
