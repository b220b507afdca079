"""What was written in reply to a prompt: its length, and several samples of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import InputError, TrialError
from evomerge.escape import quoted
from evomerge.files.objects import LENGTHS, SliceSpec

REPLIES = "replies"
"""Stands in the place of a filter's name for what is read from the replies themselves."""


class Written(str):
    """A text that a model wrote.

    Attributes:
        tokens: how many it wrote, the one that ended it included.
        truncated: whether it would have gone on but for its limit.
        ids: these tokens; empty where only the text is known.
    """

    tokens: int
    truncated: bool
    ids: tuple[int, ...]

    def __new__(cls, text: str, tokens: int, truncated: bool, ids: Sequence[int] = ()) -> Written:
        written = super().__new__(cls, text)
        written.tokens, written.truncated, written.ids = tokens, truncated, tuple(ids)
        return written

    def __getnewargs__(self) -> tuple[Any, ...]:
        return str(self), self.tokens, self.truncated, self.ids


def measured(text: str, tokenizer: Any, limit: int) -> Written:
    """A text of which only its characters are known: as many tokens as it has when it is read, and the one that ended
    it, unless its limit did."""
    if isinstance(text, Written):
        return text
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Written(text, min(tokens + 1, limit), tokens >= limit)


def lengths(replies: Sequence[Written]) -> dict[str, float]:
    """The mean length of an item's replies, and the share of them that was cut off."""
    count = max(1, len(replies))
    means = sum(reply.tokens for reply in replies) / count, sum(reply.truncated for reply in replies) / count
    return dict(zip(LENGTHS, means, strict=True))


class Samples(tuple[Any, ...]):
    """What a metric returned for each sample of an item."""


def together(marks: Sequence[Sequence[tuple[str, Mapping[str, Any]]]]) -> list[tuple[str, dict[str, Samples]]]:
    """The rows of each sample as rows of `Samples`."""
    rows = []
    for row in zip(*marks, strict=True):
        names = [name for name in row[0][1] if all(name in result for _, result in row)]
        rows.append((row[0][0], {name: Samples(result[name] for _, result in row) for name in names}))
    return rows


def reduced(raw: Any, pass_at: int | None) -> Any:
    """One number of an item's samples: their mean, or the probability that at least one of `pass_at` is right, without
    bias from the n samples of which c are right: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374,
    equation 1). What is not sampled stays as it is. TrialError where a sample has no number."""
    if not isinstance(raw, Samples):
        return raw
    try:
        values = [float(value) for value in raw]
    except (TypeError, ValueError):
        raise TrialError(f"a sample was given {quoted(list(raw), 80)}, which are no numbers") from None
    if pass_at is None:
        return sum(values) / len(values)
    right, count = sum(value == 1 for value in values), len(values)
    return 1 - math.comb(count - right, pass_at) / math.comb(count, pass_at)


def check_sampled(name: str, task: Any, spec: SliceSpec) -> None:
    """InputError where the samples of a task would all be the same, or are none."""
    from lm_eval.models.utils import normalize_gen_kwargs

    where = spec.at("samples")
    if task.get_config("output_type") != "generate_until":
        raise InputError(f"task {name!r} generates no text to sample", "remove `samples`", where)
    if (task.get_config("repeats") or 1) > 1:
        raise InputError(f"task {name!r} repeats its prompts itself", "remove `samples`", where)
    if not normalize_gen_kwargs(dict(task.get_config("generation_kwargs") or {}))["do_sample"]:
        mend = "add `gen_kwargs: {do_sample: true, temperature: 0.7}`"
        raise InputError(f"all samples of task {name!r} would be the same: the likeliest tokens", mend, where)
