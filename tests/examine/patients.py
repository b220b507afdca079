"""Base, sources and healthy merges for doctor: small models of several families, with noise in place of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

import evomerge

WORDS, NEW_WORDS = 300, 12
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
NEAR = 0.05
"""How far fine-tunes are from their base, of its weights."""

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": WORDS,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "tie_word_embeddings": False},
    "qwen2": {**_SIZES, "tie_word_embeddings": True, "num_hidden_layers": 6, "hidden_size": 96},
    "phi3": {**_SIZES, "tie_word_embeddings": False, "num_key_value_heads": 4},
    "gemma2": {**_SIZES, "tie_word_embeddings": True, "head_dim": 16, "query_pre_attn_scalar": 16},
}
"""Grouped queries; biases and a tied head; fused projections; norms that are stored as a distance from 1."""


@dataclass(frozen=True)
class Models:
    """A base, two fine-tunes and an adapter of it, in one folder."""

    family: str
    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    def source(self, name: str) -> Path:
        return self.root / name

    def merge(self, out: Path, recipe: dict[str, Any]) -> Path:
        """Writes a recipe's merge."""
        file = out.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))
        evomerge.merge(file, out)
        return out

    def arithmetic(self, *sources: str, weight: float = 0.5, **settings: Any) -> dict[str, Any]:
        """A recipe of task arithmetic."""
        inputs = [{"model": str(self.source(s)), "parameters": {"weight": weight}} for s in sources or ("one", "two")]
        return {"merge_method": "task_arithmetic", "base_model": str(self.base), "models": inputs, **settings}


def write_models(family: str, root: Path, dtype: torch.dtype = torch.bfloat16) -> Models:
    """Writes `base`, its fine-tunes `one` and `two`, the adapter `lora`, and `stranger`, trained from another start."""
    base = _drawn(family, 0)
    _save(root / "base", family, base, dtype)
    for seed, name in enumerate(("one", "two"), start=1):
        _save(root / name, family, tuned(base, seed), dtype)
    _save(root / "stranger", family, _drawn(family, 7), dtype)
    _write_adapter(root / "lora", root / "base", base, 3)
    return Models(family, root)


def write_wider(models: Models, name: str = "wider", seed: int = 5) -> Path:
    """Writes a fine-tune that has more tokens than the base."""
    tensors = tuned(load_file(models.base / "model.safetensors"), seed)
    more = torch.Generator().manual_seed(seed)
    for key, tensor in tensors.items():
        if tensor.shape[0] == WORDS:
            rows = torch.randn(NEW_WORDS, tensor.shape[1], generator=more) * tensor.float().std()
            tensors[key] = torch.cat([tensor, rows.to(tensor.dtype)])
    folder = models.root / name
    _save(folder, models.family, tensors, torch.bfloat16, WORDS + NEW_WORDS)
    return folder


def tuned(base: dict[str, Tensor], seed: int, near: float = NEAR) -> dict[str, Tensor]:
    """A fine-tune of a model: noise in the size of its tensors."""
    draw = torch.Generator().manual_seed(seed)
    return {n: t.float() + near * t.float().std() * torch.randn(t.shape, generator=draw) for n, t in base.items()}


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes the weights of a checkpoint."""
    file = folder / "model.safetensors"
    tensors = dict(load_file(file))
    change(tensors)
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, file, metadata={"format": "pt"})


def edit_json(folder: Path, name: str, **changes: Any) -> None:
    """Changes keys of a JSON file; None removes one."""
    data = json.loads((folder / name).read_text())
    data |= {k: v for k, v in changes.items() if v is not None}
    for key in [k for k, v in changes.items() if v is None]:
        data.pop(key, None)
    (folder / name).write_text(json.dumps(data))


def write_tokenizer(folder: Path, rows: int, order: list[int] | None = None, template: str | None = TEMPLATE) -> None:
    """Writes a tokenizer of whole words, in another order of ids if one is given."""
    words = [*SPECIAL, *(f"w{i}" for i in range(WORDS - len(SPECIAL)))]
    words += [f"new{i}" for i in range(rows - WORDS)]
    if order is not None:
        words = [words[i] for i in order]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


def _drawn(family: str, seed: int) -> dict[str, Tensor]:
    """A model at its start, with norms that are not all alike."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
        model = transformers.AutoModelForCausalLM.from_config(config)
        tensors = {n: t.detach().clone() for n, t in model.state_dict().items()}
        if config.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        for name, tensor in tensors.items():
            if tensor.dim() == 1:
                tensor.add_(0.2 * torch.randn(tensor.shape))
            tensors[name] = tensor
    return tensors


def _save(folder: Path, family: str, tensors: dict[str, Tensor], dtype: torch.dtype, rows: int = WORDS) -> None:
    import transformers

    folder.mkdir(parents=True)
    config = transformers.AutoConfig.for_model(family, **{**FAMILIES[family], "vocab_size": rows}).to_dict()
    name = str(dtype).removeprefix("torch.")
    architecture = transformers.AutoModelForCausalLM._model_mapping[type(transformers.AutoConfig.for_model(family))]
    config |= {"dtype": name, "architectures": [architecture.__name__]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2, 4]}))
    save_file(
        {n: t.to(dtype).contiguous() for n, t in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    write_tokenizer(folder, rows)


def _write_adapter(folder: Path, base: Path, tensors: dict[str, Tensor], seed: int, rank: int = 4) -> None:
    """A LoRA adapter of the matrices in the layers, in peft's files."""
    draw, stored, modules = torch.Generator().manual_seed(seed), {}, set()
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if ".layers." not in name or tensor.dim() != 2 or not module.endswith("_proj"):
            continue
        size = float(tensor.std()) * NEAR
        modules.add(module.rpartition(".")[2])
        prefix = f"base_model.model.{module}"
        stored[f"{prefix}.lora_A.weight"] = torch.randn(rank, tensor.shape[1], generator=draw)
        stored[f"{prefix}.lora_B.weight"] = torch.randn(tensor.shape[0], rank, generator=draw) * size
    folder.mkdir()
    save_file(stored, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(modules)}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
