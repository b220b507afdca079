from __future__ import annotations

import pytest

from evomerge.checkpoints.structure import Stack, find_stack, is_derived, is_head, is_matrix


@pytest.mark.parametrize(
    ("names", "layers", "prefix"),
    [
        (["model.embed_tokens.weight", "model.layers.0.x", "model.layers.1.x"], 2, "model.layers"),
        (["transformer.wte.weight", "transformer.h.0.attn.x", "transformer.h.1.attn.x"], 2, "transformer.h"),
        (["h.0.x", "h.1.x", "wte.weight"], 2, "h"),
        (["gpt_neox.layers.0.x", "gpt_neox.layers.1.x"], 2, "gpt_neox.layers"),
        (["model.decoder.layers.0.x", "model.decoder.layers.1.x"], None, "model.decoder.layers"),
        # as many experts as layers: the stack is the outer number
        ([f"model.layers.{i}.mlp.experts.{e}.w" for i in range(2) for e in range(2)], 2, "model.layers"),
        # another stack with another number of layers
        ([f"vision.blocks.{i}.w" for i in range(5)] + [f"model.layers.{i}.w" for i in range(3)], 3, "model.layers"),
    ],
)
def test_the_stack_is_the_numbered_prefix_that_agrees_with_the_configuration(names, layers, prefix):
    found = find_stack(names, layers)
    assert found is not None
    assert found.prefix == prefix


def test_no_stack_has_as_many_layers():
    assert find_stack(["model.layers.0.x"], 3) is None


@pytest.mark.parametrize(
    ("names", "prefix", "places"),
    [
        (["stem.weight", "blocks.0.w", "blocks.1.w", "head.w"], "blocks", ["after", 0, 1, "after"]),
        (["net.0.weight", "net.2.weight", "net.5.weight"], "net", [0, 1, 2]),  # others have no tensors
        (["0.weight", "2.weight"], "", [0, 1]),
        (["blocks.0.mlp.0.w", "blocks.0.mlp.2.w", "blocks.1.mlp.0.w", "blocks.2.w"], "blocks", [0, 0, 1, 2]),
        # the stages of a residual network: none is the stack
        (["layer1.0.w", "layer1.1.w", "layer2.0.w", "layer2.1.w"], "", ["after"] * 4),
        (["0.weight", "patch_embed.weight"], "", ["after", "before"]),
        (["weight"], "", ["after"]),
    ],
)
def test_without_a_configuration_it_is_the_commonest_numbered_prefix(names, prefix, places):
    stack = find_stack(names, None)
    assert (stack.prefix, [stack.place(name) for name in names]) == (prefix, places)
    assert stack.layers == max((p + 1 for p in places if isinstance(p, int)), default=1)
    assert [stack.name(p, stack.part(n)) for n, p in zip(names, places, strict=True) if isinstance(p, int)] == [
        n for n, p in zip(names, places, strict=True) if isinstance(p, int)
    ]


@pytest.mark.parametrize(
    ("prefix", "name", "place"),
    [
        ("model.layers", "model.embed_tokens.weight", "before"),
        ("model.layers", "model.layers.3.mlp.up_proj.weight", 3),
        ("model.layers", "model.layers.12.mlp.up_proj.weight", "after"),  # extra layers beyond the configured ones
        ("model.layers", "model.norm.weight", "after"),
        ("model.layers", "lm_head.weight", "after"),
        ("transformer.h", "transformer.wte.weight", "before"),
        ("transformer.h", "transformer.wpe.weight", "before"),
        ("transformer.h", "transformer.ln_f.weight", "after"),
        ("transformer.h", "transformer.word_embeddings_layernorm.weight", "before"),
        ("gpt_neox.layers", "gpt_neox.embed_in.weight", "before"),
        ("gpt_neox.layers", "embed_out.weight", "after"),
        ("gpt_neox.layers", "gpt_neox.final_layer_norm.bias", "after"),
        ("model.decoder.layers", "model.decoder.embed_positions.weight", "before"),
        ("model.decoder.layers", "model.decoder.project_in.weight", "before"),
        ("model.decoder.layers", "model.decoder.project_out.weight", "after"),
    ],
)
def test_place(prefix, name, place):
    assert Stack(prefix, 12).place(name) == place


def test_layer_names_take_apart_and_put_together():
    stack = Stack("model.layers", 4)
    part = stack.part("model.layers.3.self_attn.q_proj.weight")
    assert part == "self_attn.q_proj.weight"
    assert stack.name(1, part) == "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.mlp.up_proj.weight", (8, 4), True),
        ("model.layers.0.mlp.experts.gate_up_proj", (3, 8, 4), True),
        ("model.layers.0.input_layernorm.weight", (8,), False),
        ("model.layers.0.linear_attn.conv1d.weight", (8, 1, 4), False),
        ("model.layers.0.mlp.shared_expert_gate.weight", (1, 8), False),
        ("model.embed_tokens.weight", (9, 4), False),
        ("transformer.wpe.weight", (9, 4), False),
        ("lm_head.weight", (9, 4), False),
        ("visual.patch_embed.proj.weight", (8, 3, 2, 2), False),
    ],
)
def test_matrices_stand_between_hidden_states(name, shape, expected):
    assert is_matrix(name, shape) is expected


def test_heads_and_derived_buffers():
    assert is_head("lm_head.weight")
    assert is_head("embed_out.weight")
    assert not is_head("model.layers.0.lm_head_norm.weight")
    assert is_derived("model.layers.0.self_attn.rotary_emb.inv_freq", (16,))
    assert is_derived("transformer.h.0.attn.bias", (1, 1, 64, 64))
    assert not is_derived("model.layers.0.attn.bias", (64,))
