from __future__ import annotations

import tiny_models

from evomerge.checkpoints.layouts.unread import skeleton, unread

NAMES = tuple(tiny_models.shapes())


def test_of_a_plain_model_everything_is_read():
    assert unread(tiny_models.config(), NAMES) == frozenset()


def test_heads_and_prediction_layers_of_a_family_that_has_none_are_not_read():
    extra = ("v_head.summary.weight", "score.weight", "mtp.fc.weight", "model.layers.3.mlp.up_proj.weight")
    assert unread(tiny_models.config(), [*NAMES, *extra]) == frozenset(extra)


def test_names_without_the_prefix_of_the_base_model_are_read():
    assert unread(tiny_models.config(), [n.removeprefix("model.") for n in NAMES]) == frozenset()


def test_the_experts_of_a_hub_checkpoint_are_read():
    config = {
        **tiny_models.config(model_type="mixtral", architectures=["MixtralForCausalLM"]),
        "num_local_experts": 2,
    }
    start = "model.layers.0.block_sparse_moe"
    names = [f"{start}.gate.weight", *(f"{start}.experts.{e}.w{i}.weight" for e in range(2) for i in (1, 2, 3))]
    assert unread(config, [*names, "mtp.fc.weight"]) == {"mtp.fc.weight"}


def test_biases_count_by_the_configuration():
    name = "model.layers.0.self_attn.q_proj.bias"
    assert unread(tiny_models.config(), [name]) == {name}
    assert unread(tiny_models.config(attention_bias=True), [name]) == frozenset()


def test_a_model_that_transformers_does_not_know_or_cannot_build_says_nothing():
    assert unread(tiny_models.config(model_type="nothing_of_the_kind"), NAMES) is None
    assert unread(tiny_models.config(hidden_act="no_such_act"), NAMES) is None
    assert unread({}, NAMES) is None


def test_the_class_is_the_one_that_architectures_names_or_else_the_mapped_one():
    for named in (["LlamaForSequenceClassification"], None, ["OfTheirOwn"], ["pipeline"]):
        model = skeleton(tiny_models.config(architectures=named))
        expected = "LlamaForSequenceClassification" if named and "Llama" in named[0] else "LlamaForCausalLM"
        assert type(model).__name__ == expected
