from __future__ import annotations

import pytest
import tiny_models
import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.preflight import check_family, check_finite, check_head, tensor_notes, token_changes
from evomerge.errors import InputError, Where

HERE = Where("space.yaml", 5, "sources.refunds")


def where(name):
    return HERE if name == "refunds" else Where("space.yaml", 9, name)


@pytest.fixture
def base(models):
    return Checkpoint.open(str(models["base"]))


def family_problem(base, folder):
    with pytest.raises(InputError) as caught:
        check_family(base, {"refunds": Checkpoint.open(str(folder))}, where)
    assert str(caught.value).startswith(f"{HERE}: ")
    return str(caught.value)


def test_a_family_passes(models, base):
    check_family(base, {n: Checkpoint.open(str(models[n])) for n in "abc"}, where)


def test_another_architecture(base, tmp_path):
    folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors(), model_type="qwen2")
    assert "refunds is a qwen2 model, the base is a llama model" in family_problem(base, folder)


def test_another_depth(base, tmp_path):
    folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors(layers=2), num_hidden_layers=2)
    assert "refunds has 2 layers, the base has 3" in family_problem(base, folder)


def test_another_shape_names_the_first_tensors(base, tmp_path):
    tensors = tiny_models.base_tensors()
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = torch.zeros(28, 16)
    folder = tiny_models.write(tmp_path / "m", tensors)
    assert f"{name} is [28, 16], in the base [24, 16]" in family_problem(base, folder)


def test_another_vocabulary_is_no_matter_but_another_width_is(base, tmp_path):
    folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors(vocab=23), vocab_size=23)
    check_family(base, {"refunds": Checkpoint.open(str(folder))}, where)
    tensors = tiny_models.base_tensors()
    tensors["lm_head.weight"] = torch.zeros(20, 17)
    folder = tiny_models.write(tmp_path / "wide", tensors)
    assert "lm_head.weight is [20, 17], in the base [20, 16]" in family_problem(base, folder)


def test_missing_and_extra_tensors(base, tmp_path):
    tensors = tiny_models.base_tensors()
    del tensors["model.layers.2.input_layernorm.weight"]
    folder = tiny_models.write(tmp_path / "less", tensors)
    assert "refunds lacks model.layers.2.input_layernorm.weight" in family_problem(base, folder)
    tensors = tiny_models.base_tensors() | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(16)}
    folder = tiny_models.write(tmp_path / "more", tensors, attention_bias=True)
    assert "refunds has model.layers.0.self_attn.q_proj.bias, which the base lacks" in family_problem(base, folder)


def notes(base, **folders):
    sources = {name: Checkpoint.open(str(folder)) for name, folder in folders.items()}
    check_family(base, sources, where)
    return tensor_notes(base, sources)


def test_a_family_has_nothing_to_tell(models, base):
    assert notes(base, refunds=models["a"], b=models["b"]) == []


def test_tensors_that_no_model_reads_are_left_out_and_told(base, models, tmp_path):
    extra = {"v_head.summary.weight": torch.zeros(1, 16), "_orig_mod.model.rotary_emb.inv_freq": torch.zeros(4)}
    folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors() | extra)
    assert notes(base, refunds=folder, b=models["b"]) == ["v_head.summary.weight: left out, as only refunds has it"]


def test_prediction_layers_that_only_the_base_stores_are_kept_and_told(models, tmp_path):
    extra = {"mtp.fc.weight": torch.zeros(16, 32), "model.layers.3.enorm.weight": torch.ones(16)}
    folder = tiny_models.write(tmp_path / "base", tiny_models.base_tensors() | extra)
    lines = notes(Checkpoint.open(str(folder)), refunds=models["a"], b=models["b"])
    names = "model.layers.3.enorm.weight, mtp.fc.weight"
    assert lines == [f"{names}: kept from the base, as refunds and b lack it"]


def test_a_source_that_was_saved_without_head_and_prefix(base, tmp_path):
    tensors = {n.removeprefix("model."): t for n, t in tiny_models.base_tensors().items() if n != "lm_head.weight"}
    folder = tiny_models.write(tmp_path / "m", tensors, architectures=["LlamaModel"])
    assert notes(base, refunds=folder) == ["lm_head.weight: kept from the base, as refunds lacks it"]


