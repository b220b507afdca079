"""Base, sources and items of benchmarks/training.py, in memory: real checkpoints, and the quickstart's converged ones.

An item is a text, and which of its tokens are asked for. A slice's score is bits per byte: the negative log2-likelihood
of these tokens of all items over their UTF-8 bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.demo import data, train

HOLDOUT = 64
"""Items a slice on the holdout split."""

_BATCH = 12
_ROWS = 64


@dataclass(frozen=True)
class Item:
    """`tokens`: of the whole text; `asked`: the likelihood of so many of the last ones counts; `size`: their bytes."""

    key: str
    tokens: tuple[int, ...]
    asked: int
    size: int


@dataclass(frozen=True)
class Testbed:
    """`model`: an empty resident model of the checkpoints' architecture."""

    model: Any
    base: Mapping[str, Tensor]
    sources: Mapping[str, Mapping[str, Tensor]]
    items: Mapping[str, Sequence[Item]]

    def deal(self, seed: int, count: int) -> tuple[list[list[Item]], list[list[Item]]]:
        """Search items (as many of `count` a slice as there are) and holdout items, by slice."""
        search, holdout = [], []
        for name, items in self.items.items():
            order = sorted(items, key=lambda i: hashlib.sha256(f"{seed}|{name}|{i.key}".encode()).digest())
            holdout.append(order[:HOLDOUT])
            search.append(order[HOLDOUT : HOLDOUT + count])
        return search, holdout


def nats(model: Any, weights: Mapping[str, Tensor] | None, items: Sequence[Item]) -> Tensor:
    """The negative log-likelihood of each item [n], by `model` with these weights in place of its own."""
    longest = max(len(item.tokens) for item in items)
    tokens = torch.zeros(len(items), longest, dtype=torch.long)
    wanted = torch.zeros(len(items), longest - 1, dtype=torch.bool)
    for row, item in enumerate(items):
        tokens[row, : len(item.tokens)] = torch.tensor(item.tokens)
        wanted[row, len(item.tokens) - 1 - item.asked : len(item.tokens) - 1] = True
    # Padding stands behind the text, where a causal model does not look.
    inputs = {"input_ids": tokens, "use_cache": False}
    answer = model(**inputs) if weights is None else torch.func.functional_call(model, dict(weights), (), inputs)
    lost = torch.nn.functional.cross_entropy(answer.logits[:, :-1][wanted], tokens[:, 1:][wanted], reduction="none")
    owners = wanted.nonzero()[:, 0]
    return torch.zeros(len(items)).index_add(0, owners, lost)


def bits(nats: Tensor, items: Sequence[Item]) -> Tensor:
    """Bits per byte of a slice's items."""
    return nats.sum() / (math.log(2) * sum(item.size for item in items))


def scores(model: Any, weights: Mapping[str, Tensor] | None, slices: Sequence[Sequence[Item]]) -> list[float]:
    """Bits per byte of each slice."""
    return [float(bits(likelihoods(model, weights, items), items)) for items in slices]


def likelihoods(model: Any, weights: Mapping[str, Tensor] | None, items: Sequence[Item]) -> Tensor:
    """`nats` without gradients, a few items at a time."""
    with torch.no_grad():
        parts = [nats(model, weights, items[i : i + _BATCH]) for i in range(0, len(items), _BATCH)]
    return torch.cat(parts)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention in blocks of rows: at 8 features a head a third faster than torch's own kernel on a CPU."""
    length, groups = query.shape[2], module.num_key_value_groups
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    query = query * query.shape[-1] ** -0.5
    parts = []
    for start in range(0, length, _ROWS):
        end = min(length, start + _ROWS)
        products = query[:, :, start:end] @ key[:, :, :end].transpose(2, 3)
        later = torch.triu(torch.full((end - start, end - start), -torch.inf), 1)
        products[..., start:end] += later
        parts.append(products.softmax(-1) @ value[:, :, :end])
    return torch.cat(parts, 2).transpose(1, 2), None


def specialists(folder: Path) -> Testbed:
    """`base` and three specialists that were trained for a few hundred steps, items of 420 characters."""
    from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

    AttentionInterface.register("blocks", attention)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    names = ("shakespeare", "gsm8k", "french")
    items = {}
    for name in names:
        rows = [json.loads(line) for line in (folder / f"items/{name}_text.jsonl").read_text().splitlines()]
        encoded = [(row["id"], row["text"], tokenizer(row["text"]).input_ids) for row in rows]
        items[name] = [Item(key, tuple(ids), len(ids) - 1, len(text.encode())) for key, text, ids in encoded]
    model = AutoModelForCausalLM.from_pretrained(folder / "base", attn_implementation="blocks").eval()
    return Testbed(model, _weights(folder / "base"), {n: _weights(folder / n) for n in names}, items)


def quickstart(root: Path) -> Testbed:
    """The quickstart's base and specialists, trained three times as long, until they have converged. Slices ask for
    this year's answers, which the base mostly gets wrong."""
    settings = _settings()
    train.prepare(root, settings=settings)
    folder = root / "models/quickstart"
    words = _words()
    items = {d: [_item(words, i.prompt, i.choices[i.label]) for i in data.items(d)] for d in data.DOMAINS}
    sources = {d: _weights(folder / d) for d in data.DOMAINS}
    return Testbed(train.new_model(settings, len(words)).eval(), _weights(folder / "base"), sources, items)


def editions(root: Path) -> Testbed:
    """Two further fine-tunes of the quickstart's base, of one edition each. Their answers to the same prompts conflict,
    and the slices ask for last year's fees, but for this year's refunds and catalogue."""
    settings = _settings()
    train.prepare(root, settings=settings)
    words, base = _words(), root / "models/quickstart/base"
    sources = {}
    for number, edition in enumerate(data.EDITIONS):
        folder = root / "models/editions" / edition
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            model = train.new_model(settings, len(words))
            train.load_weights(model, base)
            mixture = [(train.encode(data.lessons(d, edition), words), 1 / 3) for d in data.DOMAINS]
            schedule = train.TrainingSchedule(_LONG, 1e-3)
            train.train(model, mixture, schedule, settings.batch, 900 + number, lambda step: None)
            train.save(model, train.new_tokenizer(words), folder)
        sources[edition] = _weights(folder)
    items = {}
    for domain in data.DOMAINS:
        edition = data.EDITIONS[0] if domain == "shipping" else data.EDITIONS[1]
        asked = data._asked(domain).items()
        items[domain] = [_item(words, data.ask(domain, c, w), data.answer(domain, edition, c)) for c, w in asked]
    return Testbed(train.new_model(settings, len(words)).eval(), _weights(base), sources, items)


_LONG = 700


def _settings() -> train.Settings:
    step = train.TrainingSchedule
    tuned = {d: step(_LONG, 1e-3, rehearsal=0.3) for d in ("refunds", "catalog")}
    return train.Settings(base=step(2000, 3e-3), shipping=step(_LONG, 4e-3), **tuned)


def _words() -> list[str]:
    return [train.PAD, train.END, train.UNKNOWN, *data.vocabulary()]


def _item(words: Sequence[str], prompt: str, answer: str) -> Item:
    index = {word: i for i, word in enumerate(words)}
    tokens = tuple(index[w] for w in (*prompt.split(), answer, train.END))
    return Item(prompt, tokens, 2, len(answer.encode()))


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}


TESTBEDS = {"specialists": specialists, "quickstart": quickstart, "editions": editions}
