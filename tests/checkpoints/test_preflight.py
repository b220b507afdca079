from __future__ import annotations

import pytest
import tiny_models
import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.preflight import check_family, check_finite, check_head, check_tokenizers
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


def test_another_vocabulary_says_how_to_mend(base, tmp_path):
    folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors(vocab=23), vocab_size=23)
    text = family_problem(base, folder)
    assert "lm_head.weight is [23, 16], in the base [20, 16]" in text
    assert "resize_token_embeddings" in text


def test_missing_and_extra_tensors(base, tmp_path):
    tensors = tiny_models.base_tensors()
    del tensors["model.layers.2.input_layernorm.weight"]
    folder = tiny_models.write(tmp_path / "less", tensors)
    assert "refunds lacks model.layers.2.input_layernorm.weight" in family_problem(base, folder)
    tensors = tiny_models.base_tensors() | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(16)}
    folder = tiny_models.write(tmp_path / "more", tensors)
    assert "refunds has model.layers.0.self_attn.q_proj.bias, which the base lacks" in family_problem(base, folder)


def test_tied_and_untied(base, tmp_path):
    folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors(tied=True), tie_word_embeddings=True)
    assert "refunds ties its output head" in family_problem(base, folder)


class TestTokenizers:
    @pytest.fixture
    def other(self, tmp_path):
        words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(16)), "SKU-1"]  # w16 became SKU-1
        return Checkpoint.open(str(tiny_models.write(tmp_path / "m", tiny_models.base_tensors(), tokens=words)))

    @pytest.mark.parametrize("policy", ["base", "union", "refunds"])
    def test_equal_vocabularies_allow_every_policy(self, base, models, policy):
        check_tokenizers(base, {"refunds": Checkpoint.open(str(models["a"]))}, policy, where)

    def test_base_tells_which_tokens_differ(self, base, other):
        with pytest.raises(InputError) as caught:
            check_tokenizers(base, {"refunds": other}, "base", where)
        assert "space.yaml:5: sources.refunds: refunds's tokenizer is not the base's" in str(caught.value)
        assert "1 added ('SKU-1'), 1 missing ('w16')" in str(caught.value)

    @pytest.mark.parametrize("policy", ["union", "refunds"])
    def test_other_policies_say_that_they_cannot(self, base, other, policy):
        with pytest.raises(InputError, match="this version merges models of equal vocabularies only"):
            check_tokenizers(base, {"refunds": other}, policy, where)

    def test_moved_ids(self, base, tmp_path):
        words = ["<unk>", "</s>", "<s>", *(f"w{i}" for i in range(17))]
        other = Checkpoint.open(str(tiny_models.write(tmp_path / "m", tiny_models.base_tensors(), tokens=words)))
        with pytest.raises(InputError, match=r"2 with other ids \(first '<s>': 2 for 1\)"):
            check_tokenizers(base, {"refunds": other}, "base", where)

    def test_unknown_policy(self, base, other):
        with pytest.raises(InputError, match="tokenizer 'onion' is no policy and no source; use base, union or one of"):
            check_tokenizers(base, {"refunds": other}, "onion", where)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_tensor(models, value):
    base = Checkpoint.open(str(models["base"]), HERE)
    tensor = base.tensor("lm_head.weight").clone()
    check_finite(base, "lm_head.weight", tensor)
    tensor[0, :2] = value
    with pytest.raises(InputError, match=r"space.yaml:5.*lm_head.weight holds 2 values that are NaN or Inf"):
        check_finite(base, "lm_head.weight", tensor)


def test_a_tied_model_that_stores_another_head(tmp_path):
    folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors(), tie_word_embeddings=True)
    opened = Checkpoint.open(str(folder))
    with pytest.raises(InputError, match=r"stores a lm_head.weight that differs"):
        check_head(opened, opened.tensor("model.embed_tokens.weight"))
