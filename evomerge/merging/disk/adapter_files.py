"""Writes a LoRA adapter as PEFT reads it: adapter_config.json, adapter_model.safetensors, a card, and its recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evomerge.cards.front_matter import CARD
from evomerge.checkpoints.hub import split_revision
from evomerge.checkpoints.lora import WEIGHTS
from evomerge.checkpoints.lora_config import CONFIG
from evomerge.checkpoints.write import CheckpointWriter, TensorLayout
from evomerge.escape import code, code_block, markdown
from evomerge.merging.disk.adapter import AdapterContent
from evomerge.merging.disk.card import front_matter
from evomerge.merging.disk.documents import RECIPE_FILE
from evomerge.merging.disk.naming import Names
from evomerge.recipe.mergekit import write_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.relocated import relocated


def write_adapter(
    content: AdapterContent,
    base: str,
    shapes: Iterable[str],
    out: Path,
    recipe: Recipe | None,
    names: Names,
    *,
    causal: bool,
    overwrite: bool = False,
) -> None:
    """Write an adapter; it appears when it is whole.

    Args:
        base: the base's reference from anywhere; a folder of this machine is not named in the files.
        shapes: the names of all tensors of the base.
        recipe: of the merge; None: the change of a model was taken.
        causal: whether the base is a causal language model, which PEFT has a class for.

    Raises:
        InputError: the folder cannot be written.
    """
    layout = {name: TensorLayout(tuple(tensor.shape), "float32") for name, tensor in content.tensors.items()}
    with CheckpointWriter(out, layout, shard_bytes=1 << 62, overwrite=overwrite, names=(WEIGHTS, CONFIG)) as writer:
        for name, tensor in content.tensors.items():
            writer.add(name, tensor)
        if recipe is not None:
            seen = names.seen_from(writer.target) if names.local else dict[str, str]()
            writer.text(RECIPE_FILE, write_recipe(relocated(recipe, seen) if seen else recipe))
        hub = None if Path(base).is_absolute() else base
        writer.text(CARD, _card(out.name, content, hub, recipe, names))
        writer.config(_config(content, hub, shapes, causal))


def _config(content: AdapterContent, hub: str | None, tensors: Iterable[str], causal: bool) -> dict[str, Any]:
    """adapter_config.json. The scale alpha / r is 1."""
    name, revision = (None, None) if hub is None else split_revision(hub)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": name,
        "revision": revision,
        "r": content.rank,
        "lora_alpha": content.rank,
        "lora_dropout": 0.0,
        "target_modules": _targets(content.modules, tensors),
        "modules_to_save": list(content.saved) or None,
        "bias": "all" if content.biased else "none",
        "fan_in_fan_out": content.turned,
        "inference_mode": True,
    }


def _targets(modules: Iterable[str], tensors: Iterable[str]) -> list[str]:
    """The modules as short as PEFT can tell them apart: the last word of their names, where it is all such modules."""
    adapted: dict[str, list[str]] = {}
    for module in modules:
        adapted.setdefault(module.rpartition(".")[2], []).append(module)
    stored = [name.removesuffix(".weight").rpartition(".")[2] for name in tensors if name.endswith(".weight")]
    return [name for word, names in adapted.items() for name in ([word] if stored.count(word) == len(names) else names)]


def _card(name: str, content: AdapterContent, hub: str | None, recipe: Recipe | None, names: Names) -> str:
    """README.md. No path of this machine stands in it."""
    data: Mapping[str, Any] = {
        **({"base_model": split_revision(hub)[0]} if hub else {}),
        "library_name": "peft",
        "tags": ["lora", *(["merge"] if recipe else []), "evomerge"],
    }
    kind = "A merge of language models as a LoRA adapter" if recipe else "The change of a model as a LoRA adapter"
    listed = "\n".join(f"- {code(part.reference)}" for part in names.all_parts)
    made = f"\n## Recipe\n\n{code_block(write_recipe(names.named()), 'yaml')}\n" if recipe else ""
    return f"""{front_matter(data)}# {markdown(name)}

{kind} of rank {content.rank}, made with evomerge.
It lacks {content.error:.2%} of the change (Frobenius norms over all weights).

## Models

{listed}
{made}"""
