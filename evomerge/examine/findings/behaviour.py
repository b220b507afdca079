"""What a model in memory does: how it reads a few texts, how it goes on from a few prompts, its activations."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import TrialError
from evomerge.escape import shortened
from evomerge.safety.templates import TooMuch, bounded

TEXTS = (
    "The old bridge across the river was closed for repairs, so the children walked to school along the other bank.",
    "To make tea, boil some water, pour it over the leaves, and wait for about four minutes before you drink it.",
    "If a train leaves at nine and travels for two hours and a half, it arrives at half past eleven.",
    "She opened the letter slowly. It was from her brother, who had not written for almost a year.",
)
PROMPTS = (
    "Once upon a time, there was",
    "The most important thing about cooking rice is",
    "Question: What is the capital of Italy?\nAnswer:",
    "My favourite season is autumn, because",
)
QUESTIONS = ("Name three animals that can fly.", "Why is the sky blue?")
"""For models that have a chat template."""
NEW_TOKENS = 48
REPLY_TOKENS = 64
"""Of what is shown to people (`replies`)."""
_LONGEST = 256
"""Tokens of a prompt; of a longer one the last ones are kept."""
_GRAM = 4
_KNOWN = 0.5
"""The share of the texts' tokens that a tokenizer must know."""


@dataclass(frozen=True)
class LayerActivations:
    """Of the residual stream behind one layer: its root mean square, its largest magnitude, its kurtosis (3 for normal
    numbers)."""

    rms: float
    peak: float
    kurtosis: float


@dataclass(frozen=True)
class Behaviour:
    """What one model did.

    Attributes:
        bits_per_byte: of the texts; None where its tokenizer does not know most of their words.
        entropy: of its predictions on them, as a share of the largest that its vocabulary allows.
        repetition: the share of what it wrote (in runs of four tokens) that it had written before.
        ended: the share of prompts after which it ended the text by itself.
        layers: the activations behind each layer, on the texts.
        peak: the largest magnitude in any projection's output.
        written: what it wrote after the first prompt.
        tokens: of the texts.
    """

    bits_per_byte: float | None
    entropy: float
    repetition: float
    ended: float
    layers: tuple[LayerActivations, ...]
    peak: float
    written: str
    tokens: tuple[str, ...] = ()


@torch.no_grad()
def observe(model: Any, tokenizer: Any, ends: Collection[int], prompts: Sequence[str] = PROMPTS) -> Behaviour:
    """Runs a model on the texts and prompts. `ends`: the ids at which a generation stops."""
    model.eval()
    device = next(model.parameters()).device
    with _peaks(model) as peak:
        nats, entropies, layers, known = _read(model, tokenizer, device)
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    repeated, ended, written = [], 0, ""
    asked = [_encoded(tokenizer, prompt) for prompt in prompts] + _chats(tokenizer)
    asked = [ids for ids in asked if ids]
    for ids in asked:
        reply, stopped = _go_on(model, ids, ends, device, NEW_TOKENS)
        ended += stopped
        repeated.append(repetition(reply))
        written = written or tokenizer.decode(reply, skip_special_tokens=False)
    return Behaviour(
        bits_per_byte=nats / math.log(2) / n_bytes if known > _KNOWN else None,
        entropy=float(torch.tensor(entropies).mean()) if entropies else math.nan,
        repetition=sum(repeated) / max(1, len(repeated)),
        ended=ended / max(1, len(asked)),
        layers=tuple(layers),
        peak=max(peak, default=0.0),
        written=written,
        tokens=tuple(str(t) for text in TEXTS for t in tokenizer.convert_ids_to_tokens(_encoded(tokenizer, text))),
    )


