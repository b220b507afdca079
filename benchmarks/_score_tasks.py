"""A random Llama with a 32,000-word vocabulary, and four lm-eval tasks for it; nothing is downloaded.

The same arguments make the same bytes. A model that is there already is not made again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

VOCABULARY = 32_000
_SPECIAL = ("<unk>", "<s>", "</s>")
_HEAD = 64

TASKS = {"choice": "acc", "rolling": "bits_per_byte", "pairs": "acc", "generation": "exact_match"}
"""The tasks and the metric that each is scored by."""


def build_model(folder: Path, hidden: int, layers: int, seed: int = 0) -> Path:
    """A float32 checkpoint whose every word is one token. Weights as before training, a little larger, so that
    different contexts are continued differently."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if (folder / "config.json").exists():
        return folder
    write_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=round(2.75 * hidden / _HEAD) * _HEAD,
        num_hidden_layers=layers,
        num_attention_heads=hidden // _HEAD,
        num_key_value_heads=hidden // _HEAD,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.05,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """The tokenizer whose every word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = [*_SPECIAL, *(f"w{i}" for i in range(VOCABULARY - len(_SPECIAL)))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    told = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **told).save_pretrained(folder)


def write_tasks(folder: Path, scale: float, batch_size: int) -> dict[str, int]:
    """Task YAML, its items, and one fitness file for each task; the number of items of each. `scale` multiplies it."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, (items, config) in _made(random.Random(0), scale).items():
        counts[name] = len(items)
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps({"id": i, **item}) + "\n" for i, item in enumerate(items)))
        whole = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "metric_list": [{"metric": TASKS[name]}],
            **config,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
        fitness = {"include": ["."], "batch_size": batch_size, "slices": {name: {"task": name, "metric": TASKS[name]}}}
        # Beside the task files, but not one of them.
        (folder.parent / f"{name}_fitness.yaml").write_text(
            yaml.safe_dump(fitness | {"include": [folder.name]}, sort_keys=False)
        )
    return counts


def _made(draw: random.Random, scale: float) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Items and YAML of each task. Word lengths are those of benchmarks in use: HellaSwag's endings behind a few-shot
    context, paragraphs, BLiMP's sentences, short questions."""

    def many(count: int, make: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
        return [make() for _ in range(max(2, round(count * scale)))]

    choice = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "label"}
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    generation = {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        # One word in forty holds it: replies are of many lengths.
        "generation_kwargs": {"until": ["77"], "max_gen_toks": 64, "do_sample": False},
    }
    return {
        "choice": (many(24, lambda: _choice(draw)), {**choice, "doc_to_text": "{{context}}"}),
        "rolling": (many(40, lambda: {"text": _words(draw, 150, 350)}), rolling),
        "pairs": (many(200, lambda: _pair(draw)), {**choice, "doc_to_text": ""}),
        "generation": (many(48, lambda: {"prompt": _words(draw, 20, 120), "answer": "w1"}), generation),
    }


def _choice(draw: random.Random) -> dict[str, Any]:
    return {
        "context": _words(draw, 320, 400),
        "choices": [_words(draw, 6, 16) for _ in range(4)],
        "label": draw.randrange(4),
    }


def _pair(draw: random.Random) -> dict[str, Any]:
    """Two sentences that differ in one word."""
    good = _words(draw, 6, 14).split()
    place = draw.randrange(len(good))
    bad = [*good[:place], _words(draw, 1, 1), *good[place + 1 :]]
    return {"choices": [" ".join(good), " ".join(bad)], "label": 0}


def _words(draw: random.Random, low: int, high: int) -> str:
    """Words by Zipf's law, the frequent ones with small numbers."""
    count = VOCABULARY - len(_SPECIAL)
    return " ".join(f"w{int(count ** draw.random()) - 1}" for _ in range(draw.randint(low, high)))
