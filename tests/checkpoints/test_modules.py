"""Models of several stacks: which tensors belong together, and what they are called."""

from __future__ import annotations

import pytest

from evomerge.checkpoints.modules import find_modules
from evomerge.checkpoints.structure import configured_layers, find_stack


def named(names, config):
    """Module -> its tensors."""
    found = find_modules(names, config, find_stack(names, configured_layers(config)))
    sorted_names = {}
    for name in names:
        sorted_names.setdefault(found.of(name), []).append(name)
    return sorted_names, found


def layers(prefix, count, part="w.weight"):
    return [f"{prefix}.{i}.{part}" for i in range(count)]


def test_a_plain_model_is_one_module():
    names = ["model.embed_tokens.weight", *layers("model.layers", 3), "model.norm.weight", "lm_head.weight"]
    modules, found = named(names, {"num_hidden_layers": 3})
    assert modules == {"default": names}
    assert found.stacks["default"].layers == 3


def test_experts_and_small_sequences_are_no_modules():
    names = [*layers("model.layers", 3, "experts.0.w"), "score.0.weight", "score.2.weight"]
    assert list(named(names, {"num_hidden_layers": 3})[0]) == ["default"]


QWEN_VL = {"vision_config": {"depth": 2}, "text_config": {"num_hidden_layers": 3}}
GEMMA = {"vision_config": {"num_hidden_layers": 3}, "text_config": {"num_hidden_layers": 3}}


@pytest.mark.parametrize(
    ("config", "text", "vision", "loose", "projector"),
    [
        (QWEN_VL, "model.layers", "visual.blocks", "visual.patch_embed.proj.weight", "visual.merger.mlp.0.weight"),
        (
            QWEN_VL, "model.language_model.layers", "model.visual.blocks", "model.visual.pos_embed.weight",
            "model.visual.merger.norm.weight",
        ),
        (
            GEMMA, "language_model.model.layers", "vision_tower.vision_model.encoder.layers",
            "vision_tower.vision_model.embeddings.patch_embedding.weight", "multi_modal_projector.linear_1.weight",
        ),
    ],
)  # fmt: skip
def test_text_and_vision(config, text, vision, loose, projector):
    count = 2 if config is QWEN_VL else 3
    towers = [loose, *layers(vision, count)]
    root = text.rpartition(".")[0]
    texts = [f"{root}.embed_tokens.weight", *layers(text, 3), "lm_head.weight"]
    modules, found = named([*towers, projector, *texts], config)
    assert modules == {"vision_tower": towers, "multi_modal_projector": [projector], "text_decoder": texts}
    assert found.stacks["vision_tower"].layers == count
    assert found.keys["vision_tower"] == ("vision_config", "depth" if config is QWEN_VL else "num_hidden_layers")


def test_encoder_and_decoder():
    decoder = [*layers("decoder.block", 2), "decoder.final_layer_norm.weight"]
    encoder = [*layers("encoder.block", 2), "encoder.final_layer_norm.weight"]
    shared = ["shared.weight", "lm_head.weight"]
    modules, found = named([*decoder, *encoder, *shared], {"num_layers": 2, "num_decoder_layers": 2})
    assert modules == {"decoder": decoder, "encoder": encoder, "shared": shared}
    assert found.main == "decoder"


@pytest.mark.parametrize(
    ("key", "prefix", "module"),
    [
        ("conf_num_hidden_layers", "model.audio_tower.conformer", "audio_tower"),
        ("num_global_layers", "model.vision_model.global_transformer.layers", "vision_tower"),
    ],
)
def test_towers_whose_layers_have_a_key_of_their_own(key, prefix, module):
    """Gemma 3n's conformer, and Mllama's second stack of vision layers."""
    tower, text = layers(prefix, 4), layers("model.language_model.layers", 3)
    part = "audio_config" if module == "audio_tower" else "vision_config"
    modules, found = named([*tower, *text], {part: {key: 4}, "text_config": {"num_hidden_layers": 3}})
    assert modules == {module: tower, "text_decoder": text}
    assert found.keys == {module: (part, key)}
