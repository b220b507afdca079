"""Breaks healthy merges on purpose, in the ways in which merges are broken in practice.

Each breakage is a function that gets the models and an empty place, and returns what doctor is asked about: a model and
options. It breaks a merge that would be healthy otherwise. `BROKEN` names the finding that has to come first.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.examine.patients import (
    NEW_WORDS,
    SPECIAL,
    WORDS,
    Models,
    edit,
    edit_json,
    write_tokenizer,
    write_wider,
)

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
)
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Case:
    """What doctor is asked about. `quick`: whether this shows without running the model."""

    model: Path
    options: dict[str, Any] = field(default_factory=dict)
    quick: bool = True


Breakage = Callable[[Models, Path], Case]


def _healthy(models: Models, out: Path, **settings: Any) -> Path:
    return models.merge(out, models.arithmetic(**settings))


def _shuffled(count: int, seed: int = 0) -> list[int]:
    """An order in which all tokens but the special ones have moved."""
    kept = len(SPECIAL)
    moved = torch.randperm(count - kept, generator=torch.Generator().manual_seed(seed)) + kept
    return [*range(kept), *moved.tolist()]


# 1. Swapped vocabulary rows


def swapped_rows(models: Models, out: Path) -> Case:
    """Some tokens' rows stand at each other's place."""

    def swap(tensors: dict[str, Tensor]) -> None:
        matrix = tensors[EMBEDDING]
        for i in range(40, 60, 2):
            matrix[[i, i + 1]] = matrix[[i + 1, i]]

    edit(_healthy(models, out), swap)
    return Case(out)


def tokenizer_in_another_order(models: Models, out: Path) -> Case:
    """The tokenizer beside the weights orders its tokens otherwise."""
    write_tokenizer(_healthy(models, out), WORDS, _shuffled(WORDS))
    return Case(out)


def merged_by_id(models: Models, out: Path) -> Case:
    """A source orders its tokens otherwise, and the rows were averaged id by id."""
    order = _shuffled(WORDS, 3)
    source = models.root / "reordered"
    if not source.exists():
        source.mkdir()
        for file in (models.root / "two").iterdir():
            (source / file.name).write_bytes(file.read_bytes())
        write_tokenizer(source, WORDS, order)

        def reorder(tensors: dict[str, Tensor]) -> None:
            for name in _vocabulary(tensors):
                tensors[name] = tensors[name][order]

        edit(source, reorder)
    recipe = models.arithmetic("one", "reordered")
    recipe["merge_method"] = "linear"
    del recipe["base_model"]
    return Case(models.merge(out, recipe))


def _vocabulary(tensors: dict[str, Tensor]) -> list[str]:
    return [n for n in tensors if n in (EMBEDDING, "lm_head.weight")]


# 2. A union whose new rows nothing filled


def _union(models: Models, out: Path) -> Path:
    if not (models.root / "wider").exists():
        write_wider(models)
    recipe = models.arithmetic("one", "wider")
    return models.merge(out, {**recipe, "tokenizer_source": "union"})


def _refilled(models: Models, out: Path, rows: Callable[[Tensor], Tensor]) -> Case:
    def refill(tensors: dict[str, Tensor]) -> None:
        for name in _vocabulary(tensors):
            matrix = tensors[name]
            matrix[WORDS : WORDS + NEW_WORDS] = rows(matrix).to(matrix.dtype)

    edit(_union(models, out), refill)
    return Case(out)


def union_of_zeros(models: Models, out: Path) -> Case:
    return _refilled(models, out, lambda m: torch.zeros(NEW_WORDS, m.shape[1]))


def union_of_noise(models: Models, out: Path) -> Case:
    draw = torch.Generator().manual_seed(1)
    return _refilled(models, out, lambda m: 0.02 * torch.randn(NEW_WORDS, m.shape[1], generator=draw))


def union_of_means(models: Models, out: Path) -> Case:
    """As a resized matrix is filled: every new row is the mean of the old ones."""
    return _refilled(models, out, lambda m: m[:WORDS].float().mean(0).expand(NEW_WORDS, -1))


# 3. A wrong template


def wrong_template(models: Models, out: Path) -> Case:
    (_healthy(models, out) / "chat_template.jinja").write_text(LLAMA3)
    return Case(out)


def lost_template(models: Models, out: Path) -> Case:
    (_healthy(models, out) / "chat_template.jinja").unlink()
    return Case(out)


def template_of_the_recipe(models: Models, out: Path) -> Case:
    return Case(_healthy(models, out, chat_template="llama3"))


# 4. Lambda 3


def lambda_of_3(models: Models, out: Path) -> Case:
    return Case(_healthy(models, out, parameters={"lambda": 3.0}))


def lambda_of_3_with_ties(models: Models, out: Path) -> Case:
    recipe = models.arithmetic(parameters={"lambda": 3.0, "density": 0.5})
    return Case(models.merge(out, {**recipe, "merge_method": "ties"}))


def lambda_of_3_without_a_recipe(models: Models, out: Path) -> Case:
    _healthy(models, out, parameters={"lambda": 3.0})
    (out / "mergekit_config.yml").unlink()
    return Case(out, {"base": str(models.base), "sources": [str(models.source(s)) for s in ("one", "two")]})


# 5. Unrelated lineage


def unrelated(models: Models, out: Path) -> Case:
    recipe = models.arithmetic("one", "stranger")
    return Case(models.merge(out, recipe))


def unrelated_without_base(models: Models, out: Path) -> Case:
    recipe = models.arithmetic("one", "stranger")
    del recipe["base_model"]
    return Case(models.merge(out, {**recipe, "merge_method": "linear"}))


# 6. Layers out of order


def _reordered(models: Models, out: Path, order: Callable[[int], list[int]]) -> Case:
    def reorder(tensors: dict[str, Tensor]) -> None:
        old = dict(tensors)
        layers = 1 + max(int(n.split(".")[2]) for n in old if n.startswith("model.layers."))
        for name in old:
            if name.startswith("model.layers."):
                _, _, layer, rest = name.split(".", 3)
                tensors[name] = old[f"model.layers.{order(layers)[int(layer)]}.{rest}"]

    edit(_healthy(models, out), reorder)
    return Case(out)


def two_layers_swapped(models: Models, out: Path) -> Case:
    return _reordered(models, out, lambda n: [0, 2, 1, *range(3, n)])


def layers_backwards(models: Models, out: Path) -> Case:
    return _reordered(models, out, lambda n: list(range(n))[::-1])


def slices_out_of_order(models: Models, out: Path) -> Case:
    """The recipe itself has its slices in a wrong order."""
    ranges = [("two", [2, 4]), ("one", [0, 2])]
    slices = [{"sources": [{"model": str(models.source(s)), "layer_range": r}]} for s, r in ranges]
    return Case(models.merge(out, {"merge_method": "passthrough", "slices": slices}))


# 7. One NaN tensor


def nan_tensor(models: Models, out: Path) -> Case:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.down_proj.weight"].fill_(float("nan"))

    edit(_healthy(models, out), spoil)
    return Case(out)


def one_nan(models: Models, out: Path) -> Case:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.2.self_attn.o_proj.weight"][3, 5] = float("nan")

    edit(_healthy(models, out), spoil)
    return Case(out)


# 8. A zeroed norm


def zeroed_norm(models: Models, out: Path) -> Case:
    edit(_healthy(models, out), lambda tensors: tensors["model.layers.1.input_layernorm.weight"].zero_())
    return Case(out)


def zeroed_last_norm(models: Models, out: Path) -> Case:
    edit(_healthy(models, out), lambda tensors: tensors["model.norm.weight"].zero_())
    return Case(out)


# 9. A quantized source


def _quantized(models: Models, bits: int = 8) -> tuple[Path, dict[str, Tensor]]:
    """A source in int8 by rows (compressed-tensors), and its codes."""
    folder, codes = models.root / f"int{bits}", {}
    stored: dict[str, Tensor] = {}
    for name, tensor in load_file(models.source("two") / "model.safetensors").items():
        if tensor.dim() == 2 and ".layers." in name:
            scale = tensor.float().abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            codes[name] = (tensor.float() / scale).round().clamp(-128, 127)
            stored[name] = codes[name].to(torch.int8)
            stored[f"{name}_scale"] = scale.bfloat16()
        else:
            stored[name] = tensor
    if not folder.exists():
        folder.mkdir()
        for file in models.source("two").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel"}
        group = {"targets": ["Linear"], "weights": weights}
        settings = {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "config_groups": {"group_0": group},
        }
        edit_json(folder, "config.json", quantization_config={**settings, "ignore": ["lm_head"]})
    return folder, codes


def codes_merged_as_floats(models: Models, out: Path) -> Case:
    """The source's codes were averaged with the other source's weights."""
    folder, codes = _quantized(models)
    recipe = models.arithmetic("one", folder.name)
    models.merge(out, recipe)

    def spoil(tensors: dict[str, Tensor]) -> None:
        one = load_file(models.source("one") / "model.safetensors")
        for name, code in codes.items():
            tensors[name] = (0.5 * one[name].float() + 0.5 * code).to(tensors[name].dtype)

    edit(out, spoil)
    return Case(out)


def codes_of_a_source_that_was_not_quantized(models: Models, out: Path) -> Case:
    """The same, and the source that is named is the one before quantization."""
    case = codes_merged_as_floats(models, out)
    (out / "mergekit_config.yml").unlink()
    return Case(case.model, {"base": str(models.base), "sources": [str(models.source(s)) for s in ("one", "two")]})


def codes_left_in(models: Models, out: Path) -> Case:
    """Codes were copied into the merge, and what says how to read them was not."""
    folder, _ = _quantized(models)
    _healthy(models, out)
    (out / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return Case(out)


# 10. A tied or untied head


def tied_though_stored(models: Models, out: Path) -> Case:
    edit_json(_healthy(models, out), "config.json", tie_word_embeddings=True)
    return Case(out)


def head_left_behind(models: Models, out: Path) -> Case:
    """A head that is tied in the parents was stored and not merged."""
    base = load_file(models.base / "model.safetensors")
    edit(_healthy(models, out), lambda tensors: tensors.update({"lm_head.weight": base[EMBEDDING]}))
    edit_json(out, "config.json", tie_word_embeddings=False)
    return Case(out)


def untied_without_head(models: Models, out: Path) -> Case:
    edit_json(_healthy(models, out), "config.json", tie_word_embeddings=False)
    edit(out, lambda tensors: tensors.pop("lm_head.weight", None))
    return Case(out)


# 11. Fused projections split wrongly


def fused_in_another_order(models: Models, out: Path) -> Case:
    """Queries, keys and values lie as keys, values, queries."""

    def turn(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if n.endswith("qkv_proj.weight")]:
            q, k, v = tensors[name].chunk(3)
            tensors[name] = torch.cat([k, v, q])

    edit(_healthy(models, out), turn)
    return Case(out)


def fused_by_heads(models: Models, out: Path) -> Case:
    """Queries, keys and values lie head by head, as GPT-NeoX has them."""

    def turn(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if n.endswith("qkv_proj.weight")]:
            parts = [part.reshape(4, -1, part.shape[1]) for part in tensors[name].chunk(3)]
            tensors[name] = torch.stack(parts, 1).reshape(tensors[name].shape)

    edit(_healthy(models, out), turn)
    return Case(out)


def gate_and_up_swapped(models: Models, out: Path) -> Case:
    def swap(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if n.endswith("gate_proj.weight")]:
            other = name.replace("gate", "up")
            tensors[name], tensors[other] = tensors[other], tensors[name]
        for name in [n for n in tensors if n.endswith("gate_up_proj.weight")]:
            gate, up = tensors[name].chunk(2)
            tensors[name] = torch.cat([up, gate])

    edit(_healthy(models, out), swap)
    return Case(out)


# 12. Rope theta of another model


def rope_theta(models: Models, out: Path) -> Case:
    _healthy(models, out)
    config = json.loads((out / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 1_000_000.0
    (out / "config.json").write_text(json.dumps(config))
    return Case(out)


def old_rope_theta(models: Models, out: Path) -> Case:
    """In the key that models of before transformers 5 have."""
    edit_json(_healthy(models, out), "config.json", rope_parameters=None, rope_theta=500_000.0)
    return Case(out)


# 13. Overflow in float16


def weights_beyond_float16(models: Models, out: Path) -> Case:
    """Sources in bfloat16 have weights that float16 does not hold."""
    name = "model.layers.1.mlp.down_proj.weight"
    large = {}
    for source in ("one", "two"):
        folder = models.root / f"large_{source}"
        if not folder.exists():
            folder.mkdir()
            for file in models.source(source).iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
            edit(folder, lambda tensors: tensors[name][7, 11:14].fill_(1e5))
        large[source] = load_file(folder / "model.safetensors")
    recipe = models.arithmetic("large_one", "large_two", dtype="bfloat16")
    models.merge(out, recipe)

    def narrow(tensors: dict[str, Tensor]) -> None:
        for key in tensors:
            tensors[key] = tensors[key].half()

    edit(out, narrow)
    edit_json(out, "config.json", dtype="float16")
    return Case(out)


def activations_beyond_float16(models: Models, out: Path) -> Case:
    """The weights fit, and what the layers compute with them does not."""
    for source in ("one", "two"):
        folder = models.root / f"loud_{source}"
        if not folder.exists():
            folder.mkdir()
            for file in models.source(source).iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
            edit(folder, _louder)
    recipe = models.arithmetic("loud_one", "loud_two", dtype="float16")
    del recipe["base_model"]
    return Case(models.merge(out, {**recipe, "merge_method": "linear"}), quick=False)


def _louder(tensors: dict[str, Tensor]) -> None:
    for name in tensors:
        if name.endswith("mlp.down_proj.weight"):
            tensors[name] *= 1e5


# 14. A missing end of text


def no_end(models: Models, out: Path) -> Case:
    edit_json(_healthy(models, out), "generation_config.json", eos_token_id=None)
    edit_json(out, "config.json", eos_token_id=None)
    return Case(out)


def end_of_another_model(models: Models, out: Path) -> Case:
    edit_json(_healthy(models, out), "generation_config.json", eos_token_id=77)
    return Case(out)


def turn_does_not_end(models: Models, out: Path) -> Case:
    """Of the two ends that the sources have, the one of their template was lost."""
    edit_json(_healthy(models, out), "generation_config.json", eos_token_id=2)
    return Case(out)


def tokenizer_without_end(models: Models, out: Path) -> Case:
    edit_json(_healthy(models, out), "tokenizer_config.json", eos_token=None)
    return Case(out)


# 15. An adapter applied twice


def adapter_twice(models: Models, out: Path) -> Case:
    """Its base had it already."""
    once = models.root / "once"
    if not once.exists():
        models.merge(
            once, {"merge_method": "passthrough", "models": [{"model": f"{models.base}+{models.source('lora')}"}]}
        )
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{once}+{models.source('lora')}"}]}
    models.merge(out, recipe)
    (out / "mergekit_config.yml").unlink()
    return Case(out, {"base": str(models.base), "sources": [f"{models.base}+{models.source('lora')}"]})


def adapter_twice_beside_a_source(models: Models, out: Path) -> Case:
    """Both sources of the merge have it: one as an adapter, the other one inside."""
    adapter = f"{models.base}+{models.source('lora')}"
    recipe = models.arithmetic("one")
    recipe["models"] += [{"model": adapter, "parameters": {"weight": 2.0}}]
    return Case(models.merge(out, recipe))


BROKEN: dict[str, tuple[str, dict[str, tuple[Breakage, ...]]]] = {
    "swapped vocabulary rows": (
        "permuted-rows",
        {"*": (swapped_rows, tokenizer_in_another_order, merged_by_id)},
    ),
    "union without filled rows": ("unfilled-rows", {"*": (union_of_zeros, union_of_noise, union_of_means)}),
    "wrong template": ("chat-template", {"*": (wrong_template, lost_template, template_of_the_recipe)}),
    "lambda 3": (
        "beyond-the-sources",
        {"*": (lambda_of_3, lambda_of_3_with_ties, lambda_of_3_without_a_recipe)},
    ),
    "unrelated lineage": ("unrelated-lineage", {"*": (unrelated, unrelated_without_base)}),
    "layers out of order": (
        "layers-out-of-order",
        {"*": (two_layers_swapped, layers_backwards), "llama": (slices_out_of_order,), "phi3": (slices_out_of_order,)},
    ),
    "one NaN tensor": ("not-finite", {"*": (nan_tensor, one_nan)}),
    "a zeroed norm": ("zeroed", {"*": (zeroed_norm, zeroed_last_norm)}),
    "quantized source": (
        "quantized-as-floats",
        {"*": (codes_merged_as_floats, codes_of_a_source_that_was_not_quantized, codes_left_in)},
    ),
    "tied or untied head": (
        "head-",
        {
            "llama": (tied_though_stored, untied_without_head),
            "phi3": (tied_though_stored, untied_without_head),
            "qwen2": (head_left_behind, untied_without_head),
            "gemma2": (head_left_behind, untied_without_head),
        },
    ),
    "fused projections split wrongly": (
        "rows-of-other-projections",
        {
            "phi3": (fused_in_another_order, fused_by_heads, gate_and_up_swapped),
            "llama": (gate_and_up_swapped,),
            "qwen2": (gate_and_up_swapped,),
            "gemma2": (gate_and_up_swapped,),
        },
    ),
    "rope theta of another model": ("configuration-of-another-model", {"*": (rope_theta, old_rope_theta)}),
    "overflow in float16": (
        "float16-overflow",
        {
            "*": (weights_beyond_float16,),
            # For Qwen 2, transformers reads every tokenizer as its own, which makes no tokens of these.
            **dict.fromkeys(("llama", "phi3", "gemma2"), (activations_beyond_float16,)),
        },
    ),
    "missing end of text": (
        "end-of-text",
        {"*": (no_end, end_of_another_model, turn_does_not_end, tokenizer_without_end)},
    ),
    "adapter applied twice": (
        "adapter-twice",
        {
            "llama": (adapter_twice, adapter_twice_beside_a_source),
            "qwen2": (adapter_twice,),
            "gemma2": (adapter_twice,),
        },
    ),
}
"""The fifteen breakages: the name that the first finding begins with, and variants by family ("*": of every family)."""


def variants(family: str) -> list[tuple[str, str, Breakage]]:
    """(cause, finding, breakage) of all breakages of a family."""
    return [
        (cause, finding, breakage)
        for cause, (finding, by_family) in BROKEN.items()
        for breakage in (*by_family.get("*", ()), *by_family.get(family, ()))
    ]
