"""Decodes batches greedily; rows leave a batch as they finish. Imports torch: import it where it is used."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.utils import postprocess_generated_text
from torch import Tensor
from transformers import DynamicCache

from evomerge.errors import TrialError
from evomerge.scoring.replies import Written

_WORTH_SHARING = 32
"""How many tokens a common start needs to be worth a separate forward pass."""


@dataclass(frozen=True)
class Prompt:
    """One text to be continued.

    Attributes:
        tokens: token ids, truncated as lm-eval does.
        limit: the most new tokens.
        until: the stop sequences.
    """

    tokens: tuple[int, ...]
    limit: int
    until: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Prompts that are decoded together.

    Attributes:
        prompts: B prompts.
        eos: the tokens that end a row.
        ids: [B, shared + L], the common start, then the rest of each prompt, padded on its left.
        mask: [B, shared + L].
        shared: the number of tokens in the common start; 0 where it is not worth a pass.
    """

    prompts: tuple[Prompt, ...]
    eos: frozenset[int]
    ids: Tensor
    mask: Tensor
    shared: int


def batches(
    prompts: Sequence[Prompt], size: int, eos: frozenset[int], pad: int, device: Any, share: bool
) -> list[Batch]:
    """Puts distinct prompts into batches of `size`, the longest first. Without `share` there is no common start: a
    sliding attention window over the columns of `ids` would count the padding behind it."""
    ordered = sorted(dict.fromkeys(prompts), key=lambda prompt: -len(prompt.tokens))
    parts = [tuple(ordered[i : i + size]) for i in range(0, len(ordered), size)]
    return [_batch(part, eos, pad, device, _common(part) if share else 0) for part in parts]


def _common(prompts: Sequence[Prompt]) -> int:
    """The number of tokens that all prompts start with; each keeps at least one that is not shared."""
    first, last = min(p.tokens for p in prompts), max(p.tokens for p in prompts)
    limit = min(len(p.tokens) for p in prompts) - 1
    count = next((i for i in range(limit) if first[i] != last[i]), limit)
    return count if len(prompts) > 1 and count >= _WORTH_SHARING else 0


def _batch(prompts: tuple[Prompt, ...], eos: frozenset[int], pad: int, device: Any, shared: int) -> Batch:
    width = max(len(prompt.tokens) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        for columns, tokens in ((slice(shared), prompt.tokens[:shared]), (slice(shared, None), prompt.tokens[shared:])):
            ids[i, columns][-len(tokens) :] = torch.tensor(tokens, dtype=ids.dtype)
            mask[i, columns][-len(tokens) :] = 1
    return Batch(prompts, eos, ids.to(device), mask.to(device), shared)


@torch.no_grad()
def write(lm: Any, batch: Batch) -> list[Reply]:
    """Continues each prompt of the batch by the most likely tokens.

    A row leaves the batch and the cache with its last token. TrialError where a logit is NaN.
    """
    model = _Model(lm.model)
    replies = [Reply(lm.tokenizer, prompt, batch.eos) for prompt in batch.prompts]
    mask, shared, alive = batch.mask, batch.shared, replies
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # as transformers' generate counts them
    if shared:
        model.next(batch.ids[:1, :shared], mask[:1, :shared], positions[:1, :shared])
        model.cache.batch_repeat_interleave(len(replies))
    tokens = model.next(batch.ids[:, shared:], mask, positions[:, shared:])
    while True:
        going = [i for i, (reply, token) in enumerate(zip(alive, tokens.tolist(), strict=True)) if not reply.add(token)]
        if not going:
            return replies
        if len(going) < len(alive):
            alive = [alive[i] for i in going]
            kept = torch.tensor(going, device=mask.device)
            tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
            model.cache.batch_select_indices(kept)
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        positions = positions[:, -1:] + 1
        tokens = model.next(tokens[:, None], mask, positions)


class _Model:
    """A causal language model with the cache of one batch."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known = inspect.signature(model.forward).parameters
        self.cache: Any = DynamicCache(config=model.config.get_text_config(decoder=True))

    def next(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Computes the most likely next token of each row [B].

        Args:
            ids: [B, T], the newest tokens.
            mask: [B, all columns so far].
            positions: [B, T].

        Raises:
            TrialError: a logit is NaN.
        """
        optional = {"position_ids": positions, "logits_to_keep": 1}
        known = {name: value for name, value in optional.items() if name in self._known}
        output = self._model(
            input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, return_dict=True, **known
        )
        best = output.logits[:, -1].max(dim=-1)
        refuse_nan(best.values)
        tokens: Tensor = best.indices
        return tokens


def refuse_nan(logits: Tensor) -> None:
    """TrialError where a logit is NaN: the most likely token would always be the first one."""
    if logits.isnan().any():
        raise TrialError("the model's logits are NaN while it generates")


class Reply:
    """Collects the tokens that one row has written, including the last one."""

    def __init__(self, tokenizer: Any, prompt: Prompt, eos: frozenset[int]) -> None:
        self._tokenizer, self._prompt, self._eos = tokenizer, prompt, eos
        self.tokens: list[int] = []
        # A token that is not special stands for at least one byte.
        self._window = 4 + max((len(stop.encode()) for stop in prompt.until), default=0)
        self._stopping = False

    def add(self, token: int) -> bool:
        """Takes the next token. Returns whether it ends the reply."""
        self.tokens.append(token)
        return token in self._eos or len(self.tokens) >= self._prompt.limit or self._stopped()

    def text(self) -> Written:
        """The reply up to its first stop sequence, as lm-eval cuts it."""
        whole: str = postprocess_generated_text(self._decode(self.tokens), list(self._prompt.until), None)
        truncated = self.tokens[-1] not in self._eos and not self._stopped()
        return Written(whole, len(self.tokens), truncated, self.tokens)

    def _stopped(self) -> bool:
        """Decodes only the last tokens until they hold a stop sequence."""
        if not self._stopping:
            tail = self._decode(self.tokens[-self._window :])
            self._stopping = any(stop in tail for stop in self._prompt.until)
        return self._stopping and is_settled(self._decode(self.tokens), self._prompt.until)

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def is_settled(text: str, until: Sequence[str]) -> bool:
    """Whether `text` holds a stop sequence and no further token can change where it is cut.

    lm-eval cuts at one stop sequence after the other, in their order: one that has begun at the end of the text may
    still count, and so may half a character.
    """
    missing = [stop for stop in until if stop not in text]
    if len(missing) == len(until) or text.endswith("\ufffd"):
        return False
    return not any(text.endswith(stop[:n]) for stop in missing for n in range(1, len(stop)))
