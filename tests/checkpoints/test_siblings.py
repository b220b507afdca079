"""Names that differ in their last number."""

from __future__ import annotations

from evomerge.checkpoints.siblings import siblings


def test_the_experts_of_a_layer_are_siblings_in_numeric_order():
    up = [f"model.layers.3.mlp.experts.{i}.up_proj.weight" for i in (10, 9, 0)]
    others = ["model.layers.4.mlp.experts.0.up_proj.weight", "model.layers.3.mlp.experts.0.down_proj.weight"]
    assert siblings([*up, *others]) == [up[::-1], *([name] for name in others)]


def test_layers_are_none():
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)] + ["lm_head.weight"]
    assert siblings(names) == [[name] for name in names]
