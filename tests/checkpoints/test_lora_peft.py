"""Adapters that PEFT saves, against PEFT's own `merge_and_unload`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError

peft = pytest.importorskip("peft")

_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_TEXT = {**_TOKENS, "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}  # fmt: skip
_EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
           "image_size": 8, "patch_size": 4}  # fmt: skip
_QWEN_VISION = {"depth": 1, "num_heads": 2, "patch_size": 4, "in_channels": 3, "spatial_merge_size": 2}


def write_model(folder: Path, auto: str, config: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)


def train(model: Any) -> None:
    """Gives the trainable parameters other values."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def make(folder: Path, auto: str, config: dict[str, Any], rows: int | None = None, **settings: Any) -> None:
    """Writes a base and an adapter on it, and the model that PEFT makes of both."""
    write_model(folder / "base", auto, config)
    model = getattr(transformers, auto).from_pretrained(folder / "base")
    if rows is not None:
        model.resize_token_embeddings(rows)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, **settings))
    train(adapted)
    adapted.save_pretrained(folder / "adapter")
    merge(folder, auto, rows)


def merge(folder: Path, auto: str, rows: int | None = None) -> None:
    model = getattr(transformers, auto).from_pretrained(folder / "base")
    if rows is not None:
        model.resize_token_embeddings(rows)
    peft.PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload().save_pretrained(folder / "merged")


def rename(folder: Path, change: Callable[[str], str], **settings: Any) -> None:
    """Renames the tensors of an adapter, as another version of PEFT or transformers would."""
    file = folder / "adapter_model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(file).items()}, file)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))


def check(folder: Path) -> dict[str, Tensor]:
    """The tensors of base+adapter, which must be those that PEFT made. The tensors that changed, by name."""
    opened = Checkpoint.open(f"{folder / 'base'}+{folder / 'adapter'}")
    wanted, before = tiny_models.read(folder / "merged"), tiny_models.read(folder / "base")
    assert set(opened.tensors) == set(wanted)
    for name, tensor in wanted.items():
        assert opened.read(name).shape == tensor.shape, name
        assert torch.allclose(opened.read(name), tensor, rtol=1e-5, atol=1e-6), name
    return {n: t for n, t in wanted.items() if n not in before or not torch.equal(t, before[n])}


_T5 = {"model_type": "t5", "vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2,
       "num_decoder_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_an_encoder_decoder(tied: bool, tmp_path: Path) -> None:
    config = {**_T5, "tie_word_embeddings": tied}
    make(tmp_path, "AutoModelForSeq2SeqLM", config, target_modules=["q", "v", "wi", "wo"], task_type="SEQ_2_SEQ_LM")
    assert "decoder.block.1.layer.1.EncDecAttention.q.weight" in check(tmp_path)


def test_new_tokens_of_an_encoder_decoder(tmp_path: Path) -> None:
    make(tmp_path, "AutoModelForSeq2SeqLM", _T5, rows=22, target_modules=["q"], task_type="SEQ_2_SEQ_LM")
    assert "shared.weight" in check(tmp_path)


VLMS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": {**_TEXT, "sliding_window": 8}, "vision_config": _VISION, "mm_tokens_per_image": 4},
    "qwen2_5_vl": {
        "text_config": _TEXT,
        "vision_config": {**_QWEN_VISION, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 16},
    },
    "llava": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": {**_VISION, "model_type": "clip_vision_model"},
    },
    "mistral3": {
        "text_config": {**_TEXT, "model_type": "mistral"},
        "vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 8},
    },
}


@pytest.mark.parametrize("kind", sorted(VLMS))
def test_a_vision_language_model(kind: str, tmp_path: Path) -> None:
    """The files of some keep the names of transformers 4, which are not those in memory."""
    make(tmp_path, "AutoModelForImageTextToText", {"model_type": kind, **VLMS[kind]},
         target_modules=r".*(self_attn|attn|attention)\.(q_proj|v_proj|qkv|o_proj|proj)")  # fmt: skip
    changed = check(tmp_path)
    assert any("layers.1.self_attn.q_proj" in name for name in changed)
    assert any("visual" in name or "vision" in name for name in changed)
    # An adapter of another version has the names of the files, or those that they had for a while.
    for old, new in ((".model.language_model.", ".language_model.model."), (".language_model.model.", ".model.")):
        rename(tmp_path / "adapter", lambda name, old=old, new=new: name.replace(old, new, 1))
        assert check(tmp_path).keys() == changed.keys()


