"""`evomerge align`: what it writes computes the same, has its units in the other model's order, and is there whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import evomerge
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.merging.permutation.alignment import write_aligned
from evomerge.merging.permutation.stored import StoredModel, shared_symmetries
from tests.conftest import save_tiny, write_task

Said = pytest.CaptureFixture[str]
WEIGHTS = "model.safetensors"


def scramble(model: Path, out: Path) -> Path:
    """A copy with its units in another order."""
    stored = StoredModel.open(model)
    _, symmetries = shared_symmetries(stored, stored)
    write_aligned(stored, symmetries, symmetries.random(7), out)
    return out


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `near` it, and `moved`: `near` with its units in another order. Grouped queries."""
    root = tmp_path_factory.mktemp("pair")
    save_tiny(root / "base", 1, num_attention_heads=4, num_key_value_heads=2)
    save_tiny(root / "near", 2, near=root / "base", scale=0.02)
    (root / "near" / "generation_config.json").write_text('{"max_new_tokens": 7}')
    scramble(root / "near", root / "moved")
    return root


def same(one: Path, other: Path) -> bool:
    first, second = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logits(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    tokens = torch.randint(12, (3, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
        return found


def test_units_are_brought_back_and_all_else_is_copied(pair: Path, tmp_path: Path, capsys: Said) -> None:
    out = tmp_path / "out"
    assert not same(pair / "near", pair / "moved")
    assert (logits(pair / "near") - logits(pair / "moved")).abs().max() < 1e-5
    assert main(["align", str(pair / "base"), str(pair / "moved"), str(out), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert same(out, pair / "near")
    names = sorted(file.name for file in (pair / "moved").iterdir())
    assert sorted(file.name for file in out.iterdir()) == names
    for name in set(names) - {WEIGHTS, "config.json"}:
        assert (out / name).read_bytes() == (pair / "moved" / name).read_bytes()
    assert json.loads((out / "config.json").read_text()) == json.loads((pair / "moved/config.json").read_text())
    assert (data["specification"], data["method"]) == ("llama", "weights")
    assert data["moved"] > 0.5
    assert data["cosine"]["after"] > 0.99 > 0.5 > data["cosine"]["before"]
    assert data["largest_change"] < 1e-5
    heads = next(group for group in data["groups"] if group["name"] == "layers.0.heads")
    assert (heads["units"], heads["members"]) == (2, 4)


def test_what_stands_in_order_stays(pair: Path, tmp_path: Path, capsys: Said) -> None:
    assert main(["align", str(pair / "base"), str(pair / "near"), str(tmp_path / "out")]) == 0
    assert "nothing had to move" in capsys.readouterr().out
    assert same(tmp_path / "out", pair / "near")


def test_units_are_matched_by_activations(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "tiny_a", 1)
    fitness = {
        "include": ["tasks"],
        "slices": {"a": {"task": "tiny_a", "metric": "acc", "floor": {"of": "base", "margin": 0.1}}},
    }
    (tmp_path / "fitness.yaml").write_text(yaml.safe_dump(fitness))
    result = evomerge.align(
        pair / "base", pair / "moved", tmp_path / "out", fitness=tmp_path / "fitness.yaml", device="cpu"
    )
    assert result.method == "activations"
    assert same(tmp_path / "out", pair / "near")


def test_equal_inputs_give_equal_bits(pair: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", 9, num_attention_heads=4, num_key_value_heads=2)
    for name in ("a", "b"):
        evomerge.align(pair / "base", other, tmp_path / name, seed=3)
    assert same(tmp_path / "a", tmp_path / "b")
    assert (logits(tmp_path / "a") - logits(other)).abs().max() < 1e-5


# Plain state dicts


def chain(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (12, 4), "0.bias": (12,), "2.weight": (12, 12), "2.bias": (12,), "4.weight": (3, 12)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def test_files_of_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.chdir(tmp_path)
    one = chain(0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    other = {**one, "0.weight": one["0.weight"][order], "0.bias": one["0.bias"][order],
             "2.weight": one["2.weight"][:, order]}  # fmt: skip
    save_file(one, "a.safetensors")
    save_file(other, "b.safetensors", {"epoch": "3"})
    assert main(["align", "a.safetensors", "b.safetensors", "out.safetensors"]) == 0
    said = capsys.readouterr().out
    assert "chain 0 -> 2 -> 4" in said
    assert "was read from names and shapes" in " ".join(said.split())
    assert all(torch.equal(tensor, one[name]) for name, tensor in load_file("out.safetensors").items())
    from safetensors import safe_open

    with safe_open("out.safetensors", "pt") as opened:
        assert opened.metadata() == {"epoch": "3"}
    before = Path("out.safetensors").read_bytes()
    assert main(["align", "a.safetensors", "b.safetensors", "out.safetensors"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["align", "a.safetensors", "b.safetensors", "out.safetensors", "--overwrite"]) == 0
    assert Path("out.safetensors").read_bytes() == before
    # A folder of one's own model, without a configuration
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Path(f"{name}.safetensors").rename(Path(name) / WEIGHTS)
    assert main(["align", "a", "b", "out"]) == 0
    assert all(torch.equal(tensor, one[name]) for name, tensor in load_file(f"out/{WEIGHTS}").items())


# What is wrong


def test_what_cannot_be_aligned_is_one_line(pair: Path, tmp_path: Path, monkeypatch: Any, capsys: Said) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(Path("wide"), 3, intermediate_size=32)
    save_file(chain(0), "a.safetensors")
    base, near = str(pair / "base"), str(pair / "near")
    Path("wrong.yaml").write_text(
        "like: llama\ntensors:\n  model.norm.weight: [~]\n  lm_head.weight: [~, ~]\n"
    )  # the residual stream moves, and its last norm and the head do not
    Path("recipe.yaml").write_text(f"merge_method: linear\nmodels: [{{model: {base}}}]\n")
    before = sorted(tmp_path.rglob("*"))
    for words, said in {
        (base, "wide", "out"): "they cannot be aligned",
        (base, near, base): "exists and is not empty",
        (base, near, "out.safetensors"): "is a folder, and out.safetensors would not be one",
        ("a.safetensors", "a.safetensors", "out"): "is a file of tensors, and out would not be one",
        ("a.safetensors", near, "out"): "a model without a configuration: they cannot be aligned",
        ("a.safetensors", "a.safetensors", "a.safetensors", "--overwrite"): "is read and to be written",
        (base, near, "out", "--spec", "nothing.yaml"): "there is no specification",
        (base, str(pair / "moved"), "out", "--spec", "wrong.yaml"): "changes what",
        ("recipe.yaml", near, "out"): "is a recipe",
        ("a.safetensors", "a.safetensors", "out.safetensors", "--fitness", "nothing.yaml"): "no such file",
        (base, near, "out", "--seed", "-1"): "--seed",
    }.items():
        assert main(["align", *words]) == 2, words
        printed = capsys.readouterr()
        assert said in printed.err.splitlines()[-1], (words, printed.err)
        assert printed.out == ""
        assert sorted(tmp_path.rglob("*")) == before, words


def test_quantized_models_and_adapters_are_refused(pair: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    target = "model.layers.0.self_attn.q_proj"
    name = f"base_model.model.{target}"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, 16), f"{name}.lora_B.weight": torch.ones(16, 2)},
        adapter / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "base_model_name_or_path": ""}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    base = pair / "base"
    with pytest.raises(InputError, match="is a LoRA adapter"):
        evomerge.align(base, f"{base}+{adapter}", tmp_path / "out")
    eighth = Checkpoint.open(str(base))
    tensors: dict[str, Tensor] = {}
    for key in eighth.tensors:
        tensor = eighth.read(key)
        linear = "proj" in key
        tensors[key] = tensor.to(torch.float8_e4m3fn) if linear else tensor
        if linear:
            tensors[f"{key}_scale_inv"] = torch.ones(1, 1)
    small = tmp_path / "fp8"
    small.mkdir()
    save_file(tensors, small / WEIGHTS)
    settings = json.loads((base / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (small / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="is quantized"):
        evomerge.align(base, small, tmp_path / "out")
