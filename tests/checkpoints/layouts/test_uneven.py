from __future__ import annotations

import pytest
import tiny_models

from evomerge.checkpoints.layouts.uneven import fate, roles, told
from evomerge.checkpoints.structure import Stack

STACK = Stack("model.layers", 3)


@pytest.mark.parametrize(
    ("base", "others", "expected"),
    [
        ("unread", [], "keep"),
        ("unread", ["unread"], "keep"),
        ("head", ["head"], "keep"),
        ("body", [], "refuse"),
        (None, ["unread", "unread"], "leave"),
        (None, ["unread", "body"], "refuse"),
        (None, ["head"], "refuse"),
        ("tied", [], "leave"),
        (None, ["tied"], "leave"),
    ],
)
def test_what_happens_to_a_tensor(base, others, expected):
    assert fate(base, others) == expected


def test_roles_are_those_in_the_model_that_transformers_builds():
    config = tiny_models.config(tie_word_embeddings=False)
    names = ["model.norm.weight", "lm_head.weight", "mtp.fc.weight", "model.layers.3.mlp.up_proj.weight"]
    assert roles(config, ["LlamaForCausalLM"], STACK, names) == dict(
        zip(names, ["body", "head", "unread", "unread"], strict=True)
    )
    tied = roles(tiny_models.config(tie_word_embeddings=True), ["LlamaForCausalLM"], STACK, ["lm_head.weight"])
    assert tied == {"lm_head.weight": "tied"}


def test_a_checkpoint_is_seen_as_the_class_of_the_merged_model():
    reward = tiny_models.config(architectures=["LlamaForSequenceClassification"])
    names = ["score.weight"]
    assert roles(reward, ["LlamaForCausalLM"], STACK, names) == {"score.weight": "unread"}
    assert roles(reward, ["LlamaForSequenceClassification"], STACK, names) == {"score.weight": "head"}


def test_copies_of_t5s_embeddings_are_tied():
    config = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2,
              "vocab_size": 20, "architectures": ["T5ForConditionalGeneration"]}  # fmt: skip
    names = ["shared.weight", "encoder.embed_tokens.weight"]
    found = roles(config, config["architectures"], Stack("decoder.block", 1), names)
    assert found == {"shared.weight": "body", "encoder.embed_tokens.weight": "tied"}


def test_of_unknown_models_the_usual_names_count():
    names = ["mtp.fc.weight", "v_head.summary.weight", "model.layers.3.enorm.weight", "model.norm.weight"]
    found = roles({"model_type": "of_their_own"}, None, STACK, names)
    assert found == dict(zip(names, ["unread", "unread", "unread", "body"], strict=True))


def test_lines_group_tensors_by_models():
    lines = told({"x": ["a"], "y": ["a", "b"], "z": ["a"]}, {"v": ["b"], "w": ["a", "b"]}, "the base")
    assert lines == [
        "x, z: kept from the base, as a lacks it",
        "y: kept from the base, as a and b lack it",
        "v: left out, as only b has it",
        "w: left out, as only a and b have it",
    ]