MOES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "mlp_only_layers": []},
    "olmoe": {"num_experts": 3, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 3, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2},
    "llama4_text": {"num_local_experts": 3, "num_experts_per_tok": 1, "intermediate_size_mlp": 24, "moe_layers": [0]},
    "granitemoe": {"num_local_experts": 3, "num_experts_per_tok": 2},
}


_PLACES = {"llama4_text": "feed_forward", "granitemoe": "block_sparse_moe"}


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("kind", sorted(MOES))
def test_fused_experts(kind: str, square: bool, tmp_path: Path) -> None:
    """Stored one by one or as one tensor; with the inputs first or the outputs."""
    width = {"intermediate_size": 16, "moe_intermediate_size": 16} if square else {}
    config = {"model_type": kind, **_TEXT, **MOES[kind], **width}
    names = [name.replace("mlp", _PLACES.get(kind, "mlp")) for name in _EXPERTS]
    make(tmp_path, "AutoModelForCausalLM", config, target_modules=["q_proj"], target_parameters=names)
    stored = load_file(tmp_path / "base" / "model.safetensors")
    experts = {n for n, t in stored.items() if ".experts." in n or t.dim() == 3} - {n for n in stored if "bias" in n}
    assert experts <= check(tmp_path).keys()


@pytest.mark.parametrize("names", [["mlp.experts.down_proj"], ["mlp.experts.gate_up_proj", "mlp.gate.weight"]])
def test_one_parameter_and_the_router(names: list[str], tmp_path: Path) -> None:
    config = {"model_type": "mixtral", **_TEXT, **MOES["mixtral"]}
    patterns = {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {"gate_up_proj": 7}}
    make(tmp_path, "AutoModelForCausalLM", config, target_modules=[], target_parameters=names, **patterns)
    changed = check(tmp_path)
    assert any("gate." in name for name in changed) == (len(names) == 2)
    assert len(changed) == (6 if len(names) == 1 else 14)


def test_a_parameter_that_is_called_weight(tmp_path: Path) -> None:
    config = {"model_type": "jetmoe", **_TEXT, "num_local_experts": 3, "num_experts_per_tok": 2, "kv_channels": 8}
    make(tmp_path, "AutoModelForCausalLM", config, target_modules=["kv_proj"],
         target_parameters=["mlp.input_linear.weight", "mlp.output_linear.weight"])  # fmt: skip
    assert len(check(tmp_path)) == 6


