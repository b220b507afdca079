"""Ready-made module groups find each family's names, narrow ones first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import InputError
from evomerge.files.module_groups import with_filters
from evomerge.files.objects import SpaceSpec
from evomerge.files.resolved import space_data
from evomerge.files.space_file import read_space

FAMILIES = {
    "qwen3_moe": ["mlp.experts.0.up_proj", "mlp.gate", "self_attn.q_proj"],
    "deepseek_v3": ["mlp.experts.0.up_proj", "mlp.gate", "mlp.shared_experts.up_proj", "self_attn.kv_b_proj"],
    "mixtral": ["block_sparse_moe.experts.0.w1", "block_sparse_moe.gate", "self_attn.q_proj"],
    "granitemoe": ["block_sparse_moe.input_linear", "block_sparse_moe.router.layer", "self_attn.q_proj"],
    "llama4": ["feed_forward.experts.gate_up_proj", "feed_forward.router", "feed_forward.shared_expert.up_proj"],
    "jamba": ["feed_forward.experts.0.up_proj", "feed_forward.router", "mamba.in_proj", "self_attn.q_proj"],
}
EXPECTED = {"experts": "experts", "input_linear": "experts", "gate": "router", "router": "router", "layer": "router",
            "shared_experts": "shared_expert", "shared_expert": "shared_expert", "self_attn": "attention",
            "mamba": "mamba"}  # fmt: skip


def spec_of(tmp_path: Path, modules: Any) -> SpaceSpec:
    data = {"base": "b", "sources": {"a": "a"}, "fitness": "f.yaml", "modules": modules,
            "genes": {"method": "linear", "weight": {"low": 0, "high": 1}}}  # fmt: skip
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
    return read_space(tmp_path / "s.yaml")


@pytest.mark.parametrize("family", FAMILIES)
def test_each_tensor_is_in_its_group(family: str, tmp_path: Path) -> None:
    names = [f"model.layers.0.{part}.weight" for part in FAMILIES[family]]
    groups = [EXPECTED[next(p for p in part.split(".")[::-1] if p in EXPECTED)] for part in FAMILIES[family]]
    spec = with_filters(spec_of(tmp_path, sorted(set(groups))), names)
    found = [next(name for name, text in spec.modules.items() if text in tensor) for tensor in names]
    assert found == groups


def test_they_stand_beside_ones_own_and_are_written_down(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"experts": "auto", "gate": "mlp.gate."})
    assert space_data(spec)["modules"] == {"experts": "auto", "gate": "mlp.gate."}
    names = ["model.layers.0.mlp.experts.0.up_proj.weight", "model.layers.0.mlp.gate.weight"]
    assert with_filters(spec, names).modules == {"experts": ".experts.", "gate": "mlp.gate."}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["expert"], "did you mean 'experts'"),
        ({"gate": "auto"}, "gate is no ready-made module"),
        (["vision"], "the base has no tensors of the group vision"),
    ],
)
def test_what_there_is_not(tmp_path: Path, modules: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        with_filters(spec_of(tmp_path, modules), ["model.layers.0.mlp.up_proj.weight"])
