"""Writes the checkpoints, tasks and recipes of a layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from tests.families.layouts import TOKENS, TOWERS, Layout

LETTERS = "abcdefghij "
NOISE, NEAR = 0.3, 0.1
"""How far the base is from the model as it is initialised, and its fine-tunes are from the base."""

SOURCES = ("a", "b")
DENSITY = 0.5
"""Of the recipe."""

PROMPTS = ("abc", "fed", "ghi", "jab", "cde", "gab", "hid", "jig", "bad", "cab", "dig", "fig")
WRITTEN = 4
"""Tokens of an answer."""


def auto_class(layout: Layout) -> Any:
    """The Auto class of the layout's models."""
    import transformers

    return transformers.AutoModelForImageTextToText if layout.vision else transformers.AutoModelForCausalLM


def write_models(layout: Layout, folder: Path) -> None:
    """`base`, `a` and `b`: the base and two fine-tunes of it (noise in every tensor, in place of training)."""
    import transformers

    dtype = torch.bfloat16 if layout.form == "bfloat16" else torch.float32
    kind = layout.family.partition(",")[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto_class(layout).from_config(transformers.AutoConfig.for_model(kind, **layout.config)).eval()
        _move(model, NOISE)
        base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for number, name in enumerate(("base", *SOURCES)):
            torch.manual_seed(number)
            model.load_state_dict(base)
            if name in SOURCES:
                _move(model, NEAR)
            _save(layout, model, folder / name, name, dtype)
            write_tokenizer(folder / name)


def _move(model: Any, scale: float) -> None:
    """Adds noise to all that is stored."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "running_" not in name:
                tensor.add_(torch.randn_like(tensor) * scale)


def _save(layout: Layout, model: Any, folder: Path, name: str, dtype: torch.dtype) -> None:
    native = layout.form == "native" or (layout.form == "mixed" and name in SOURCES)
    size = "16KB" if layout.form == "sharded" else "50GB"
    if dtype != torch.float32:
        import copy

        model = copy.deepcopy(model).to(dtype)
    model.save_pretrained(folder, save_original_format=not native, max_shard_size=size)
    if layout.form == "hub" and layout.family in TOWERS:
        _rewrite(folder, lambda tensors: {_published(key): tensor for key, tensor in tensors.items()})
    if layout.form == "no prefix" or (layout.form == "no prefix, one source" and name == SOURCES[-1]):
        start = f"{model.base_model_prefix}."
        _rewrite(folder, lambda tensors: {key.removeprefix(start): tensor for key, tensor in tensors.items()})
    if layout.form == "untied source" and name == SOURCES[-1]:
        _untie(model, folder)


def _published(name: str) -> str:
    return re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name)


def _rewrite(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def _untie(model: Any, folder: Path) -> None:
    """Gives the stored model a head of its own, as training with an untied head leaves it."""
    head = model.get_output_embeddings().weight.detach().clone()
    _rewrite(folder, lambda tensors: {**tensors, "lm_head.weight": head + NEAR * torch.randn_like(head)})
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": False}))


def write_tokenizer(folder: Path) -> None:
    """One token a letter."""
    import transformers

    special = ("<s>", "</s>", "<pad>", "<unk>")
    words = {word: number for number, word in enumerate((*special, *LETTERS))}
    assert all(words[word] == TOKENS[key] for word, key in zip(special, TOKENS, strict=False))
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


TASKS = {"text": "bits_per_byte", "choice": "acc", "write": "exact_match"}
"""The tasks and their metrics: texts, choices, and answers that the model writes."""


def write_tasks(folder: Path, answers: list[str]) -> None:
    """Three tasks for lm-eval. `answers` are what the base writes to the prompts: every second one counts as right."""
    items = {
        "text": [{"text": (PROMPTS[i] + " ") * (1 + i % 4)} for i in range(12)],
        "choice": [
            {"question": PROMPTS[i], "choices": [" " + PROMPTS[(i + k) % 12] for k in (1, 5, 7)], "label": i % 3}
            for i in range(12)
        ],
        "write": [
            {"question": prompt, "answer": answer if i % 2 else "no"}
            for i, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True))
        ],
    }
    settings: dict[str, dict[str, Any]] = {
        "text": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"},
        "choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "label",
            "target_delimiter": "",
        },
        "write": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["no"], "do_sample": False, "max_gen_toks": WRITTEN},
        },
    }
    folder.mkdir()
    for name, metric in TASKS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items[name]))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
            "test_split": "test",
            "metric_list": [{"metric": metric}],
            **settings[name],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def write_files(folder: Path) -> None:
    """The fitness file, the search spaces (`space.yaml`, `slopes.yaml`) and a recipe, `ties.yml`."""
    fitness = {
        "include": ["tasks"],
        "batch_size": 8,
        "slices": {name: {"task": name, "metric": metric} for name, metric in TASKS.items()},
    }
    (folder / "fitness.yaml").write_text(yaml.safe_dump(fitness, sort_keys=False))
    space = {
        "base": "base",
        "sources": {name: name for name in SOURCES},
        "layers": 2,
        "genes": {"method": "ties", "weight": {"low": 0.0, "high": 1.2, "init": 0.5, "per": ["sources", "layers"]}},
        "optimizer": {"name": "cma-es", "seed": 0, "population": 4, "warm_start": False},
        "budget": {"trials": 8},
        "fitness": "fitness.yaml",
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    genes = {
        "method": "task_arithmetic",
        "weight": {"low": 0.0, "high": 1.0, "init": 0.4, "per": ["sources", "layers"]},
    }
    smooth = {**fitness, "slices": {name: s for name, s in fitness["slices"].items() if name != "write"}}
    (folder / "smooth.yaml").write_text(yaml.safe_dump(smooth, sort_keys=False))
    slopes = {**space, "genes": genes, "optimizer": {"name": "gradient", "steps": 6}, "budget": {"trials": 10}}
    slopes["fitness"] = "smooth.yaml"
    (folder / "slopes.yaml").write_text(yaml.safe_dump(slopes, sort_keys=False))
    (folder / "ties.yml").write_text(yaml.safe_dump(recipe(folder), sort_keys=False))


def recipe(folder: Path) -> dict[str, Any]:
    """TIES with a gradient of weights over the layers. In 16 bits mergekit rounds weights to these; here they are
    rounded before."""
    a, b = (str(folder / name) for name in SOURCES)
    kind = next(tensor.dtype for tensor in stored(folder / "base").values() if tensor.is_floating_point())
    dtype = str(kind).removeprefix("torch.")
    weights = [0.2, 0.9]
    if dtype == "bfloat16":
        weights = torch.tensor(weights, dtype=torch.bfloat16).tolist()
    return {
        "merge_method": "ties",
        "base_model": str(folder / "base"),
        "models": [
            {"model": a, "parameters": {"weight": weights, "density": DENSITY}},
            {"model": b, "parameters": {"weight": 0.5, "density": DENSITY}},
        ],
        "dtype": dtype,
    }


def stored(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