@pytest.mark.parametrize(
    ("version", "outputs_first"), [(None, False), ("0.18.1", False), ("0.19.0", True), ("0.20.0", False)]
)
def test_square_experts_lie_as_the_version_of_peft_has_them(
    version: str | None, outputs_first: bool, tmp_path: Path
) -> None:
    """Shapes do not tell; experts of gpt-oss are [inputs, outputs] in memory."""
    config = {"model_type": "gpt_oss", **_TEXT, **MOES["gpt_oss"], "intermediate_size": 16}
    make(tmp_path, "AutoModelForCausalLM", config, target_modules=[], target_parameters=["experts.down_proj"])
    rename(tmp_path / "adapter", lambda name: name, peft_version=version)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    module, name = "base_model.model.model.layers.0.mlp.experts", "model.layers.0.mlp.experts.down_proj"
    a = tensors[f"{module}.lora_A.weight"].reshape(3, 2, 16)
    b = tensors[f"{module}.lora_B.weight"].reshape(16, 2, 3)
    change = 2 * torch.einsum("ore,eri->eoi" if outputs_first else "ore,eri->eio", b, a)
    wanted = load_file(tmp_path / "base" / "model.safetensors")[name] + change
    found = Checkpoint.open(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}").read(name)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_experts_that_transformers_4_had_one_by_one(tmp_path: Path) -> None:
    """Such an adapter has the names of the files. PEFT converts it as it loads it."""
    config = {"model_type": "mixtral", **_TEXT, **MOES["mixtral"]}
    make(tmp_path, "AutoModelForCausalLM", config, target_modules=["q_proj"])
    tensors, draw = load_file(tmp_path / "adapter" / "adapter_model.safetensors"), torch.Generator().manual_seed(3)
    for layer, expert, (matrix, inputs, outputs) in (
        (i, e, m) for i in (0, 1) for e in range(3) for m in (("w1", 16, 24), ("w2", 24, 16), ("w3", 16, 24))
    ):
        module = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{matrix}"
        tensors[f"{module}.lora_A.weight"] = torch.randn(2, inputs, generator=draw) * 0.1
        tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, 2, generator=draw) * 0.1
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    rename(tmp_path / "adapter", lambda name: name, target_modules=["q_proj", "w1", "w2", "w3"])
    merge(tmp_path, "AutoModelForCausalLM")
    assert len(check(tmp_path)) == 2 + 18


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [20, 21]},
    ],
    ids=["resized", "saved", "adapted", "both_adapted", "tokens"],
)
def test_new_tokens(settings: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    """PEFT saves a matrix that grew under up to three names."""
    config = {"model_type": "llama", **_TEXT, "tie_word_embeddings": tied}
    make(tmp_path, "AutoModelForCausalLM", config, rows=22, **settings)
    if not tied and settings["target_modules"] == ["q_proj", "embed_tokens"]:
        with pytest.raises(InputError, match=r"it holds no lm_head\.weight of so many rows; save it again"):
            Checkpoint.open(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
        return
    opened = Checkpoint.open(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
    assert opened.config["vocab_size"] == 22
    if not tied or "embed_tokens" not in settings["target_modules"]:
        assert {"model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])} <= check(tmp_path).keys()
        return
    # PEFT trains two matrices that were one, and merges both adapters into that one: here they stay two.
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    embedding, head = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
    grown = tensors[f"{embedding}.base_layer.weight"]
    change = 2 * (tensors[f"{embedding}.lora_embedding_B"] @ tensors[f"{embedding}.lora_embedding_A"]).T
    assert torch.allclose(opened.read("model.embed_tokens.weight"), grown + change, atol=1e-6)
    assert not opened.tied
    adapted = "lm_head" in settings["target_modules"]
    change = 2 * tensors[f"{head}.lora_B.weight"] @ tensors[f"{head}.lora_A.weight"] if adapted else 0
    assert torch.allclose(opened.read("lm_head.weight"), grown + change, atol=1e-6)


@pytest.mark.parametrize("kept", [["", ".modules_to_save"], [".modules_to_save"], [".modules_to_save.default"]])
def test_a_trained_module_beside_the_original(kept: list[str], tmp_path: Path) -> None:
    config = {"model_type": "llama", **_TEXT, "tie_word_embeddings": False}
    make(tmp_path, "AutoModelForCausalLM", config, rows=22, target_modules=["q_proj"],
         modules_to_save=["embed_tokens", "lm_head"])  # fmt: skip
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {n: t for n, t in load_file(file).items() if ".modules_to_save." not in n}
    for name in [n for n in tensors if n.endswith(("embed_tokens.weight", "lm_head.weight"))]:
        module, trained = name.removesuffix(".weight"), tensors.pop(name)
        tensors |= {f"{module}{word}.weight": trained.clone() for word in kept}
        tensors[f"{module}.original_module.weight"] = trained + 1
    save_file(tensors, file)
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= check(tmp_path).keys()


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    config = {"model_type": "mixtral", **_TEXT, **MOES["mixtral"]}
    make(tmp_path, "AutoModelForCausalLM", config, target_modules=[], target_parameters=_EXPERTS)
    shapes = r"gate_up_proj \[3, 48, 16\], down_proj \[3, 16, 24\]"
    for settings, said in (
        ({"target_parameters": ["experts.up_proj"]}, "these are none that it names"),
        ({"target_parameters": []}, "it has adapters inside of the one of"),
        ({"target_parameters": _EXPERTS, "r": 3}, "gate_up_proj has rank 2, by its adapter_config.json 3"),
    ):
        rename(tmp_path / "adapter", lambda name: name, **settings)
        with pytest.raises(InputError, match=said):
            check(tmp_path)
    write_model(tmp_path / "base", "AutoModelForCausalLM", {**config, "intermediate_size": 20})
    rename(tmp_path / "adapter", lambda name: name, target_parameters=_EXPERTS, r=2)
    with pytest.raises(InputError, match=shapes.replace("48", "40").replace("24", "20")):
        check(tmp_path)