def repetition(tokens: Sequence[int]) -> float:
    """The share of the runs of four tokens that came before; 0 where there are none."""
    runs = [tuple(tokens[i : i + _GRAM]) for i in range(len(tokens) - _GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _read(model: Any, tokenizer: Any, device: Any) -> tuple[float, list[float], list[LayerActivations], float]:
    """The negative log-likelihood of the texts in nats, the entropy at each token, the layers' activations, and the
    share of the texts' tokens that the tokenizer knows."""
    nats, entropies, sums, n_tokens, unknown = 0.0, list[float](), list[list[Tensor]](), 0, 0
    for text in TEXTS:
        ids = _encoded(tokenizer, text)
        n_tokens += len(ids)
        unknown += sum(i == tokenizer.unk_token_id for i in ids)
        start = tokenizer.bos_token_id
        if start is not None and ids[:1] != [start]:
            ids = [start, *ids]
        if len(ids) < 2:
            continue
        out = model(torch.tensor([ids], device=device), output_hidden_states=True, use_cache=False)
        log_p = out.logits[0, :-1].float().log_softmax(-1)
        nats -= float(log_p.gather(1, torch.tensor(ids[1:], device=device)[:, None]).sum())
        entropy = -(log_p.exp() * log_p.clamp_min(-1e4)).sum(-1) / math.log(log_p.shape[-1])
        entropies += entropy.tolist()
        for i, state in enumerate(out.hidden_states[1:]):
            if i == len(sums):
                sums.append([])
            sums[i].append(state[0].float().reshape(-1).cpu())
    layers = [_activations(torch.cat(states)) for states in sums]
    return nats, entropies, layers, 1 - unknown / max(1, n_tokens)


def _activations(values: Tensor) -> LayerActivations:
    values = values.double()
    square = values.square().mean()
    kurtosis = values.pow(4).mean() / square.square().clamp_min(1e-60)
    return LayerActivations(float(square.sqrt()), float(values.abs().max()), float(kurtosis))


@contextmanager
def _peaks(model: Any) -> Iterator[list[float]]:
    """Collects the largest magnitude of each projection's output while the model runs."""
    peaks: list[float] = []

    def note(_: Any, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            peaks.append(float(output.detach().abs().max()))

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def replies(model: Any, tokenizer: Any, ends: Collection[int], prompts: Sequence[str]) -> list[str]:
    """What a model writes after each prompt, greedily; through its chat template, where it has one."""
    model.eval()
    device = next(model.parameters()).device
    chats = _chats(tokenizer, prompts) or [_encoded(tokenizer, prompt) for prompt in prompts]
    try:
        written = [_go_on(model, ids, ends, device, REPLY_TOKENS)[0] if ids else [] for ids in chats]
    except Exception as error:  # files that do not fit each other can make transformers fail with anything
        raise TrialError(f"running it failed: {type(error).__name__}: {shortened(str(error), 200)}") from error
    return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]


def _go_on(model: Any, ids: list[int], ends: Collection[int], device: Any, most: int) -> tuple[list[int], bool]:
    """What a model writes after a prompt, greedily, in `most` tokens; and whether it ended by itself."""
    from transformers import GenerationConfig

    stop = sorted(ends)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=stop or None,
        pad_token_id=stop[0] if stop else 0,
    )
    prompt = torch.tensor([ids], device=device)
    own = model.generation_config
    model.generation_config = settings  # `generate` takes what settings leave open from there, and it may be wrong
    try:
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
    finally:
        model.generation_config = own
    reply = out[0, len(ids) :].tolist()
    return reply, bool(reply) and reply[-1] in stop


def _encoded(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text)["input_ids"][-_LONGEST:]
    return ids


def _chats(tokenizer: Any, questions: Sequence[str] = QUESTIONS) -> list[list[int]]:
    """Questions in the model's chat template; none where it has none, or it refuses."""
    if not tokenizer.chat_template:
        return []
    try:
        with bounded():
            texts = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
                )
                for question in questions
            ]
    except (TooMuch, Exception):  # a template is a program: it can fail with anything
        return []
    return [tokenizer(text, add_special_tokens=False)["input_ids"][-_LONGEST:] for text in texts]