def test_tied_and_untied(base, tmp_path):
    folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors(tied=True), tie_word_embeddings=True)
    [line] = notes(base, refunds=folder)
    assert line == (
        "refunds ties its head to its embeddings, the base has a head of its own: "
        "merged models have a head of their own"
    )


class TestTokens:
    WORDS = ("<unk>", "<s>", "</s>", *(f"w{i}" for i in range(17)))

    def model(self, folder, words):
        tensors = tiny_models.base_tensors(vocab=len(words))
        return Checkpoint.open(str(tiny_models.write(folder, tensors, tokens=list(words), vocab_size=len(words))))

    @pytest.fixture
    def other(self, tmp_path):
        return self.model(tmp_path / "m", [*self.WORDS[:-1], "SKU-1", "SKU-2"])  # w16 is gone

    @pytest.mark.parametrize("policy", ["base", "union", "refunds"])
    def test_equal_vocabularies_change_nothing(self, base, models, policy):
        found = token_changes(base, {"refunds": Checkpoint.open(str(models["a"]))}, policy, where)
        assert (found.changes, found.dropped, found.filled) == ((), [], [])

    def test_base_drops_and_fills(self, base, other):
        found = token_changes(base, {"refunds": other}, "base", where)
        assert found.dropped == ["tokenizer base: drops 2 tokens of refunds ('SKU-1', 'SKU-2')"]
        assert found.filled == ["tokenizer base: fills in 1 rows for refunds, which lacks 'w16'"]

    def test_union_drops_nothing(self, base, other):
        found = token_changes(base, {"refunds": other}, "union", where)
        assert found.dropped == []
        assert found.filled == [
            "tokenizer union: fills in 2 rows for base, which lacks 'SKU-1', 'SKU-2'",
            "tokenizer union: fills in 1 rows for refunds, which lacks 'w16'",
        ]

    def test_a_source_decides(self, base, other):
        found = token_changes(base, {"refunds": other}, "refunds", where)
        assert found.dropped == ["tokenizer refunds: drops 1 tokens of base ('w16')"]
        assert [(c.model, len(c.filled)) for c in found.changes] == [("base", 2), ("refunds", 0)]

    def test_many_tokens_are_counted(self, base, tmp_path):
        words = [*self.WORDS, *(f"new{i}" for i in range(9))]
        found = token_changes(base, {"refunds": self.model(tmp_path / "m", words)}, "base", where)
        assert found.dropped == ["tokenizer base: drops 9 tokens of refunds ('new0', 'new1', 'new2', ...)"]

    def test_moved_ids_are_a_change(self, base, tmp_path):
        words = ["<unk>", "</s>", "<s>", *self.WORDS[3:]]
        found = token_changes(base, {"refunds": self.model(tmp_path / "m", words)}, "base", where)
        assert [c.model for c in found.changes] == ["base", "refunds"]
        assert found.dropped == found.filled == []

    def test_tokens_without_a_row_do_not_count(self, base, other, tmp_path):
        tiny_models.write_tokenizer(other.path, [*self.WORDS[:-1], "SKU-1", "SKU-2", "unused"])
        found = token_changes(base, {"refunds": Checkpoint.open(str(other.path))}, "union", where)
        assert "unused" not in " ".join(found.filled)

    def test_unknown_policy(self, base, other):
        with pytest.raises(InputError, match="tokenizer 'onion' is no policy and no source; use base, union or one of"):
            token_changes(base, {"refunds": other}, "onion", where)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_tensor(models, value):
    base = Checkpoint.open(str(models["base"]), HERE)
    tensor = base.read("lm_head.weight").clone()
    check_finite(base, "lm_head.weight", tensor)
    tensor[0, :2] = value
    with pytest.raises(InputError, match=r"space.yaml:5.*lm_head.weight holds 2 values that are NaN or Inf"):
        check_finite(base, "lm_head.weight", tensor)


def test_a_tied_model_that_stores_another_head(tmp_path):
    folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors(), tie_word_embeddings=True)
    opened = Checkpoint.open(str(folder))
    with pytest.raises(InputError, match=r"stores a lm_head.weight that differs"):
        check_head(opened, opened.read("model.embed_tokens.weight"))
