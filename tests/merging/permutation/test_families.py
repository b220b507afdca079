"""The built-in specifications: whatever permutations they allow, every family computes what it computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.layouts.unread import model_class, model_config, quiet
from evomerge.errors import InputError
from evomerge.merging.permutation.families import built_in, read_specification, specification_for
from evomerge.merging.permutation.weight_matching import weight_matching
from evomerge.merging.permutation.weights import permuted_weights
from tests.families.build import write_models
from tests.families.layouts import DENSE, EXPERTS, GROUPED, TIED, Form, Layout

MIXTURES = ("flex_olmo", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe")
ONLY_FLOAT32 = (*MIXTURES, "xglm")
"""transformers cannot run these in 64 bits."""
WIDER: dict[str, dict[str, Any]] = {
    # several heads of keys and values, and several queries for each
    "falcon": {"num_attention_heads": 4, "num_kv_heads": 2},
    **{kind: {"num_attention_heads": 4, "num_key_value_heads": 2} for kind in ("llama", "olmo2", "phi3", "qwen2")},
    "cohere": {"use_qk_norm": True},
}
CASES: dict[str, tuple[str, Form, dict[str, Any]]] = {
    **{kind: (kind, "hub", {**config, **WIDER.get(kind, {})}) for kind, config in DENSE.items()},
    **{kind: (kind, "hub", EXPERTS[kind]) for kind in MIXTURES},
    "llama, tied": ("llama", "hub", {**DENSE["llama"], "tie_word_embeddings": True}),
    "bloom, no prefix": ("bloom", "no prefix", DENSE["bloom"]),
    "gpt2, no prefix": ("gpt2", "no prefix", DENSE["gpt2"]),
    "falcon 7b": (
        "falcon", "hub", {**GROUPED, "new_decoder_architecture": False, "multi_query": True, "alibi": False},
    ),
}  # fmt: skip


def log_probabilities(config: Any, weights: dict[str, Tensor]) -> Tensor:
    kind = model_class(config)
    assert kind is not None
    with quiet(), torch.no_grad():
        dtype = torch.float32 if config["model_type"] in ONLY_FLOAT32 else torch.float64
        state = {name: tensor.to(dtype) for name, tensor in weights.items()}
        model = kind.from_pretrained(None, config=model_config(config), state_dict=state, dtype=dtype).eval()
        tokens = torch.randint(30, (2, 9), generator=torch.Generator().manual_seed(0))
        found: Tensor = model(tokens).logits.log_softmax(-1)
        return found


@pytest.mark.parametrize("case", CASES)
def test_a_permuted_model_computes_what_it_did_and_is_found_again(case: str, tmp_path: Path) -> None:
    kind, form, config = CASES[case]
    write_models(Layout("dense", kind, form, config), tmp_path)
    checkpoint = Checkpoint.open(str(tmp_path / "base"))
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    symmetries = specification_for(shapes, checkpoint.config).over(shapes, checkpoint.config)
    weights = {name: checkpoint.read(name).float() for name in shapes}
    moved = permuted_weights(symmetries, weights, symmetries.random(1))
    assert sum(not torch.equal(moved[name], weights[name]) for name in weights) > len(weights) / 3
    change = log_probabilities(checkpoint.config, weights) - log_probabilities(checkpoint.config, moved)
    assert change.abs().max() < 1e-5
    found = weight_matching(symmetries, weights, moved).orders
    back = permuted_weights(symmetries, moved, found)
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_every_family_of_the_table_is_tried() -> None:
    assert {kind for spec in built_in() for kind in spec.model_types} == {case[0] for case in CASES.values()}
    assert set(TIED) - {"qwen2_5_vl"} <= {case[0] for case in CASES.values()}


def test_heads_of_grouped_queries_move_in_groups(tmp_path: Path) -> None:
    write_models(Layout("dense", "llama", "hub", CASES["llama"][2]), tmp_path)
    checkpoint = Checkpoint.open(str(tmp_path / "base"))
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    symmetries = specification_for(shapes, checkpoint.config).over(shapes, checkpoint.config)
    heads = symmetries.groups["layers.0.heads"]
    assert (heads.units, heads.members) == (2, 2)
    for seed in range(20):
        order = symmetries.random(seed)["layers.0.heads"]
        assert sorted(order) == [0, 1, 2, 3]
        assert {int(i) // 2 for i in order[:2]} in ({0}, {1})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "mamba"}, "no permutation specification is built in for 'mamba'"),
        ({"model_type": "falcon", "alibi": True}, "for 'falcon' with this configuration"),
    ],
)
def test_a_family_without_a_specification_is_told(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        specification_for({"a.weight": (4, 4)}, config)
    assert "--spec FILE.yaml" in str(error.value)


TENSORS = {"a.weight": (8, 3), "a.bias": (8,), "b.weight": (2, 8)}
GOOD = "groups:\n  h:\ntensors:\n  a.weight: [h, ~]\n  a.bias: [h]\n  b.weight: [~, h]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("  a.bias: [h]\n", ""), "says nothing of a.bias"),
        (GOOD.replace("[h, ~]", "[h]"), "says 1 axes of a.weight, which has 2"),
        (GOOD.replace("[~, h]", "[h, ~]"), "does not fit: a.weight has 8 entries for 2 of h"),
        (GOOD.replace("[~, h]", "[~, g]"), "3?.*unknown group 'g'"),
        (GOOD.replace("  h:\n", "  h: {units: 3}\n"), "has 8 entries for 3 of h"),
        (GOOD.replace("  h:\n", "  h: {units: n_head}\n"), "needs n_head of a config.json"),
        (GOOD.replace("  h:\n", "  h: {units: 2, members: 5}\n"), "5 members of h cannot be dealt to 2 units"),
        (GOOD.replace("groups", "gruops"), "unknown key 'gruops'"),
        (GOOD.replace("a.bias", '"a.{bias"'), "has a brace without its other one"),
        (f"like: lama\n{GOOD}", "did you mean 'llama'"),
        ("tensors: {a.weight: [~, ~]}\n", "names no groups"),
        (GOOD.replace("  h:\n", "  h:\n  streem:\n"), "2?.*no tensor follows the group 'streem'"),
    ],
)
def test_what_is_wrong_with_a_specification_is_told(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        read_specification(file).over(TENSORS, {})


def test_a_count_that_is_no_number_is_told(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(GOOD.replace("  h:\n", "  h: {units: n_head}\n"))
    with pytest.raises(InputError, match=r"n_head in config[.]json is '8'"):
        read_specification(tmp_path / "own.yaml").over(TENSORS, {"n_head": "8"})


def test_a_specification_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(GOOD)
    symmetries = read_specification(file).over(TENSORS, {})
    assert {name: group.units for name, group in symmetries.groups.items()} == {"h": 8}
    file.write_text("like: llama\ntensors:\n  model.extra.weight: [residual]\n")
    assert read_specification(file).groups.keys() >= {"residual", "layers.*.mlp"}
